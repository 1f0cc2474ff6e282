"""The quickstart keeps to its budget on any machine, and names a winner only after enough training."""

from __future__ import annotations

import shutil
import time
from types import SimpleNamespace

import pytest
import tomli_w
from watching import at

from interlace.data.library import sources
from interlace.data.prepare import prepare
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.runs.progress import silent
from interlace.runs.training import TrainingRun
from interlace.study.quickstart import contest
from interlace.study.quickstart import run as quickstart_run
from interlace.study.quickstart.plan import NAMES
from interlace.study.quickstart.report import sentence
from interlace.train.trainer import StepResult, Trainer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Text and its tokens, made once."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "texts").mkdir()
    for i in range(12):
        words = " ".join(f"the {'quick' if j % 3 else 'slow'} fox {i * j % 17} jumps" for j in range(120))
        (folder / "texts" / f"{i:02}.txt").write_text(words)
    made_for = quickstart_run.made_for(sources(folder / "texts"))
    prepare(sources(folder / "texts"), "train:4096", folder / "data", made_for=made_for)
    return folder


@pytest.fixture
def race(prepared, tmp_path):
    """Starts a quickstart whose text is cut already."""

    def start(minutes, watch=silent):
        out = tmp_path / "run"
        if not out.exists():
            settings = {"minutes": minutes, "data": str(prepared / "texts")}
            shutil.copytree(prepared / "data", out / "data")
            (out / "run.toml").write_text(tomli_w.dumps({"quickstart": settings}))
        return quickstart_run.quickstart(minutes, out, prepared / "texts", watch)

    return start


class Machine:
    """A machine whose clock is moved by what it does alone.

    Attributes:
        step: seconds of the n-th step of training.
        token: seconds to score one token.
    """

    def __init__(self, monkeypatch, step, token):
        self.now, self.steps, self.trained, self.scored, self.training, self.scoring = 0.0, 0, 0, 0, 0.0, 0.0
        self.checkpoints = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

        def take(trainer, batch):
            seconds = step(self.steps)
            self.now, self.training, self.steps = self.now + seconds, self.training + seconds, self.steps + 1
            self.trained += batch.tokens.numel()
            trainer.done += 1
            return StepResult(9 - trainer.done / 1000, 1.0, trainer.schedule.learning_rate, seconds)

        held = HeldOut.__init__

        def lay_out(self_, corpus, length, tokens, rows=8):
            held(self_, corpus, length, tokens, rows)
            self_.nominal = tokens

        def score(held_out, model):
            seconds = token * held_out.nominal
            self.now, self.scoring, self.scored = (
                self.now + seconds,
                self.scoring + seconds,
                self.scored + held_out.nominal,
            )
            return {"held_out_bits_per_byte": 4 - self.scored / 1e9, "held_out_loss": 2.0}

        def write(run, step, fill):
            self.checkpoints += 1
            (run.path / "checkpoints" / f"step-{step}").mkdir(parents=True, exist_ok=True)

        monkeypatch.setattr(Trainer, "step", take)
        monkeypatch.setattr(HeldOut, "__init__", lay_out)
        monkeypatch.setattr(HeldOut, "score", score)
        monkeypatch.setattr(TrainingRun, "write_checkpoint", write)
        monkeypatch.setattr(quickstart_run, "sample", lambda *_: "def f(): ...")
        monkeypatch.setattr(contest, "choose_precision", lambda *_: "float32")  # it measures by the clock


