"""The command line: exit codes, one line for what is wrong, JSON on standard output, cheap help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from interlace.cli import main
from interlace.cli.main import run
from interlace.cli.reference import reference, verbs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(recipe, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(tomli_w.dumps(recipe))
    assert run(["train", str(file), "--out", str(tmp_path / "run"), "--json"]) == 0
    return tmp_path / "run"


def test_train_generate_and_inspect(capsys, trained):
    document = json.loads(capsys.readouterr().out)
    assert document["held_out_bits_per_byte"] > 0
    assert (trained / "report.html").read_text().startswith("<!doctype html>")
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert run(["generate", str(trained), "the quick", "--max-tokens", "9", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]
    assert run(["generate", str(trained), "the quick", "--max-tokens", "9", "--seed", "1"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    text = next((trained.parent / "texts").glob("*.txt"))
    int8 = [
        "generate",
        str(trained),
        "the quick",
        "--max-tokens",
        "9",
        "--weights",
        "int8",
        "--weights-loss",
        str(text),
    ]
    assert run([*int8, "--json"]) == 0
    loss = json.loads(capsys.readouterr().out)["weights"]
    assert 0 < abs(loss["bits_per_byte_lost"]) < 0.1 * loss["bits_per_byte"]
    assert run(int8) == 0
    assert "int8 weights:" in capsys.readouterr().err
    assert run(["inspect", str(trained), "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["model"]["total"] == sum(sizes["model"]["parameters"].values())
    assert run(["inspect", str(trained)]) == 0
    assert "keys and values" in capsys.readouterr().out


def test_data_prepare_and_inspect(texts, tmp_path, capsys):
    out = tmp_path / "tokens"
    assert run(["data", "prepare", str(texts), "--tokenizer", "train:300", "--out", str(out), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["splits"]["train"]["documents"] + manifest["splits"]["held_out"]["documents"] == 12
    assert run(["data", "inspect", str(out)]) == 0
    assert "checksums good" in capsys.readouterr().out


def test_dry_run_runs_nothing(recipe, tmp_path, capsys):
    file = tmp_path / "r.toml"
    file.write_text(tomli_w.dumps(recipe))
    assert run(["train", str(file), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert run(["train", str(file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "bogus"),
        (["train", "nowhere.toml"], "no such recipe"),
        (["train"], "recipe"),
        (["train", "x.toml", "--foo"], "--foo"),
        (["generate", "nowhere/at/all", "x"], "no such folder"),
        (["inspect", "/"], "config.json"),
        (["data", "prepare", "--tokenizer", "train:300", "--out", "x"], "SOURCE"),
        (["data", "inspect", "/"], "manifest"),
        (["quickstart", "--minutes", "0"], "minutes"),
        (["quickstart", "--minutes", "soon"], "soon"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_doctor_checks_every_operator(capsys, monkeypatch):
    from interlace.ops import selftest

    monkeypatch.setattr(selftest, "LENGTHS", {"short": [3, 70]})
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["good"]
    assert document["machine"]["cage for programs"].startswith("closes, Landlock's level") or sys.platform != "linux"
    assert {f["operator"] for f in document["findings"]} == set(selftest.OPERATORS)
    monkeypatch.setitem(selftest.TOLERANCE, __import__("torch").float32, 1e-12)
    assert run(["doctor"]) == 1
    assert "Do not trust" in capsys.readouterr().out


@pytest.mark.slow
def test_no_verb_imports_what_it_does_not_need(recipe, tmp_path):
    """torch's compiler takes two seconds, scipy one, sympy half a one: every verb that touches them would pay."""
    file, out, prompt = tmp_path / "r.toml", str(tmp_path / "run"), ["the quick", "--max-tokens", "2"]
    file.write_text(tomli_w.dumps(recipe))
    verbs = [["train", str(file), "--out", out], ["generate", out, *prompt], ["inspect", out]]
    verbs.append(["evaluate", out, "--data", recipe["data"]["source"][0], "--out", str(tmp_path / "found")])
    code = "import json, sys; from interlace.cli.main import run; assert not any(map(run, json.loads(sys.argv[1])))"
    code += "; print(*{'torch._dynamo', 'scipy', 'sympy', 'torch.distributed.fsdp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(verbs)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_help_is_cheap_and_import_is_cheaper():
    code = "import sys, interlace; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - start < 2.0  # half a second on a quiet machine, where CI may not run
    code = "import sys; from interlace.cli.main import run; run(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_reference_is_current():
    """docs/cli.md is what `python -m interlace.cli.reference` prints."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference()


def listed(capsys, *group):
    """The verbs that a help text lists."""
    assert run([*group, "--help"]) == 0
    return re.findall(r"^│ ([a-z][a-z-]*) ", capsys.readouterr().out, re.MULTILINE)


def test_the_reference_holds_every_verb(capsys):
    """Whatever the help texts list is a section of docs/cli.md, and nothing else is."""
    found = set()
    for name in listed(capsys):
        inner = listed(capsys, name) if name in main.GROUPS else []
        found |= {f"{name} {verb}" for verb in inner} or {name}
    sections = re.findall(r"^## interlace (.+)$", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(sections) == found
    assert {"chat", "distill generate", "study ladder", "data prepare"} <= found


def test_every_verb_has_an_example():
    text = reference()
    for verb in verbs():
        section = text.split(f"## interlace {verb}\n")[1].split("\n## ")[0]
        assert "Example" in section, verb
        assert f"interlace {verb}" in section.split("Example")[1], verb


def test_public_names():
    import interlace

    for name in interlace.__all__:
        assert getattr(interlace, name) is not None
    assert interlace.ops.gated_delta
    assert interlace.ops.short_convolution
    assert interlace.ops.attention
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        interlace.nonsense  # noqa: B018
