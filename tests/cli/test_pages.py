"""Pages run as they are written: README.md, docs/train.md, docs/python.md. Links lead somewhere; pages are current."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from small import shrunk

import interlace
from interlace.base.schema import validate
from interlace.checkpoint.load import describe
from interlace.cli.main import app, run
from interlace.data.tokenizer import Tokenizer
from interlace.evaluate.task import TaskSettings
from interlace.model.config import SpecialTokens
from interlace.model.model import HybridLM
from interlace.train.recipe import (
    DataSettings,
    LoraSettings,
    ObjectiveSettings,
    ParallelSettings,
    Recipe,
    Stage,
    TrainSettings,
)

ROOT = Path(__file__).parents[2]
LINKING = sorted(
    str(page.relative_to(ROOT)) for part in ("*.md", "docs/*.md", "docs/studies/*.md") for page in ROOT.glob(part)
)
QUICK = ("recipes", "data", "train recipes/hybrid-small", "generate", "inspect", "convert-checkpoint")
SMALL = ["data.length=32", "data.rows=4", "train.tokens=1024", "train.evaluations=1", "train.evaluation_tokens=64"]


def blocks(page, language):
    """The fenced blocks of a page in one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def commands(page):
    """The lines of a page's shell blocks, without comments."""
    lines = [line.partition("   #")[0].strip() for line in "\n".join(blocks(page, "")).splitlines()]
    return [line for line in lines if line]


def verbs(page):
    """The arguments of every line that calls interlace."""
    return [shlex.split(line)[1:] for line in commands(page) if line.startswith("interlace ")]


def run_python(page):
    """Run a page's blocks of Python one after another; returns what they leave."""
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


