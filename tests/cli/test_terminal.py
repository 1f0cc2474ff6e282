"""What the terminal shows: help that explains, whole tables, true figures, errors that lead on."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from rich.console import Console

import interlace
from interlace.cli import output
from interlace.cli.main import app, run
from interlace.cli.reference import verbs
from interlace.data.tokenizer import Tokenizer
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.model.presets import preset
from interlace.runs.progress import Progress


def python_m(*arguments, **more):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **more)


# Help

TOP = ["quickstart", "train", "generate", "chat", "inspect", "doctor", "convert-checkpoint", "data", "study", "distill"]
INNER = {"study": ["tasks", "ladder", "fit", "report"], "data": ["prepare", "inspect"]}


@pytest.mark.parametrize("parent", ["", "study", "data", "distill"])
def test_every_verb_is_described_where_it_is_listed(parent, capsys):
    assert run([parent, "--help"] if parent else ["--help"]) == 0
    shown = capsys.readouterr().out
    listed = re.findall(r"^│ ([a-z-]+)( +\S.*)?│$", shown, re.MULTILINE)
    assert len(listed) >= len(INNER.get(parent, TOP if not parent else []))
    for name, words in listed:
        assert len(words.strip()) > 10, name


def test_what_the_list_says_is_what_the_verb_says(capsys):
    """Descriptions that are written beside the lazy imports must not drift from the docstrings."""
    assert run(["--help"]) == 0
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for name in ("quickstart", "train", "generate", "inspect", "doctor", "convert-checkpoint"):
        first = verbs()[name].__doc__.split("\n\n")[0].replace("`", "")
        assert " ".join(first.split()) in shown, name


def test_help_stays_cheap():
    code = "import sys; from interlace.cli.main import run; run(['--help']); assert 'torch' not in sys.modules"
    assert python_m("-c", code).returncode == 0


def test_the_package_is_the_program():
    found = python_m("-m", "interlace", "--version")
    assert found.returncode == 0
    assert found.stdout.strip() == interlace.__version__
    found = python_m("-m", "interlace", "bogus")
    assert found.returncode == 2
    assert found.stderr.startswith("interlace: ")
    assert "__main__" not in found.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_written_for_a_shell(shell, capsys):
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "interlace" in script
    for verb in TOP:
        assert verb in script


def test_completion_installs_nothing_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["completion", "bash"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "help_"),
    [
        (["bogus"], "interlace --help"),
        (["train"], "interlace train --help"),
        (["train", "x.toml", "--foo"], "interlace train --help"),
        (["train", "--recipe"], "interlace train --help"),
        (["quickstart", "--minutes", "soon"], "interlace quickstart --help"),
        (["study", "fit", "--bogus"], "interlace study fit --help"),
        (["distill", "status"], "interlace distill status --help"),
        (["data", "bogus"], "interlace data --help"),
        (["data", "prepare", "x", "--tokenizer", "y"], "interlace data prepare --help"),
        (["--traceback", "train"], "interlace train --help"),
        (["convert-checkpoint", "a"], "interlace convert-checkpoint --help"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_errors_lead_to_the_help_of_their_verb(arguments, help_, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert f"(see {help_})" in error
    assert error.count("\n") == 1


# Tables

WIDE = ["step", "ok", "truncated", "refused", "unparsable", "failed", "dropped", "requests", "USD"]
ROWS = [
    [
        "decontaminate_benchmarks (decontaminate) ...",
        "1,000,000",
        "12,345",
        "1,234",
        "12",
        "3",
        "456,789",
        "1,234,567",
        "1,234.56",
    ],
    ["answers (generate)", "999,999", "1", "", "", "", "", "22", "0.01"],
]


def printed(monkeypatch, width, *table, terminal=False):
    file = io.StringIO()
    monkeypatch.setattr(
        output, "out", Console(file=file, width=width, force_terminal=terminal, highlight=False, markup=False)
    )
    output.print_table(*table)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_numbers_and_words_of_a_table_are_never_cut(monkeypatch, width, terminal):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed(monkeypatch, width, "rows by step", WIDE, ROWS, terminal=terminal))
    words = shown.split()
    for cell in [*WIDE, *(c for row in ROWS for c in row)]:
        for word in cell.split():
            assert word in words, (width, word)


def test_a_pipe_gets_one_line_a_row(monkeypatch):
    shown = printed(monkeypatch, 80, "rows by step", WIDE, ROWS)
    lines = [line for line in shown.splitlines() if line.strip()]
    assert len(lines) == 2 + len(ROWS)


@pytest.mark.parametrize(("column", "text"), [("", "/a/long/path/" * 12), ("why", "word " * 40)])
def test_what_is_long_wraps_at_spaces_alone(monkeypatch, column, text):
    shown = printed(monkeypatch, 80, "t", ["a", column], [["b", text.strip()]], terminal=True)
    assert max((w for w in re.sub(r"\x1b\[[0-9;]*m", "", shown).split()), key=len) == max(text.split(), key=len)


PATH = "/a/folder/with/a-long-name" * 6


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_said_breaks_no_path_and_no_command(monkeypatch, terminal):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, highlight=False, markup=False)
    monkeypatch.setattr(output, "out", console)
    output.say(f"Report: {PATH}")
    output.say("word " * 40 + "end")
    output.say("Next: " + "a command " * 20 + "end", whole=True)
    output.print_table(f"written to {PATH}", ["a"], [["b"]])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    lines = shown.splitlines()
    assert f"Report: {PATH}" in lines
    assert f"written to {PATH}" in lines
    assert "Next: " + "a command " * 20 + "end" in lines
    assert ("word " * 40 + "end" in lines) is not terminal


def test_all_that_is_said_goes_through_one_function():
    """A line of its own would be broken in a pipe."""
    folder = Path(output.__file__).parent
    others = [p for p in folder.glob("*.py") if p.name != "output.py"]
    found = [f"{p.name}: {line.strip()}" for p in others for line in p.read_text().splitlines() if ".print(" in line]
    assert [line for line in found if not line.endswith(".print()")] == []


def test_words_begin_where_their_column_does(monkeypatch):
    rows = [["a", "some words", "12"], ["b", "other words that are longer", "3"]]
    shown = printed(monkeypatch, 80, "t", ["", "about", "rows"], rows, 2).splitlines()
    assert shown[2].index("some words") == shown[3].index("other words")
    assert shown[2].rstrip().endswith("12")
    assert shown[3].rstrip().endswith(" 3")


def test_a_document_holds_no_number_that_json_lacks(capsys):
    output.print_json({"loss": float("nan"), "all": [float("inf"), 1.5], 3: (float("-inf"),)})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "all": [None, 1.5], "3": [None]}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that takes nothing")
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_a_sentence(checkpoint, json):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-W", "ignore", "-m", "interlace", "inspect", str(checkpoint), *json]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.stderr == "interlace: standard output: cannot be written: No space left on device\n"
    assert found.returncode == 1


@pytest.mark.slow
def test_a_reader_that_has_left_is_no_fault(checkpoint):
    command = f"{sys.executable} -W ignore -m interlace inspect {checkpoint} --json; echo $? >&2"
    found = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True)
    assert found.stderr == "0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "prepare", "", "--tokenizer", "train:300", "--out", "x"],
        ["data", "prepare", "a", "", "--tokenizer", "train:300", "--out", "x"],
        ["data", "prepare", "a", "--tokenizer", "", "--out", "x"],
        ["data", "prepare", "a", "--tokenizer", "train:300", "--out", ""],
        ["data", "inspect", ""],
        ["quickstart", "--data", ""],
        ["quickstart", "--out", " "],
        ["train", ""],
        ["train", "r.toml", "--out", ""],
        ["study", "ladder", "l.toml", "--out="],
        ["study", "fit", ""],
        ["study", "report", "p.csv", "--out", ""],
        ["distill", "status", ""],
        ["distill", "export", "run", "--out", ""],
        ["generate", "", "x"],
        ["generate", "model", "x", "--weights-loss", ""],
        ["chat", ""],
        ["inspect", ""],
        ["convert-checkpoint", "", "x"],
        ["convert-checkpoint", "x", ""],
        ["recipes", "hybrid-small", "--out", ""],
    ],
    ids=" ".join,
)
def test_nothing_is_not_the_folder_here(arguments, tmp_path, monkeypatch, capsys):
    """As with a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert "must not be empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (45.3e9, "45.3 GFLOP/s"),
        (2.21e11, "221 GFLOP/s"),
        (9.99e8, "999 MFLOP/s"),
        (1.5e15, "1.5 PFLOP/s"),
        (512, "512 FLOP/s"),
    ],
)
def test_a_unit_stands_apart_from_its_number(value, shown):
    assert output.quantity(value, "FLOP/s") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(999_600, "1M"), (999.7, "1k"), (99_999, "100k"), (1e21, "1000E"), (0.4, "0"), (float("nan"), "nan")],
)
def test_counts_do_not_show_a_thousand_of_the_smaller_unit(value, shown):
    assert output.count(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(float("inf"), "unknown"), (float("nan"), "unknown"), (0.2, "under 1 s")]
)
def test_durations_without_an_end_are_words(seconds, shown):
    assert output.duration(seconds) == shown


