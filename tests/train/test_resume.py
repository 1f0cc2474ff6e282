"""Going on with a run: everything that is read again is checked first, and what is damaged is named."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from watching import scored

from interlace.base.errors import DataError, InterlaceError, RunError
from interlace.base.schema import validate
from interlace.checkpoint.fingerprint import fingerprint
from interlace.cli.main import run as interlace
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.runs.checkpoints import is_whole
from interlace.train.loop import train
from interlace.train.recipe import Recipe

STEPS = 12


class Stop(Exception):
    """Stands for whatever ends a process between two steps."""


def write_texts(folder, words="the quick fox {} jumps"):
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(" ".join(words.format(i * j % 17) for j in range(120)) + "\n")
    return folder


def plan_of(source):
    model = {"width": 16, "depth": 1, "vocabulary": 300, "pattern": ["attention"], "attention": {"heads": 2}}
    data = {"source": [str(source)], "tokenizer": "train:300", "length": 48, "rows": 4}
    settings = {"tokens": STEPS * 192, "evaluations": 2, "evaluation_tokens": 480, "checkpoints": 4}
    return validate(Recipe, {"model": {**model, "mlp": {"width": 24}}, "data": data, "train": settings}, "")


def go_on(plan, out, stop=STEPS):
    """(the step it began from, the folder); it is stopped after step `stop`."""
    began = []

    def watch(now):
        if now.label == "starting":
            began.append(now.done)
        if now.label == "training" and now.done == stop < STEPS:
            raise Stop

    with contextlib.suppress(Stop):
        train(plan, out, scored, watch)
    return began[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(plan, a run stopped after step 10, the weights it ends with): checkpoints are at 6 and 9."""
    folder = tmp_path_factory.mktemp("made")
    plan = plan_of(write_texts(folder / "texts"))
    go_on(plan, folder / "whole")
    go_on(plan, folder / "run", stop=10)
    return plan, folder / "run", (folder / "whole/checkpoints/step-12/model.safetensors").read_bytes()


