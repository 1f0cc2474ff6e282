"""The whole quickstart: text, tokenizer, plan, sweep, race, verdict.

Each stage leaves a file, and a second start resumes from there.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, RunError
from interlace.base.files import user_path, write_file
from interlace.base.package import VERSION
from interlace.checkpoint.load import load
from interlace.data.batches import batches
from interlace.data.library import sources
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.generation.text import generate
from interlace.model.device import check_device, facts
from interlace.model.sizes import sizes
from interlace.runs.folder import RunFolder
from interlace.runs.lock import hold_folder
from interlace.runs.progress import Progress, Watch
from interlace.study.quickstart.contest import LEAST_TOKENS, LENGTH, ROWS, SEED, Contest, tokens_to_reach
from interlace.study.quickstart.plan import NAMES, PLAN, RATES, Clock, Plan
from interlace.study.quickstart.race import race
from interlace.study.quickstart.report import write_report
from interlace.train.corpus import kept_corpus, stamp

VOCABULARY = 4096
CONTEXTS = (1024, 8192, 65_536)
PROMPT = "def "


def quickstart(minutes: float, out: Path, data: Path | None, watch: Watch, device: str = "cpu") -> dict[str, Any]:
    """Run or resume the whole comparison in `out`; return what results.json holds.

    Raises:
        ConfigError: fewer minutes than a comparison needs, or no such device.
        RunError: `out` belongs to another comparison.
        DataError: the text cannot be used.
    """
    if not 0.5 <= minutes <= 10_000:
        raise ConfigError(f"minutes: must lie between 0.5 and 10000, got {minutes:g}")
    check_device(device)
    out, data = user_path(out, RunError), None if data is None else user_path(data)
    settings = {"quickstart": {"minutes": minutes, "data": "standard library" if data is None else str(data.resolve())}}
    text = sources(data)
    if not RunFolder(out).belongs_to(settings) and data is not None:
        next(iter(text))  # refuse unusable text before anything is written
    with hold_folder(out):
        return _quickstart(minutes, out, text, settings, watch, device)


def _quickstart(
    minutes: float, out: Path, text: Sources, settings: dict[str, Any], watch: Watch, device: str
) -> dict[str, Any]:
    clock = Clock(60 * minutes, spent_before(out))
    run = RunFolder.open(out, settings)
    run.remember(machine=facts(device))
    try:
        corpus = _text(text, out, watch)
    except BaseException:
        run.withdraw()
        raise
    contest = Contest(out, corpus, clock, watch, device)
    plan = contest.plan()
    sweep = contest.sweep(plan)
    rates = {name: best_rate(sweep, name) for name in NAMES}
    race(contest, plan, rates)
    contest.keep(plan)
    watch(Progress("samples and report", 0, 0))
    results = verdict(contest, plan, sweep, rates)
    results["seconds"] = clock.spent
    write_file(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_report(out, results, contest.runs)
    return results


def spent_before(out: Path) -> float:
    """Return the seconds of the budget that earlier starts have used."""
    try:
        spent = json.loads((out / PLAN).read_text(encoding="utf-8"))["spent_seconds"]
        return float(spent) if spent >= 0 else 0.0
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0.0


def _text(text: Sources, out: Path, watch: Watch) -> Corpus:
    """Return the text as tokens, prepared once, and check that there is enough of it for the race.

    Until there is a plan, text that has changed since an earlier start is prepared anew.
    """

    def told(now: Progress) -> None:
        watch(replace(now, label=f"text: {now.label}"))

    def make(wanted: dict[str, Any]) -> None:
        prepare(text, f"train:{VOCABULARY}", out / "data", watch=told, held=True, made_for=wanted)

    corpus = kept_corpus(out / "data", lambda: made_for(text), make, begun=(out / PLAN).is_file())
    batches(corpus.splits["train"], ROWS, LENGTH, SEED)
    RunFolder(out).check("data", corpus.fingerprint(), f"{corpus.folder}: the data")
    return corpus


def made_for(text: Sources) -> dict[str, Any]:
    """Return what the tokens of a text depend on."""
    return {"tokenizer": f"train:{VOCABULARY}", "text": stamp(text)}


def best_rate(sweep: list[dict[str, Any]], name: str) -> float:
    """Return the learning rate with the lowest held-out score for this model; the middle one if none was tried."""
    tried = [d for d in sweep if d["model"] == name]
    if not tried:
        return RATES[len(RATES) // 2]
    best: float = min(tried, key=lambda d: d["held_out_bits_per_byte"])["learning_rate"]
    return best


def verdict(contest: Contest, plan: Plan, sweep: list[dict[str, Any]], rates: dict[str, float]) -> dict[str, Any]:
    """Return all that the table, the report and scripts need."""
    models = {}
    curves = {}
    for name in NAMES:
        rows = list(contest.runs[name].metrics())
        curves[name] = [(m["tokens"], m["held_out_curve"]) for m in rows if "held_out_curve" in m]
        size = sizes(contest.configs[name], CONTEXTS, element_bytes=4)
        checkpoint = contest.runs[name].checkpoints()[-1]
        models[name] = {
            "parameters": size.total,
            "non_embedding_parameters": size.non_embedding,
            "tokens": rows[-1]["tokens"],
            "held_out_bits_per_byte": rows[-1]["held_out_bits_per_byte"],
            "tokens_per_second": statistics.median(m["tokens_per_second"] for m in rows),
            "learning_rate": rates[name],
            "state_and_cache_bytes": {c: size.state_bytes[c] + size.cache_bytes[c] for c in CONTEXTS},
            "checkpoint": str(checkpoint),
            "sample": sample(checkpoint, contest.device),
        }
    total = models[NAMES[0]]["tokens"]
    tried = len({d["learning_rate"] for d in sweep})
    winner = loser = needed = None
    if total >= LEAST_TOKENS and tried > 1:
        winner = min(NAMES, key=lambda n: models[n]["held_out_bits_per_byte"])
        loser = next(n for n in NAMES if n != winner)
        needed = tokens_to_reach(curves[winner], curves[loser][-1][1])
    rate = sum(1 / models[n]["tokens_per_second"] for n in NAMES)
    minutes = math.ceil(LEAST_TOKENS * rate / 60 / 0.6)
    if total >= LEAST_TOKENS and tried < 2:  # it was rates that there was no time for
        minutes = max(minutes, math.ceil(contest.clock.budget / 60) + 1)
    splits = contest.corpus.manifest["splits"]
    return {
        "winner": winner,
        "loser": loser,
        "tokens_needed": needed,
        "tokens_of_loser": total,
        "least_tokens": LEAST_TOKENS,
        "least_minutes": minutes,
        "token_ratio": None if needed is None else total / needed,
        "models": models,
        "learning_rates": {"tried": [r for r in RATES if any(d["learning_rate"] == r for d in sweep)], "scores": sweep},
        "plan": {"steps": plan.steps, "sweep_steps": plan.sweep_steps, "precision": plan.precision},
        "sweep_tokens_per_model": tried * plan.sweep_steps * plan.batch_tokens,
        "text": {name: {k: s[k] for k in ("documents", "tokens", "bytes")} for name, s in splits.items()},
        "prompt": PROMPT,
        "version": VERSION,
    }


def sample(checkpoint: Path, device: str = "cpu") -> str:
    """Return a little text from a checkpoint, the same each time."""
    model = load(checkpoint, device=device)
    return PROMPT + "".join(generate(model, PROMPT, max_tokens=96, temperature=0.7, min_p=0.05, seed=1))