@pytest.fixture
def hybrid(tmp_path, recipe, monkeypatch, capsys):
    """`runs/quickstart/hybrid` as quickstart leaves it, after a second's training, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(tomli_w.dumps(recipe))
    assert run(["train", "r.toml", "--out", "runs/quickstart/hybrid", "--json"]) == 0
    capsys.readouterr()


def maker(name):
    """A script of docs/ that prints a page."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page):
    """The headings of a page as links name them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", LINKING)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        file, _, anchor = link.partition("#")
        if "://" not in link:
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_readme_fits_on_a_few_screens_and_links_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 110
    pages = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if f"({page})" not in readme] == []


def test_the_map_of_rooms_is_current():
    page = maker("make_rooms").page()
    assert (ROOT / "docs/rooms.md").read_text() == page, "python docs/make_rooms.py > docs/rooms.md"


def test_the_map_shows_every_room_and_the_folders_that_it_names():
    rooms, package = maker("make_rooms"), ROOT / "src/interlace"
    shown = {room for floor in rooms.floors() for room in floor}
    assert shown == {place.parent.name for place in package.glob("*/__init__.py")}
    for room in shown:
        for paragraph in rooms.paragraphs(room):
            assert paragraph.endswith("."), room
            for name in re.findall(r"`(\w+)/`", paragraph):
                assert (package / room / name / "__init__.py").is_file(), f"{room}: {name}/"


def test_the_page_of_training_is_current():
    page = maker("make_train").page()
    assert (ROOT / "docs/train.md").read_text() == page, "python docs/make_train.py > docs/train.md"


def test_the_page_of_evaluating_is_current():
    page = maker("make_evaluate").page()
    assert (ROOT / "docs/evaluate.md").read_text() == page, "python docs/make_evaluate.py > docs/evaluate.md"


TRAINING = (DataSettings, TrainSettings, LoraSettings, ObjectiveSettings, Stage, ParallelSettings, SpecialTokens)


@pytest.mark.parametrize(
    ("schema", "page"), [*((s, "docs/train.md") for s in TRAINING), (TaskSettings, "docs/evaluate.md")]
)
def test_every_key_of_a_recipe_is_explained(schema, page):
    page = (ROOT / page).read_text()
    for own, field in schema.model_fields.items():
        key = field.alias or own
        row = re.search(rf"^\| `{key}` \| (.+) \| (.*) \| (.*) \| (.+) \|$", page, re.MULTILINE)
        assert row, key
        _, standard, unit, meaning = row.groups()
        assert len(meaning.split()) > 2, key
        assert standard == "required" or not field.is_required(), key
        assert unit or field.annotation not in (int, float) or key in ("seed", "learning_rate"), key


def test_defaults_are_written_as_toml_reads_them():
    for schema in (DataSettings, TrainSettings):
        for line in maker("make_train").rows(schema)[2:]:
            key, standard = line.split(" | ")[0].strip("| `"), line.split(" | ")[2].strip()
            if standard not in ("", "required"):
                value = tomllib.loads(f"value = {standard.strip('`')}")["value"]
                assert schema.model_fields[key].default == (tuple(value) if isinstance(value, list) else value), key


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/train.md", "docs/distill.md", "docs/finetune.md", "docs/evaluate.md", "docs/serve.md"],
)
def test_commands_are_understood(page):
    assert verbs(page)
    for arguments in verbs(page):
        app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", ["README.md", "docs/train.md", "docs/distill.md"])
def test_files_that_commands_read_are_there_or_made_before(page):
    made = {"runs/quickstart", *re.findall(r"^cp .* (\w+)$", "\n".join(commands(page)), re.MULTILINE)}
    made |= {f"{name}.toml" for name in re.findall(r"A recipe, `(\w+)\.toml`", (ROOT / page).read_text())}
    for arguments in verbs(page):
        for before, word in zip(["", *arguments], arguments, strict=False):
            path = word.partition("=")[2] or word
            if before == "--out" or (arguments[0] == "convert-checkpoint" and word == arguments[2]):
                made.add(path.rstrip("/"))
            elif re.fullmatch(r"[\w.-]+/[\w./-]*|[\w-]+\.(toml|csv|jsonl)", path):
                there = (ROOT / path).exists() or any(Path(path).is_relative_to(m) for m in made)
                assert there, f"{page}: {shlex.join(arguments)}: where does {path} come from?"
        if arguments[0] == "train":  # without --out, into runs/NAME
            made.add(f"runs/{Path(arguments[1]).stem}")


def test_what_readme_shows_runs(hybrid, capsys):
    """All but what takes minutes or asks a teacher; `docs/` holds the pages alone."""
    Path("docs").mkdir()
    for file in (ROOT / "docs").glob("*.md"):
        shutil.copy(file, "docs")
    Path("recipes").symlink_to(ROOT / "recipes")
    lines = [arguments for arguments in verbs("README.md") if shlex.join(arguments).startswith(QUICK)]
    assert len(lines) == 6
    for arguments in lines:
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)


def test_python_of_readme_runs(hybrid):
    names = run_python("README.md")
    assert names["logits"].shape == (590, names["model"].config.vocabulary)
    assert names["state"].count == 3


@pytest.mark.slow
def test_python_of_its_own_page_runs_and_learns(hybrid):
    names = run_python("docs/python.md")
    assert names["losses"][-1] < names["losses"][0] - 0.5
    assert names["same"].item() < names["losses"][0]
    assert Path("runs/own/config.json").is_file()


def test_the_page_of_python_shows_what_people_look_for():
    page = (ROOT / "docs/python.md").read_text()
    words = ("interlace.load", "HybridLM", "Segments", "state", "generate_tokens", "score_text", "backward()")
    assert [word for word in (*words, "interlace.save") if word not in page] == []


@pytest.mark.slow
def test_what_the_page_of_training_shows_runs(tmp_path, monkeypatch, capsys):
    """With a narrower model and fewer tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # `python` is this one
    first, mixture, staged, second = (tomllib.loads(block) for block in blocks("docs/train.md", "toml"))
    assert sum(one["weight"] for one in mixture["data"]["mixture"].values()) == 4
    whole = {**first, **staged, "data": {**first["data"], "source": [first["data"]["source"]]}}
    with_rope = {**whole["model"], "attention": {"heads": 4, "position": "rope"}}
    names = [name for name, _ in validate(Recipe, {**whole, "model": with_rope}, "").stages(tmp_path)]
    assert names == ["pretrain", "long"]
    first["model"] |= {"width": 32, "depth": 2, "pattern": ["gated_delta", "attention"]}
    first["data"] |= {"length": 32, "rows": 4}
    first["train"] |= {"tokens": 1024, "evaluations": 1, "evaluation_tokens": 64}
    Path("mine.toml").write_text(tomli_w.dumps(first))
    for line in commands("docs/train.md"):
        if line.startswith("interlace "):
            assert run(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
        elif not line.startswith("torchrun"):  # tests/train/test_parallel_runs.py
            subprocess.run(line, shell=True, check=True)
    made = {path.name for path in Path("runs/mine").iterdir()}
    assert {"run.toml", "metrics.jsonl", "checkpoints", "report.html", "loss.png", "samples.json"} <= made
    Path("more.toml").write_text(tomli_w.dumps(second))
    assert run(["train", "more.toml", *SMALL]) == 0, capsys.readouterr().err
    assert Path("runs/more/data/manifest.json").is_file()


def numbers(folder):
    """Sums as conversations, pairs and a task, in the files that the page on fine-tuning names."""
    sums = [(i % 9, i % 7) for i in range(48)]
    asked = [f"What is {a} plus {b}?" for a, b in sums]
    talks = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"It is {a + b}."}]}
        for q, (a, b) in zip(asked, sums, strict=True)
    ]
    pairs = [
        {"prompt": q, "chosen": f"It is {a + b}.", "rejected": "Who knows?"}
        for q, (a, b) in zip(asked, sums, strict=True)
    ]
    rows = [{"question": q, "answer": str(a + b)} for q, (a, b) in zip(asked, sums, strict=True)]
    choices = [{"question": "The capital of France is", "options": ["Paris", "Rome"], "label": 0}] * 3
    for name, some in (("talks", talks), ("pairs", pairs), ("sums", rows), ("capitals", choices)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return [m["content"] for row in talks for m in row["messages"]]


@pytest.mark.slow
def test_what_the_page_of_fine_tuning_shows_runs(tmp_path, monkeypatch, capsys):
    """On a hybrid with experts as it is released, but for small sizes and random weights."""
    monkeypatch.chdir(tmp_path)
    release = ROOT / "tests/checkpoint/releases/granite-4.0-h-small"
    texts = numbers(tmp_path)
    Path("raw").mkdir()
    config = shrunk(json.loads((release / "config.json").read_text()))
    Path("raw/config.json").write_text(json.dumps(config | {"vocab_size": 400, "eos_token_id": 0, "bos_token_id": 0}))
    _, read, _ = describe(Path("raw"))
    model = HybridLM(read.replace(depth=4))
    special = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
    model.tokenizer = Tokenizer.train(iter(texts * 4), 400, special)
    model.tokenizer.chat_template = (release / "chat_template.jinja").read_text()
    interlace.save(model, "models/base")
    assert json.loads(Path("models/base/config.json").read_text())["model_type"] == "granitemoehybrid"
    task = next(block for block in blocks("docs/evaluate.md", "toml") if "sums.jsonl" in block)
    Path("sums.toml").write_text(task)
    tune, prefer = (tomllib.loads(block) for block in blocks("docs/finetune.md", "toml"))
    for name, plan in (("tune", tune), ("prefer", prefer)):
        plan["data"] |= {"held_out": 0.2, "length": 192}
        plan["train"] |= {
            "tokens": 2048,
            "evaluations": 1,
            "evaluation_tokens": 256,
            "task_items": 4,
            "prompt_tokens": 4,
        }
        Path(f"{name}.toml").write_text(tomli_w.dumps(plan))
    for arguments in verbs("docs/finetune.md"):
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in last_step("runs/tune").iterdir()}
    assert "block_sparse_moe.experts.gate_up_proj" in (last_step("runs/tune") / "adapter_config.json").read_text()
    assert Path("runs/prefer/reference/train.jsonl").is_file()
    found = json.loads(Path("runs/base-or-tuned/results.json").read_text())
    assert found["tasks"]["sums"]["figures"]["score"]["difference"]["items"] == 48