@pytest.fixture
def stopped(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights(run):
    return (run / f"checkpoints/step-{STEPS}/model.safetensors").read_bytes()


def damage(name, change):
    def do(run):
        file = run / name
        file.write_bytes(change(file.read_bytes()))

    return do


def flip(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


def latin(raw):
    return raw[: len(raw) // 2] + b"\xe9" + raw[len(raw) // 2 + 1 :]


def line(number, text):
    """Another line `number` in metrics.jsonl."""

    def change(raw):
        lines = raw.decode().splitlines()
        lines[number - 1] = text
        return "".join(x + "\n" for x in lines).encode()

    return damage("metrics.jsonl", change)


def manifest(change):
    def of(raw):
        found = json.loads(raw)
        change(found)
        return json.dumps(found).encode()

    return damage("data/manifest.json", of)


def without(raw, name):
    """run.toml without one of its tables."""
    return re.sub(rb"(?ms)^\[%s\]\n.*?(?=^\[|\Z)" % name, b"", raw)


def borders(index, value):
    def change(raw):
        found = np.frombuffer(raw, "<i8").copy()
        found[index] = value
        return found.tobytes()

    return damage("data/train.documents", change)


DAMAGES = {
    "run.toml: not UTF-8": (damage("run.toml", latin), r"run\.toml"),
    "run.toml: empty": (damage("run.toml", lambda _: b""), r"run\.toml"),
    "run.toml: NUL": (damage("run.toml", lambda raw: bytes(len(raw))), r"run\.toml"),
    "run.toml: checked is a number": (
        damage("run.toml", lambda raw: b"checked = 5\n" + raw.partition(b"[checked]")[0]),
        r"run\.toml: checked must be a table",
    ),
    "run.toml: machine is a text": (
        damage("run.toml", lambda raw: b"machine = 'x'\n" + without(raw, b"machine")),
        r"run\.toml: machine must be a table",
    ),
    "run.toml: versions is a list": (
        damage("run.toml", lambda raw: b"versions = []\n" + without(raw, b"versions")),
        r"run\.toml: versions must be a table",
    ),
    "metrics: not UTF-8": (damage("metrics.jsonl", latin), r"metrics\.jsonl"),
    "metrics: a broken line with good ones after it": (line(5, "nope"), r"metrics\.jsonl.*5"),
    "metrics: a broken first line": (line(1, '{"step": 1, "lo'), r"metrics\.jsonl.*1"),
    "metrics: a number": (line(4, "3"), r"metrics\.jsonl.*4"),
    "metrics: a list": (line(4, "[]"), r"metrics\.jsonl.*4"),
    "metrics: null": (line(4, "null"), r"metrics\.jsonl.*4"),
    "metrics: a step that is text": (line(4, '{"step": "x"}'), r"metrics\.jsonl.*4"),
    "metrics: a step that is null": (line(4, '{"step": null}'), r"metrics\.jsonl.*4"),
    "metrics: no step": (line(4, "{}"), r"metrics\.jsonl.*4"),
    "metrics: a step twice": (line(4, '{"step": 3, "tokens": 1}'), r"metrics\.jsonl.*4"),
    "metrics: steps are missing": (
        damage("metrics.jsonl", lambda raw: b"".join(raw.splitlines(keepends=True)[4:])),
        r"metrics\.jsonl",
    ),
    "metrics: lost": (lambda run: (run / "metrics.jsonl").unlink(), r"metrics\.jsonl"),
    "manifest: no splits": (manifest(lambda m: m.pop("splits")), r"manifest\.json"),
    "manifest: splits are a list": (manifest(lambda m: m.update(splits=[])), r"manifest\.json"),
    "manifest: no train split": (manifest(lambda m: m["splits"].pop("train")), r"manifest\.json"),
    "manifest: no such dtype": (manifest(lambda m: m.update(dtype="x")), r"manifest\.json"),
    "manifest: dtype of no ids": (manifest(lambda m: m.update(dtype="float16")), r"manifest\.json"),
    "manifest: text for a number": (manifest(lambda m: m["splits"]["train"].update(documents="x")), r"manifest\.json"),
    "manifest: a file outside": (
        manifest(lambda m: m["splits"]["train"]["shards"][0].update(file="../../texts")),
        r"manifest\.json",
    ),
    "manifest: other counts": (manifest(lambda m: m["splits"]["train"].update(tokens=3)), "data"),
    "tokenizer_config: cut": (damage("data/tokenizer_config.json", lambda raw: raw[:30]), r"tokenizer_config\.json"),
    "tokenizer_config: not UTF-8": (damage("data/tokenizer_config.json", latin), r"tokenizer_config\.json"),
    "tokenizer_config: a list": (damage("data/tokenizer_config.json", lambda _: b"[]"), r"tokenizer_config\.json"),
    "tokenizer_config: no end of text": (
        damage("data/tokenizer_config.json", lambda _: b'{"eos_token": "a"}'),
        r"tokenizer",
    ),
    "borders: one byte": (damage("data/train.documents", flip), r"train\.documents"),
    "borders: negative": (borders(2, -5), r"train\.documents"),
    "borders: beyond the end": (borders(2, 10**12), r"train\.documents"),
    "borders: not rising": (borders(2, 1), r"train\.documents"),
    "borders of the held-out split": (damage("data/held_out.documents", flip), r"held_out\.documents"),
    "borders: nothing": (damage("data/held_out.documents", lambda raw: bytes(len(raw))), r"held_out\.documents"),
    "tokens: one byte": (damage("data/train-00000.tokens", flip), r"train-00000\.tokens"),
    "tokens: NUL": (damage("data/train-00000.tokens", lambda raw: bytes(len(raw))), r"train-00000\.tokens"),
    "tokens: beyond the vocabulary": (damage("data/train-00000.tokens", lambda r: b"\xff" * len(r)), r"\.tokens"),
    "held-out tokens: one byte": (damage("data/held_out-00000.tokens", flip), r"held_out-00000\.tokens"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_run_is_refused_by_the_file_s_name_and_stays_as_it_is(made, stopped, name):
    hurt, words = DAMAGES[name]
    hurt(stopped)
    before = contents(stopped)
    with pytest.raises(InterlaceError, match=words) as caught:
        go_on(made[0], stopped)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert contents(stopped) == before


@pytest.mark.parametrize(
    "tail", [lambda raw: raw[:-30], lambda raw: raw[:-60] + bytes(60), lambda raw: raw + b'{"step": 11, "to']
)
def test_the_last_line_that_a_kill_or_a_crash_cut_off_is_no_damage(made, stopped, tail):
    damage("metrics.jsonl", tail)(stopped)
    assert go_on(made[0], stopped) == 9
    assert weights(stopped) == made[2]
    steps = [json.loads(x)["step"] for x in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    "sums",
    ["{}", "[]", "3", "null", pytest.param("[" * 100_000, id="deep"), '{"config.json": "HASH"}', '{"../x": "y"}'],
)
def test_checksums_that_do_not_cover_a_checkpoint_make_it_no_whole_one(made, stopped, sums):
    newest = stopped / "checkpoints/step-9"
    known = json.loads((newest / "checksums.json").read_text())
    (newest / "checksums.json").write_text(sums.replace("HASH", known["config.json"]))
    assert not is_whole(newest)
    assert go_on(made[0], stopped) == 6
    assert weights(stopped) == made[2]


def test_a_checkpoint_under_another_step_s_name_is_not_gone_on_with(made, stopped):
    shutil.rmtree(stopped / "checkpoints/step-9")
    shutil.copytree(stopped / "checkpoints/step-6", stopped / "checkpoints/step-9")
    assert go_on(made[0], stopped) == 6
    assert weights(stopped) == made[2]


def test_a_later_checkpoint_than_the_one_gone_on_with_goes(made, stopped):
    """Else it would be taken for the newest once the log has passed it, or be written into."""
    (stopped / "checkpoints/step-9/state").mkdir()
    (stopped / "checkpoints/step-9/state/stray.safetensors").write_bytes(b"x")  # a file without a checksum
    assert not is_whole(stopped / "checkpoints/step-9")
    assert go_on(made[0], stopped, stop=7) == 6
    assert not (stopped / "checkpoints/step-9").exists()
    assert go_on(made[0], stopped) == 6
    assert weights(stopped) == made[2]
    assert not (stopped / "checkpoints/step-9/state").exists()


def test_where_no_checkpoint_is_whole_training_does_not_begin_anew_in_silence(made, stopped):
    for step in (6, 9):
        damage(f"checkpoints/step-{step}/model.safetensors", flip)(stopped)
    before = contents(stopped)
    with pytest.raises(RunError, match=r"checkpoint"):
        go_on(made[0], stopped)
    assert contents(stopped) == before


def test_a_first_checkpoint_without_its_line_is_no_damage(made, stopped):
    """Killed between a checkpoint and its line, before there was any other."""
    shutil.rmtree(stopped / "checkpoints/step-6")
    damage("metrics.jsonl", lambda raw: b"".join(raw.splitlines(keepends=True)[:8]))(stopped)
    assert go_on(made[0], stopped) == 0
    assert weights(stopped) == made[2]


@pytest.fixture
def named(tmp_path):
    """(plan, run stopped after step 10, the prepared folder that its recipe names)."""
    texts, folder = write_texts(tmp_path / "texts"), tmp_path / "tokens"
    prepare(Sources([texts]), "train:300", folder)
    plan = plan_of(folder)
    go_on(plan, tmp_path / "run", stop=10)
    return plan, tmp_path / "run", folder


def test_a_prepared_folder_with_other_text_is_not_gone_on_with(named, tmp_path):
    plan, run, folder = named
    other = write_texts(tmp_path / "other", "a slow dog {} sleeps here")
    folder.rename(tmp_path / "old")
    prepare(Sources([other]), str(tmp_path / "old/tokenizer.json"), folder)
    before = contents(run)
    with pytest.raises(InterlaceError, match=r"data") as caught:
        go_on(plan, run)
    assert str(folder) in str(caught.value)
    assert contents(run) == before


def test_the_same_text_prepared_again_is_gone_on_with(named, tmp_path):
    plan, run, folder = named
    folder.rename(tmp_path / "old")
    prepare(Sources([tmp_path / "texts"]), str(tmp_path / "old/tokenizer.json"), folder)
    assert go_on(plan, run) == 9


def test_a_flipped_byte_is_found_though_the_file_s_time_is_the_same(named):
    plan, run, folder = named
    shard = folder / "train-00000.tokens"
    before = shard.stat()
    damage("train-00000.tokens", flip)(folder)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="checksum"):
        go_on(plan, run)


def test_a_new_run_checks_its_data_as_well(named, tmp_path):
    plan, _, folder = named
    damage("train-00000.tokens", flip)(folder)
    with pytest.raises(DataError, match="checksum"):
        go_on(plan, tmp_path / "new")


def test_data_kept_in_the_run_and_replaced_is_refused(made, stopped, tmp_path):
    other = write_texts(tmp_path / "other", "a slow dog {} sleeps here")
    shutil.move(stopped / "data", tmp_path / "old")
    prepare(Sources([other]), str(tmp_path / "old/tokenizer.json"), stopped / "data")
    with pytest.raises(InterlaceError, match="data"):
        go_on(made[0], stopped)


def test_run_toml_holds_a_hash_of_the_data(stopped):
    assert re.search(r'"[0-9a-f]{64}"', (stopped / "run.toml").read_text())


def test_a_mark_of_order_before_run_toml_is_no_damage(made, stopped):
    damage("run.toml", lambda raw: b"\xef\xbb\xbf" + raw)(stopped)
    assert go_on(made[0], stopped) == 9


def test_a_run_from_before_data_were_hashed_goes_on(made, stopped):
    text = (stopped / "run.toml").read_text()
    tables = re.split(r"(?m)^(?=\[)", text)
    (stopped / "run.toml").write_text("".join(t for t in tables if not re.search(r'"[0-9a-f]{64}"', t)))
    assert go_on(made[0], stopped) == 9
    assert weights(stopped) == made[2]


def test_a_checkpoint_to_start_from_that_was_replaced_is_refused(made, tmp_path):
    """Killed before its first checkpoint, the run would otherwise begin from other weights."""
    start = tmp_path / "start"
    shutil.copytree(made[1] / "checkpoints/step-9", start)
    raw = plan_of(Path(made[0].data.source[0])).to_dict()
    raw["train"]["start"] = str(start)
    raw["data"]["tokenizer"] = str(start / "tokenizer.json")
    plan = validate(Recipe, raw, "")
    go_on(plan, tmp_path / "run", stop=2)
    shutil.rmtree(start)
    shutil.copytree(made[1] / "checkpoints/step-6", start)
    with pytest.raises(InterlaceError, match=r"train\.start"):
        go_on(plan, tmp_path / "run")


def test_a_finished_run_whose_log_is_lost_is_one_sentence(made, tmp_path, capsys):
    import tomli_w

    plan = made[0]
    go_on(plan, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "r.toml").write_text(tomli_w.dumps(plan.to_dict()))
    assert interlace(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_the_log_is_on_the_disk_before_a_checkpoint_takes_its_name(made, stopped, monkeypatch):
    """Else a machine that loses power keeps checkpoints whose lines it lost, and all of them are passed over."""
    log = (stopped / "metrics.jsonl").stat().st_ino
    events, fsync, rename = [], os.fsync, os.rename

    def sync(handle):
        events.append("log" if os.fstat(handle).st_ino == log else "other")
        fsync(handle)

    def take(old, new):
        events.append("named")
        rename(old, new)

    damage("metrics.jsonl", lambda raw: b"".join(raw.splitlines(keepends=True)[:9]))(stopped)
    log = (stopped / "metrics.jsonl").stat().st_ino
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", take)
    from interlace.runs.training import TrainingRun

    TrainingRun(stopped).write_checkpoint(10, lambda folder: (folder / "config.json").write_text("{}"))
    assert "log" in events[: events.index("named")]


def test_conversations_whose_marks_were_changed_are_refused(tmp_path):
    turns = [{"role": "user", "content": "how many foxes?"}, {"role": "assistant", "content": "seven foxes"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(40)))
    prepare(Sources([rows]), "train:300", tmp_path / "tokens")
    damage("tokens/train.learnt", lambda raw: bytes(1 - b for b in raw))(tmp_path)
    with pytest.raises(DataError, match=r"train\.learnt"):
        go_on(plan_of(tmp_path / "tokens"), tmp_path / "run")
    damage("tokens/train.learnt", lambda raw: b"\x07" * len(raw))(tmp_path)
    with pytest.raises(DataError, match=r"train\.learnt"):
        Corpus.open(tmp_path / "tokens").verify()


def test_a_local_teacher_is_known_by_its_weights_and_not_by_a_note_beside_them(stopped):
    newest = stopped / "checkpoints/step-9"
    before = fingerprint(str(newest))
    shutil.copy(stopped / "checkpoints/step-6/model.safetensors", newest / "model.safetensors")
    assert fingerprint(str(newest)) != before


@pytest.mark.parametrize("sums", ["[]", "{", "3"])
def test_a_local_teacher_is_known_without_its_checksums(stopped, sums):
    newest = stopped / "checkpoints/step-9"
    before = fingerprint(str(newest))
    (newest / "checksums.json").write_text(sums)
    assert fingerprint(str(newest)) == before