def test_one_time_left_at_once(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(
        output, "err", Console(file=file, width=100, force_terminal=True, highlight=False, markup=False)
    )
    with output.Meter() as meter:
        meter.update(Progress("training", 5, 10, 27.5 * 60), "loss 1.0")
        meter.update(Progress("training", 6, 10, 27.4 * 60), "loss 1.0")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "min left" in shown
    assert not re.search(r"left +(-:--:--|\d+:\d\d:\d\d)", shown)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300, init_std=0.3))
    model.tokenizer = Tokenizer.train(["the quick brown fox"] * 3, 290)
    interlace.save(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("seed", range(4))
def test_generate_counts_the_tokens_it_made(checkpoint, capsys, seed):
    arguments = ["generate", str(checkpoint), "the", "--max-tokens", "50", "--temperature", "1", "--seed", str(seed)]
    model = interlace.load(checkpoint)
    made = list(
        generate_tokens(
            model, model.tokenizer.encode("the"), max_tokens=50, sampling=Sampling(temperature=1.0), seed=seed
        )
    )
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == len(made)
    assert run(arguments) == 0
    assert re.search(rf"(?m)^{len(made)} tokens, ", capsys.readouterr().err)


def test_chat_counts_the_tokens_it_made(checkpoint, capsys):
    arguments = [
        "chat",
        str(checkpoint),
        "--prompt",
        "hello",
        "--max-tokens",
        "37",
        "--temperature",
        "1",
        "--seed",
        "1",
    ]
    assert run(arguments) == 0
    assert re.search(r"(?m)^37 tokens, .* tokens/s", capsys.readouterr().err)
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 37


# What is meant


@pytest.fixture
def quickstart(checkpoint, tmp_path):
    for name in ("hybrid", "transformer"):
        step = tmp_path / "quickstart" / name / "checkpoints" / "step-20"
        step.parent.mkdir(parents=True)
        step.mkdir()
        for file in checkpoint.iterdir():
            (step / file.name).write_bytes(file.read_bytes())
    (tmp_path / "quickstart" / "run.toml").write_text(tomli_w.dumps({"quickstart": {"minutes": 4.0}}))
    return tmp_path / "quickstart"


@pytest.mark.parametrize(
    "verb",
    [
        ["generate", "RUN", "x"],
        ["chat", "RUN", "--prompt", "x"],
        ["inspect", "RUN"],
        ["convert-checkpoint", "RUN", "out"],
    ],
    ids=lambda v: v[0],
)
def test_a_folder_of_runs_names_the_models_in_it(verb, quickstart, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run([str(quickstart) if a == "RUN" else a for a in verb]) == 2
    error = capsys.readouterr().err
    assert str(quickstart / "hybrid") in error
    assert str(quickstart / "transformer") in error
    assert error.count("\n") == 1


def test_a_run_that_has_no_checkpoint_yet_says_so(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.toml").write_text("[model]\n")
    assert run(["generate", str(tmp_path / "run"), "x"]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err


def test_the_program_has_one_name():
    assert app.name[0] == "interlace"