def last_step(folder):
    return max(Path(folder, "checkpoints").iterdir(), key=lambda p: int(p.name.partition("-")[2]))


@pytest.mark.slow
def test_what_the_page_of_evaluating_shows_runs(hybrid, tmp_path, capsys):
    numbers(tmp_path)
    shutil.move("runs/quickstart/hybrid", "runs/mine")
    names = re.findall(r"`(\w+\.toml)`, over rows", (ROOT / "docs/evaluate.md").read_text())
    for name, block in zip(names, blocks("docs/evaluate.md", "toml"), strict=False):
        Path(name).write_text(block)
    for block in blocks("docs/evaluate.md", "toml")[2:]:
        validate(TaskSettings, tomllib.loads(block), "")
    for arguments in verbs("docs/evaluate.md"):
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)
    assert set(json.loads(Path("runs/scores/results.json").read_text())["tasks"]) == {"capitals", "sums"}


def test_columns_of_metrics_are_those_that_the_page_lists(hybrid):
    page = (ROOT / "docs/train.md").read_text().partition("`metrics.jsonl` has:")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", page))
    rows = [json.loads(line) for line in Path("runs/quickstart/hybrid/metrics.jsonl").read_text().splitlines()]
    written = {key for row in rows for key in row if "." not in key}  # what tables of the model have is listed once
    assert listed - written == {
        "aligned",
        "average_held_out_bits_per_byte",
        "busiest_expert",
        "chosen_nats",
        "divergence",
        "diverged",
        "held_out_losses",
        "held_out_margin",
        "held_out_wins",
        "hidden_distance",
        "margin",
        "next_token_nats",
        "preferred",
        "rejected_nats",
        "skipped",
    }
    assert written <= listed
