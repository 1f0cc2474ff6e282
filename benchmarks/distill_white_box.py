"""What a student of a quarter of its teacher's size learns from the teacher's weights, beside the tokens alone.

    python benchmarks/distill_white_box.py TEXT... [--tokens 1000000] [--seeds 3] [--out runs/white-box]

A hybrid is trained as a teacher. Students of one size read the same tokens in the same order: the next tokens alone,
the teacher's whole distribution (live, and from a cache of hidden states with these matched too), and caches of draws
and of likeliest tokens. Each sort has its own learning rate, swept with the first seed. Prints held-out bits per byte,
calibration error, the tokens to the score of the next tokens alone, and the caches' bytes per token. Runs that are
there already are read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import describe, require_truth

import interlace
from interlace.base.schema import validate
from interlace.data.batches import IGNORE
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.evaluate.training import train_and_report
from interlace.runs.progress import Progress
from interlace.train.cache.facts import AMOUNTS, Records
from interlace.train.cache.write import Writer
from interlace.train.recipe import Recipe

RATES = (1.5e-3, 3e-3, 6e-3)
BINS = 15  # of confidence, for the calibration error
CACHES = {kind: Records(kind=kind, amount=amount) for kind, amount in AMOUNTS.items()}  # type: ignore[arg-type]
SORTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "next tokens alone": lambda teacher, work: {},
    "forward KL, live": lambda teacher, work: {"kind": "distill", "teacher": str(teacher)},
    "forward KL, half": lambda teacher, work: {"kind": "distill", "teacher": str(teacher), "soft": 0.5},
    "32 draws": lambda teacher, work: {"kind": "distill", "cache": str(work / "draws")},
    "50 likeliest": lambda teacher, work: {"kind": "distill", "cache": str(work / "top_k")},
    "hidden states": lambda teacher, work: {"kind": "distill", "cache": str(work / "hidden"), "hidden": 1.0},
}


def recipe(width: int, depth: int, source: list[str], tokens: int, rate: float, seed: int, **more: Any) -> Recipe:
    """A hybrid of this size."""
    heads = width // 48
    plain = {
        "model": {
            "width": width,
            "depth": depth,
            "vocabulary": 4096,
            "pattern": ["gated_delta", "gated_delta", "gated_delta", "attention"],
            "gated_delta": {"heads": heads, "key_dim": 32, "value_dim": 64},
            "attention": {"heads": heads, "position": "none", "norm": "output"},
            "mlp": {"width": 8 * width // 3 // 16 * 16},
        },
        "data": {"source": source, "length": 256, "rows": 16},
        "train": {
            "tokens": tokens,
            "learning_rate": rate,
            "seed": seed,
            "evaluations": 10,
            "evaluation_tokens": 20_000,
            "precision": "float32",
        },
    }
    return validate(Recipe, {**plain, **more}, "")


def watch(now: Progress) -> None:
    """Say where it is, on one line."""
    if now.total:
        print(f"\r{now.label} {now.done / now.total:4.0%} ", end="", file=sys.stderr, flush=True)


@torch.no_grad()
def calibration_error(checkpoint: Path, corpus: Corpus) -> float:
    """The mean difference of confidence and accuracy of the likeliest token, over bins of confidence."""
    model = interlace.load(checkpoint, dtype=torch.float32).eval()
    sure, right = [], []
    for batch in HeldOut(corpus, 256, 50_000).batches:
        kept = batch.targets != IGNORE
        top = model.logits(model.hidden(batch.tokens, batch.segments)[0][kept]).softmax(-1).max(-1)
        sure.append(top.values)
        right.append((top.indices == batch.targets[kept]).float())
    confidence, hit = torch.cat(sure), torch.cat(right)
    places = (confidence * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(places, minlength=BINS)
    apart = torch.zeros(BINS).index_add(0, places, confidence - hit)
    return float(apart.abs().sum() / counts.sum())


def trained(made: Recipe, out: Path) -> tuple[list[tuple[int, float]], Path]:
    """(tokens, held-out bits per byte) along a run, and its last checkpoint."""
    run = train_and_report(made, out, watch)
    scores = [(r["tokens"], r["held_out_bits_per_byte"]) for r in run.metrics() if "held_out_bits_per_byte" in r]
    newest = run.newest_good()
    assert newest is not None
    return scores, newest


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--teacher-tokens", type=int, default=4_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--out", type=Path, default=Path("runs/white-box"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    require_truth()
    print(describe("white box"))
    teach = recipe(192, 8, given.text, given.teacher_tokens, 3e-3, 0)
    teach = teach.model_copy(update={"data": teach.data.model_copy(update={"tokenizer": "train:4096"})})
    scores, teacher = trained(teach, given.out / "teacher")
    data = given.out / "teacher" / "data"
    corpus = Corpus.open(data)
    student = recipe(96, 8, [str(data)], given.tokens, 1e-3, 0)
    both = [interlace.sizes(made.model).non_embedding for made in (teach, student)]
    print(f"teacher: {both[0]:,} parameters, {scores[-1][1]:.3f} bits per byte; students: {both[1]:,}", flush=True)
    sizes = {}
    for kind, records in CACHES.items():
        writer = Writer(str(teacher), data, records)
        sizes[kind] = writer.size().bytes_per_record
        writer.run(given.out / kind, watch=watch)
    print(", ".join(f"{kind}: {size:.0f} bytes per token" for kind, size in sizes.items()), flush=True)

    def run(sort: str, rate: float, seed: int) -> tuple[list[tuple[int, float]], Path]:
        more = {"objective": asked} if (asked := SORTS[sort](teacher, given.out)) else {}
        made = recipe(96, 8, [str(data)], given.tokens, rate, seed, **more)
        return trained(made, given.out / f"{sort.replace(' ', '-').replace(',', '')}-{rate:g}-{seed}")

    found: dict[str, dict[str, Any]] = {}
    for sort in SORTS:
        swept = {rate: run(sort, rate, 0)[0][-1][1] for rate in given.rates}
        rate = min(swept, key=lambda r: swept[r])
        runs = [run(sort, rate, seed) for seed in range(given.seeds)]
        last = [scores[-1][1] for scores, _ in runs]
        goal = found.get("next tokens alone", {}).get("bits", statistics.mean(last))
        reached = [next((tokens for tokens, bits in scores if bits <= goal), None) for scores, _ in runs]
        found[sort] = {
            "rate": rate,
            "bits": statistics.mean(last),
            "each": last,
            "calibration": statistics.mean(calibration_error(checkpoint, corpus) for _, checkpoint in runs),
            "reached": reached,
            "swept": swept,
        }
        spread = f"{min(last):.4f}-{max(last):.4f}"
        told = ", ".join("-" if tokens is None else f"{tokens:,}" for tokens in reached)
        print(
            f"{sort:20} rate {rate:g}: {found[sort]['bits']:.4f} bits per byte ({spread}), calibration error "
            f"{found[sort]['calibration']:.3f}, the score of next tokens alone after {told} tokens",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps({"bytes_per_token": sizes, "sorts": found}, indent=1))


if __name__ == "__main__":
    main()