MACHINES = {
    "quick": (lambda n: 0.03, 4e-6),
    "slow": (lambda n: 2.0, 7e-4),
    "so slow that hardly a step fits": (lambda n: 6.0, 2e-3),
    "slow to score": (lambda n: 0.05, 1e-3),
    "busy once it has been measured": (lambda n: 0.03 if n < 24 else 0.12, 4e-6),
    "busy in the middle of the race": (lambda n: 0.03 if n < 3000 else 0.15, 4e-6),
    "busy now and then": (lambda n: 0.6 if n % 6 == 0 else 0.03, 4e-6),
    "slow at first": (lambda n: 1.0 if n < 4 else 0.03, 4e-6),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("minutes", [1.0, 2.5])
def test_it_ends_in_time(name, minutes, race, monkeypatch):
    machine = Machine(monkeypatch, *MACHINES[name])
    results = race(minutes)
    assert machine.now <= 1.3 * 60 * minutes
    assert results["models"]["transformer"]["tokens"] == results["models"]["hybrid"]["tokens"] > 0


@pytest.mark.parametrize("name", ["quick", "busy once it has been measured", "slow at first"])
def test_the_time_is_used_for_training(name, race, monkeypatch):
    machine = Machine(monkeypatch, *MACHINES[name])
    race(4.0)
    assert machine.now >= 0.75 * 240
    assert machine.training >= 0.7 * machine.now


@pytest.mark.parametrize("name", ["slow", "slow to score"])
def test_scoring_takes_a_small_part(name, race, monkeypatch):
    machine = Machine(monkeypatch, *MACHINES[name])
    race(4.0)
    assert machine.scoring <= 0.35 * machine.now
    assert machine.checkpoints <= 2 * 5


@pytest.mark.parametrize(
    ("name", "named"), [("quick", True), ("slow", False), ("so slow that hardly a step fits", False)]
)
def test_a_winner_is_named_after_enough_training_alone(name, named, race, tmp_path, monkeypatch):
    Machine(monkeypatch, *MACHINES[name])
    results = race(4.0)
    assert (results["winner"] in NAMES) is named
    told, page = sentence(results), (tmp_path / "run" / "report.html").read_text()
    assert (" won" in told) is named
    assert ("no winner" in told.lower()) is not named
    assert ("tokens" in told) or named  # how many it had, and how many it takes
    assert told.split(":")[0] in page


def test_the_time_that_is_told_to_be_left_holds_the_scores_too(race, monkeypatch):
    from interlace.cli.quickstart import Scoreboard

    machine = Machine(monkeypatch, lambda n: 0.1, 1e-4)
    board, seen = Scoreboard(), []
    monkeypatch.setattr("interlace.cli.quickstart.err", SimpleNamespace(is_terminal=False, print=lambda *a, **k: None))
    monkeypatch.setattr("interlace.cli.quickstart.duration", lambda seconds: f"{seconds:f}")

    def step(now):
        board.update(now)
        seen.append((machine.now, float(board.left().split()[0])))

    race(2.0, at("race", step))
    for now, left in seen[len(seen) // 4 :]:
        assert left == pytest.approx(machine.now - now, rel=0.4, abs=15)


def test_a_start_that_goes_on_has_the_time_that_is_left(race, monkeypatch):
    class Stopped(Exception):
        pass

    machine = Machine(monkeypatch, *MACHINES["quick"])

    def stop(_):
        if machine.now > 120:
            raise Stopped

    monkeypatch.setattr(Trainer, "resume", lambda trainer, folder: setattr(trainer, "done", int(folder.name[5:])))
    monkeypatch.setattr(TrainingRun, "newest_good", lambda run: next(reversed(run.checkpoints()), None))
    with pytest.raises(Stopped):
        race(4.0, at("race", stop))
    machine.now += 10_000  # the machine was off
    restarted = machine.now
    race(4.0)
    assert machine.now - restarted <= 1.3 * 240 - 60


def test_a_rate_is_not_tried_where_there_is_no_room_for_it(race, monkeypatch):
    """Steps take 1.6 times what was measured: two rates fit into the time for the search, and a third does not."""
    machine = Machine(monkeypatch, lambda n: 0.03 if n < 16 else 0.048, 4e-6)
    began = []

    def watch(now):
        if now.label.startswith("learning rates") and not began:
            began.append(machine.now)

    results = race(4.0, watch)
    assert len(results["learning_rates"]["tried"]) == 2
    searched = 2 * 2 * results["plan"]["sweep_steps"] * 0.048
    assert searched <= 1.25 * contest.SWEEP_SHARE * (240 - began[0])


def test_more_minutes_are_named_where_rates_were_not_searched(race, monkeypatch):
    Machine(monkeypatch, lambda n: 0.05, 1e-3)
    results = race(1.0)
    assert results["tokens_of_loser"] >= contest.LEAST_TOKENS
    assert not results["learning_rates"]["tried"]
    assert results["least_minutes"] > 1
