"""The comparison: fair by construction, told honestly, and taken up where it was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

import interlace
from interlace.base.errors import DataError, RunError
from interlace.data.library import sources
from interlace.data.sources import split_point
from interlace.model.sizes import sizes
from interlace.runs.progress import silent
from interlace.study.quickstart.contest import configs, tokens_to_reach
from interlace.study.quickstart.plan import RATES
from interlace.study.quickstart.report import sentence
from interlace.study.quickstart.run import quickstart

PLAN = {"steps": 12, "sweep_steps": 2, "precision": "float32", "batch_tokens": 1024}
SPEEDS = {"transformer": 0.1, "hybrid": 0.1}

WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from interlace.study.quickstart.run import quickstart
def watch(now):
    if now.label == "race":
        print(now.detail["model"], now.detail["step"], flush=True)
quickstart(1.0, Path(sys.argv[1]), Path(sys.argv[2]), watch)
"""


def start(out, texts, steps=12):
    """A run whose plan is made already, so that the test takes seconds and both runs do the same."""
    import tomli_w

    out.mkdir()
    (out / "run.toml").write_text(tomli_w.dumps({"quickstart": {"minutes": 1.0, "data": str(texts)}}))
    (out / "plan.json").write_text(json.dumps({**PLAN, "steps": steps, "seconds_per_step": SPEEDS}))


def test_non_embedding_parameters_match_within_one_percent():
    both = {n: sizes(c) for n, c in configs(4096, 0).items()}
    assert abs(both["transformer"].non_embedding / both["hybrid"].non_embedding - 1) < 0.01
    kinds = configs(4096, 0)["hybrid"].kinds
    assert kinds.count("gated_delta") == 3 * kinds.count("attention")
    assert set(configs(4096, 0)["transformer"].kinds) == {"attention"}


def test_the_text_is_the_library_without_its_tests():
    names = [d.name for d in sources(None)]
    assert "json/decoder.py" in names
    assert len(names) > 300
    assert not any(part in ("test", "tests", "site-packages") for n in names for part in n.split("/"))
    assert 0.02 < sum(split_point(n) < 0.05 for n in names) / len(names) < 0.09


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_it_never_was(texts, tmp_path):
    command = [sys.executable, "-c", WORKER]
    for name in ("whole", "broken"):
        start(tmp_path / name, texts)
    whole, broken = (str(tmp_path / n) for n in ("whole", "broken"))
    subprocess.run([*command, whole, str(texts)], check=True, capture_output=True)
    worker = subprocess.Popen([*command, broken, str(texts)], stdout=subprocess.PIPE, text=True)
    for line in worker.stdout:
        if line.split() == ["hybrid", "7"]:
            worker.send_signal(signal.SIGKILL)
            break
    worker.stdout.close()
    assert worker.wait() == -signal.SIGKILL
    subprocess.run([*command, broken, str(texts)], check=True, capture_output=True)
    for name in ("transformer", "hybrid"):
        files = [tmp_path / run / name / "checkpoints" / "step-12" / "model.safetensors" for run in ("whole", "broken")]
        assert files[0].read_bytes() == files[1].read_bytes()

    results = json.loads((tmp_path / "broken" / "results.json").read_text())
    models = results["models"]
    assert models["transformer"]["tokens"] == models["hybrid"]["tokens"] == 12 * 1024
    scores = {n: m["held_out_bits_per_byte"] for n, m in models.items()}
    assert results["winner"] is None  # 12 steps say nothing
    assert all(score > 0 for score in scores.values())
    assert len(results["learning_rates"]["scores"]) == 2 * len(RATES)
    assert (tmp_path / "broken" / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "broken" / "report.html").read_text()
    assert sentence(results).split(":")[0] in page
    assert "data:image/png;base64," in page
    assert interlace.load(tmp_path / "broken" / "hybrid").config.kinds.count("gated_delta") == 3


@pytest.mark.slow
def test_both_models_see_the_same_batches(texts, tmp_path, monkeypatch):
    from interlace.train.trainer import Trainer

    seen = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (seen.append(batch), step(self, batch))[1])
    start(tmp_path / "run", texts, steps=5)
    quickstart(1.0, tmp_path / "run", texts, silent)
    race = seen[-10:]
    assert all(race[i] is race[i + 1] for i in range(0, 10, 2))
    assert len({id(batch) for batch in race}) == 5


def test_a_folder_of_something_else_is_refused(texts, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(RunError, match="not a run folder"):
        quickstart(1.0, tmp_path / "run", texts, silent)
    start(tmp_path / "other", texts)
    with pytest.raises(RunError, match=r"quickstart.minutes was 1.0 and is now 2.0"):
        quickstart(2.0, tmp_path / "other", texts, silent)
    with pytest.raises(DataError, match="no such file"):
        quickstart(1.0, tmp_path / "new", tmp_path / "nowhere", silent)
    assert not (tmp_path / "new").exists()


def test_tokens_to_reach_a_level():
    curve = [(100, 4.0), (400, 2.0), (1600, 1.0)]
    assert tokens_to_reach(curve, 3.0) == pytest.approx(200)
    assert tokens_to_reach(curve, 1.0) == pytest.approx(1600)
    assert tokens_to_reach(curve, 0.5) is None
    assert tokens_to_reach(curve, 5.0) == 100


@pytest.mark.parametrize("winner", ["hybrid", "transformer"])
def test_the_sentence_says_who_won(winner):
    loser = {"hybrid": "transformer", "transformer": "hybrid"}[winner]
    models = {winner: {"held_out_bits_per_byte": 2.0}, loser: {"held_out_bits_per_byte": 2.1}}
    results = {"winner": winner, "loser": loser, "models": models, "tokens_of_loser": 1000}
    told = sentence({**results, "tokens_needed": 800.0, "token_ratio": 1.25})
    assert told.startswith(f"The {winner} won: 2.000 against 2.100")
    assert f"the {loser}'s final score with 800 tokens instead of 1,000: 1.25 times fewer" in told
