"""The page of a run says what was run, of what size, with what, where, and what it writes."""

from __future__ import annotations

import html
import platform
import re
import shutil
import tomllib

import pytest
import tomli_w
from small import recipe_of, texts_in
from watching import at, scored

import interlace
from interlace.base.errors import InterlaceError
from interlace.base.schema import validate
from interlace.cli.main import run as command
from interlace.model.sizes import sizes
from interlace.runs.training import TrainingRun
from interlace.train.loop import train
from interlace.train.recipe import Recipe
from interlace.train.report import write_report


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, trained by the command; each test gets a copy."""
    folder = tmp_path_factory.mktemp("trained")
    file = folder / "small & plain.toml"
    file.write_text(tomli_w.dumps(recipe_of(texts_in(folder / "texts"))))
    assert command(["train", str(file), "train.learning_rate=3e-3", "--out", str(folder / "run"), "--json"]) == 0
    return folder / "run"


@pytest.fixture
def done(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def page_of(folder):
    return html.unescape((folder / "report.html").read_text())


def test_the_page_says_what_was_run(done, recipe):
    page = page_of(done)
    size = sizes(interlace.load(done).config, ())
    assert f"{size.total:,}" in page
    assert f"{size.non_embedding:,}" in page
    written = tomllib.loads(re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)[-1])
    written.pop("versions", None)
    written.pop("machine", None)
    assert validate(Recipe, written, "").train.learning_rate == 3e-3
    assert "interlace train" in page  # the command that goes on with it, or does it again


def test_the_page_says_with_what_and_where(done):
    page = page_of(done)
    for version in (interlace.__version__, platform.python_version(), platform.machine()):
        assert version in page
    assert re.search(r"\d+ (of \d+ )?(threads|cores)", page) or "threads" in page
    assert "native" in page  # whether the kernels were there
    assert re.search(r"(float32|bfloat16)", page)  # what "auto" became


def test_the_machine_is_that_of_the_training_and_not_of_the_page(done, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "9.9.9")
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    write_report(TrainingRun(done))
    assert "9.9.9" not in page_of(done)
    assert "abacus" not in page_of(done)


def test_the_page_leads_with_the_result(done):
    page = page_of(done)
    last = [m for m in TrainingRun(done).metrics() if "held_out_bits_per_byte" in m][-1]
    lead = re.search(r'class="lead">(.*?)</p>', page, re.DOTALL)[1]
    assert f"{last['held_out_bits_per_byte']:.3f}" in lead
    assert f"{last['tokens']:,}" in lead
    assert "tokens/s" in page


def test_the_page_shows_what_the_model_writes(done):
    page = (done / "report.html").read_text()
    samples = re.search(r"<h2>Samples</h2>(.*?)(<h2>|</body>)", page, re.DOTALL)[1]
    assert re.search(r"<pre>.*\w.*</pre>", samples, re.DOTALL)
    again = write_report(TrainingRun(done)).read_text()
    assert samples in again  # the same each time


def test_the_page_tells_the_text(done):
    page = page_of(done)
    manifest = next((done / "data").glob("*.json")).read_text()
    assert "documents" in page
    assert "held out" in page
    assert "tokenizer" in page
    assert manifest


def test_what_a_model_writes_is_shown_and_not_run(recipe, tmp_path, monkeypatch):
    from interlace.evaluate import training

    monkeypatch.setattr(training, "generate", lambda *a, **k: iter(["<script>", "alert(1)</script>"]))
    file = tmp_path / "r.toml"
    file.write_text(tomli_w.dumps(recipe))
    assert command(["train", str(file), "--out", str(tmp_path / "run"), "--json"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("rate", [1e9, 1e30])
def test_a_run_that_diverged_has_a_page_that_says_so(rate, recipe, tmp_path):
    recipe["train"] |= {"learning_rate": rate, "clip": 1e30, "warmup": 0.0}
    file = tmp_path / "r.toml"
    file.write_text(tomli_w.dumps(recipe))
    assert command(["train", str(file), "--out", str(tmp_path / "run")]) == 1
    page = page_of(tmp_path / "run")
    assert "diverged" in page


def test_a_run_without_a_score_has_a_page(recipe, tmp_path):
    plan = validate(Recipe, recipe, "")

    class Stopped(Exception):
        pass

    def stop(_):
        raise Stopped

    with pytest.raises(Stopped):
        train(plan, tmp_path / "run", scored, at("training", stop))
    assert write_report(TrainingRun(tmp_path / "run")).is_file()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("run.toml", b"[3]\n"),
        ("run.toml", b"\xff"),
        ("samples.json", b"3"),
        ("samples.json", b'[{"prompt": "a"}]'),
        ("data/manifest.json", b"{}"),
        ("data/manifest.json", b"["),
    ],
)
def test_a_page_of_a_damaged_run_names_the_file(done, name, raw):
    (done / name).write_bytes(raw)
    with pytest.raises(InterlaceError, match=name.replace(".", r"\.")):
        write_report(TrainingRun(done))


@pytest.mark.parametrize(
    "line", ['{"step": 3, "loss": 1.0}', '{"step": 3, "tokens": "x", "loss": 1}', '{"step": 3, "tokens": 5}']
)
def test_a_page_shows_a_log_up_to_a_line_that_no_run_wrote(done, line):
    good = (done / "metrics.jsonl").read_text().splitlines()[:2]
    (done / "metrics.jsonl").write_text("\n".join([*good, line, ""]))
    write_report(TrainingRun(done))
    assert "(2 steps" in page_of(done)
