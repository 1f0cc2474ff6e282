"""Task generators against slow simulators of their own, which read the text alone; the grid; the page."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.base.errors import ConfigError, Diverged, RunError
from interlace.cli.main import run
from interlace.data.batches import IGNORE
from interlace.study.tasks import arms
from interlace.study.tasks.arms import Shape
from interlace.study.tasks.cell import Budget, TaskCell, train
from interlace.study.tasks.grid import TaskGrid
from interlace.study.tasks.objects import shortcut
from interlace.study.tasks.registry import TASKS
from interlace.study.tasks.suites import DEFAULTS, SUITES
from interlace.train.trainer import StepResult, Trainer

DOCS = Path(__file__).parents[2] / "docs"
every_task = pytest.mark.parametrize("name", list(TASKS))
seeds = st.integers(0, 2**32)


def python(text):
    """Run it: its own assertions are the check."""
    exec(text, {})


def parity(text):
    bits, answer = text.split(" -> ")
    odd = False
    for bit in bits.split():
        odd = odd != (bit == "1")
    assert answer == str(int(odd))


def arithmetic(text):
    expression, answer = text.rsplit(" = ", 1)
    assert eval(expression) % 5 == int(answer)


def formula(text):
    """From the right, on a stack."""
    symbols, answer = text.split(" = ")
    stack = []
    for s in reversed(symbols.split()):
        if s in "01":
            stack.append(s == "1")
        else:
            a, b = stack.pop(), stack.pop()
            stack.append((a and b) if s == "&" else (a or b))
    assert stack == [answer == "1"]


def permutations(text):
    """Follow every object through every permutation."""
    places = None
    for pair in text.split(", "):
        x, product = pair.split(" -> ")
        places = list(range(len(x))) if places is None else places
        places = [int(x[p]) for p in places]
        assert product == "".join(map(str, places))


def z60(text):
    total = 0
    for pair in text.split(", "):
        x, product = pair.split(" -> ")
        total += int(x)
        assert int(product) == total % 60


def mqar(text):
    head = text.split(" -> ")[0].split()
    known = {}
    for key, value in zip(head[::2], head[1::2], strict=False):
        if value.startswith("v"):
            known[key] = value
    questions = dict(re.findall(r"(k\d+) -> (v\d+)", text))
    assert questions == known


def needle(text):
    hay, question = text.split(" ? ")
    key, value = question.split(" -> ")
    assert dict(re.findall(r"! (k\d+) (v\d+)", hay))[key] == value


def copy(text):
    string, again = text.split(" | -> ")
    assert f"{string[2:]} ." == again


def selective(text):
    string, letters = text.split(" | -> ")
    assert [w for w in string.split() if w != "."] == letters.split()


def recall(text):
    """The first value that followed a key is every later one; asked wherever the key was seen before."""
    known = {}
    for key, arrow, value in re.findall(r"(k\d+) (-> )?(v\d+)", text):
        assert known.setdefault(key, value) == value
        assert arrow or list(re.findall(rf"{key} (?:-> )?v", text)).__len__() >= 1
    for match in re.finditer(r"(k\d+) (-> )?v", text):
        seen = re.search(rf"{match[1]} (-> )?v", text[: match.start()]) is not None
        assert seen == bool(match[2]) or match.end() + 2 >= len(text)


def fuzzy(text):
    known = {}
    for key, value in re.findall(r"((?:k\d+ )+)(?:-> )?((?:v\d+ ?)+)", text):
        assert known.setdefault(key.strip(), value.strip()) == value.strip()


def compression(text):
    string, question = text.split(" # ")
    place, letter = question.split(" -> ")
    assert string.split()[int(place)] == letter


LEARNT: dict[str, str] = {}


def memorization(text):
    for key, value in re.findall(r"(k\d+) _ -> (v\d+)", text):
        assert LEARNT.setdefault(key, value) == value


SIMULATORS = {
    **dict.fromkeys((n for n in TASKS if n.startswith(("swaps", "recall", "state_recall", "programs"))), python),
    **dict.fromkeys(("s3", "a5", "s5", "s5_swaps"), permutations),
    **dict.fromkeys(("arithmetic", "arithmetic_brackets"), arithmetic),
    **dict.fromkeys(("selective_copy", "mad_selective_copy"), selective),
    **dict.fromkeys(("mad_recall", "mad_noisy"), recall),
    **dict.fromkeys(("needle", "needles"), needle),
    "parity": parity,
    "formula": formula,
    "z60": z60,
    "mqar": mqar,
    "copy": copy,
    "mad_fuzzy": fuzzy,
    "mad_compression": compression,
    "mad_memorization": memorization,
}


@every_task
@settings(deadline=None, max_examples=25)
@given(seed=seeds, place=st.integers(0, 100))
def test_labels_are_those_of_a_slow_simulator(name, seed, place):
    task = TASKS[name]
    difficulties = sorted({*task.trained, *task.tested})
    difficulty = difficulties[place % len(difficulties)]
    sample = task.sample(np.random.default_rng(seed), difficulty, test=bool(seed % 2))
    SIMULATORS[name](task.text(sample))
    assert sample.tokens.min() >= 0
    assert sample.tokens.max() < len(task.words)
    assert sample.labels.max() < len(task.words)
    assert all(sample.labels[a] != IGNORE for a in sample.answers)
    assert sample.answers
    assert len(set(task.words)) == len(task.words)


@every_task
def test_answers_are_balanced(name):
    """Each answer as often as the others, within five deviations; products of ten swaps are not (parity of swaps)."""
    task = TASKS[name]
    if name in ("s5_swaps", "mad_memorization", "copy"):
        pytest.skip("not uniform: products of few swaps, a fixed dictionary, an end after every string")
    rng = np.random.default_rng(1)
    samples = [task.sample(rng, task.trained[-1], test=False) for _ in range(800)]
    answers = np.array([s.labels[s.answers[-1]] for s in samples])
    _, counts = np.unique(answers, return_counts=True)
    kinds = round(1 / task.chance(1)) if task.scored_by == "token" else len(task.words)
    even = len(answers) / kinds
    assert abs(counts.max() - even) < 5 * math.sqrt(even) + 1
    assert len(counts) > 0.5 * min(kinds, 500)


@every_task
def test_no_test_sample_is_trained_on(name):
    task = TASKS[name]
    for difficulty in (task.trained[0], task.trained[-1]):
        if not task.splits(difficulty):
            assert task.bits(difficulty) < 17
            continue
        tests = {s.problem for s in task.test_set(difficulty, 40)}
        rng = np.random.default_rng(3)
        assert not tests & {task.sample(rng, difficulty, test=False).problem for _ in range(250)}


def test_a_small_task_is_split_where_every_problem_is_drawn():
    """Four swaps are too few to spare any; seventeen bits are exactly enough."""
    assert not TASKS["swaps"].splits(4)
    assert TASKS["parity"].splits(17)
    assert not TASKS["parity"].splits(16)


@every_task
def test_batches_are_a_function_of_the_generator_and_pack_samples(name):
    task = TASKS[name]
    first, second = (task.batch(np.random.default_rng([1, 5]), 6, 0.9) for _ in range(2))
    assert first.tokens.equal(second.tokens)
    assert first.targets.equal(second.targets)
    assert first.segments.count == 6
    per_sample = [float(w.sum()) for w in first.weights.split(first.segments.lengths)]
    assert per_sample == pytest.approx([1.0] * 6)
    assert ((first.weights > 0) == (first.targets != IGNORE)).all()


def test_tested_samples_of_objects_reveal_nothing():
    for name in ("swaps", "state_recall", "state_recall_16", "programs"):
        assert all((s.labels != IGNORE).sum() == 1 for s in TASKS[name].test_set(8, 50))


def test_the_floor_of_reading_without_tracking():
    """The majority of five cells, from the binomial: 0.6875 for bits; about 0.31 for sixteen symbols."""
    exact = sum(math.comb(5, k) * max(k, 5 - k) for k in range(6)) / 2**5 / 5
    assert shortcut(2) == pytest.approx(exact, abs=0.005)
    assert shortcut(16) == pytest.approx(0.307, abs=0.005)


@pytest.mark.parametrize("model", arms.NAMES)
def test_every_arm_reads_every_token(model):
    table = arms.config(model, Shape(depth=4), 11)
    assert table.depth == 4
    assert table.vocabulary == 11
    assert len(set(table.kinds)) == (2 if model.startswith("hybrid") else 1)


def tiny(out, models=("gated_delta", "transformer"), **more):
    setting = (Shape(width=16, depth=1, heads=1, mlp=0), Budget(6, 4, (1e-3, 1e-2), evaluations=2, tests=8))
    return TaskGrid(out, {"parity": setting}, models, 2, jobs=2, **more)


@pytest.mark.slow
def test_a_grid_runs_resumes_and_reports(tmp_path, capsys):
    from interlace.study.tasks.report import rows, sentence, write_report

    grid = tiny(tmp_path / "study", ("gated_delta",))  # a process to a cell: `test_the_verb` has two models
    results = grid.run()
    found = results["tasks"]["parity"]
    assert grid.total == 3
    assert len(list((tmp_path / "study/cells").iterdir())) == 3
    model = found["models"]["gated_delta"]
    assert len(model["scores"]["40"]) == 2
    assert [r["step"] for r in model["curves"][0]] == [3, 6]
    assert model["median"]["256"] == pytest.approx(sum(model["scores"]["256"]) / 2)
    gone = next((tmp_path / "study/cells").glob("*seed1"))
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "study/cells").glob("*/result.json")}
    (gone / "result.json").unlink()
    again = tiny(tmp_path / "study", ("gated_delta",)).run()
    redone = [p.parent for p, t in stamps.items() if p.stat().st_mtime_ns != t]
    assert redone == [gone]
    timeless = [json.loads(re.sub(r'"seconds": [^,}\]]*', '"seconds": 0', json.dumps(r))) for r in (results, again)]
    assert timeless[0] == timeless[1]
    page = write_report(tmp_path / "study", json.loads(json.dumps(results)), "interlace study tasks")
    assert "parity" in page.read_text()
    assert (tmp_path / "study/parity.png").stat().st_size > 5000
    document = json.loads((tmp_path / "study/results.json").read_text())["tasks"]["parity"]
    assert len(rows(document)) == 2
    assert sentence("parity", document).startswith("parity: ")
    with pytest.raises(RunError, match="belongs to a different run"):
        tiny(tmp_path / "study", ("gated_delta",), first_seed=1).run()


def test_a_cell_that_diverges_is_kept_and_marked(tmp_path):
    shape, budget = Shape(width=16, depth=1, heads=1, mlp=0), Budget(40, 4, tests=8)
    result = train(TaskCell("parity", "transformer", 0, 1e30, shape, budget), tmp_path)
    assert "diverged" in result["diverged"]
    assert result["solved"] is None


def test_a_cell_that_diverges_late_is_not_solved_and_its_rate_is_not_chosen(tmp_path, monkeypatch):
    steps = []

    def step(trainer, batch):
        steps.append(batch)
        if len(steps) > 4:
            raise Diverged("step 4: loss nan")
        return StepResult(0.1, 1.0, 1e-3, 0.0)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(
        "interlace.study.tasks.cell.Tests.scores", lambda self, model: dict.fromkeys(self.task.tested, 1.0)
    )
    shape, budget = Shape(width=16, depth=1, heads=1, mlp=0), Budget(8, 4, (1e-3, 1e-2), evaluations=4, tests=8)
    cell = TaskCell("parity", "transformer", 0, 1e-3, shape, budget)
    grid = TaskGrid(tmp_path, {"parity": (shape, budget)}, ("transformer",), 1)
    for rate in budget.rates:
        folder = tmp_path / "cells" / replace(cell, rate=rate).name
        folder.mkdir(parents=True)
        result = train(replace(cell, rate=rate), folder)
        steps[:] = []
    assert result["scores"][256] == 1.0
    assert result["solved"] is None
    good = tmp_path / "cells" / replace(cell, rate=1e-2).name / "result.json"
    good.write_text(json.dumps({**result, "diverged": None, "scores": dict.fromkeys(map(str, result["scores"]), 0.4)}))
    assert grid.rate("parity", "transformer") == 1e-2


@pytest.mark.slow
def test_what_a_model_file_says_is_part_of_a_study(tmp_path):
    text = '[model]\nwidth = 16\ndepth = 1\npattern = ["lstm"]\n[model.lstm]\nhidden = 8\nmlp = false\n'
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hybrid.toml").write_text(text)
    first, second = (str(tmp_path / f / "hybrid.toml") for f in ("a", "b"))
    for models in ((first, second), ("hybrid", first)):
        with pytest.raises(ConfigError, match="are both called 'hybrid' in tables; rename the file"):
            tiny(tmp_path / "none", models)
    tiny(tmp_path / "study", (first,)).run()
    (tmp_path / "a" / "hybrid.toml").write_text(text.replace("hidden = 8", "hidden = 4"))
    with pytest.raises(RunError, match=r"model_files.hybrid.model.lstm.hidden was 8 and is now 4"):
        tiny(tmp_path / "study", (first,)).run()


@pytest.mark.slow
def test_a_cell_that_fails_says_why(tmp_path, monkeypatch):
    from interlace.base.errors import Failure

    grid = tiny(tmp_path / "study")
    monkeypatch.setattr(TaskCell, "write", lambda self, folder: folder.mkdir(parents=True, exist_ok=True))
    with pytest.raises(Failure, match=r"cell parity-.*cell.json.*log.txt"):
        grid.run()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--suite or --tasks: one is required"),
        (["--suite", "quik"], "'quik' is not a suite; did you mean 'quick'"),
        (["--tasks", "paritty"], "'paritty' is not a task; did you mean 'parity'"),
        (["--tasks", "parity", "--models", "hybird"], "'hybird' is not known; did you mean 'hybrid'"),
        (["--tasks", "parity", "--models", "none.toml"], "none.toml: no such model"),
        (["--tasks", "parity", "--models", "hybrid,hybrid"], "names one twice"),
        (["--tasks", "parity", "--seeds", "0"], "seeds: must be at least 1, got 0"),
        (["--tasks", "parity", "--steps", "0"], "steps: must be at least 1, got 0"),
        (["--tasks", "parity", "--jobs", "0"], "jobs: must be at least 1, got 0"),
        (["--tasks", "parity", "--first-seed", "-1"], "first_seed: must lie from 0 to"),
        (["--tasks", "parity", "--first-seed", str(1 << 63)], "first_seed: must lie from 0 to"),
        (["--tasks", ""], "'' is not a task"),
        (["--tasks", "parity", "--models", ""], "'' is not known"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path, capsys):
    assert run(["study", "tasks", *arguments, "--out", str(tmp_path / "x")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("more", "words"), [({"models": ()}, "models: none"), ({"tasks": {}}, "tasks: none")])
def test_a_grid_of_nothing_is_refused(more, words, tmp_path):
    setting = (Shape(width=16, depth=1, heads=1, mlp=0), Budget(6, 4))
    with pytest.raises(ConfigError, match=words):
        TaskGrid(**{"out": tmp_path / "x", "tasks": {"parity": setting}, "models": ("lstm",), "seeds": 1, **more})


def test_what_a_cell_is_stays_written(tmp_path):
    """It is asked for at every look at the grid."""
    grid = tiny(tmp_path / "study")
    cell = grid.pending()[0]
    stamps = []
    for _ in range(2):
        grid.job(cell)
        stamps.append((tmp_path / "study" / "cells" / cell.name / "cell.json").stat().st_ino)
    assert stamps[0] == stamps[1]


@pytest.mark.slow
def test_the_verb(tmp_path, capsys):
    model = tmp_path / "mine.toml"
    model.write_text('[model]\nwidth = 16\ndepth = 1\npattern = ["lstm"]\n[model.lstm]\nhidden = 8\nmlp = false\n')
    out = tmp_path / "study"
    command = ["study", "tasks", "--tasks", "parity", "--models", str(model), "--seeds", "1", "--steps", "3"]
    assert run([*command, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "results.json").read_text())
    assert run([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert "chance" in printed
    assert (out / "report.html").is_file()


def test_every_suite_names_tasks_and_models_that_there_are():
    for plan in SUITES.values():
        for name in plan.tasks:
            shape, _ = plan.setting(name)
            for model in plan.models:
                arms.config(model, shape, len(TASKS[name].words))
    assert set(DEFAULTS) <= set(TASKS)


def test_the_page_of_tasks_is_current():
    spec = importlib.util.spec_from_file_location("make_tasks", DOCS / "make_tasks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "tasks.md").read_text() == module.page(), "python docs/make_tasks.py > docs/tasks.md"
