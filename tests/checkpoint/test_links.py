"""Files of a checkpoint folder that are no files of it: links that leave it, pipes."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import interlace
from interlace.base.errors import InterlaceError
from interlace.checkpoint.convert import convert
from interlace.checkpoint.folder import resolve
from interlace.data.tokenizer import Tokenizer
from interlace.model.model import HybridLM
from interlace.model.presets import preset
from interlace.runs.checkpoints import write_checkpoint

FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]


@pytest.fixture
def folder(tmp_path):
    interlace.save(HybridLM(preset("tiny-transformer").replace(vocabulary=300)), tmp_path / "model", shard_bytes=40_000)
    Tokenizer.train(["some text"], 300).write(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "model" / "generation_config.json").write_text("{}")
    return tmp_path / "model"


def linked(folder, name, target):
    (folder / name).rename(target)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("name", [*FILES, "model.safetensors.index.json"])
@pytest.mark.parametrize("use", ["load", "convert"])
def test_a_link_that_leaves_the_folder_is_refused(folder, tmp_path, name, use):
    linked(folder, name, tmp_path / "elsewhere")
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder) if use == "load" else convert(folder, tmp_path / "out")
    assert name in str(caught.value)
    assert "leaves its folder" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_secret_is_not_taken_for_a_template(folder, tmp_path):
    (tmp_path / "secret").write_text("password")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to("../secret")
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder)
    assert "password" not in str(caught.value)


def test_a_link_through_a_linked_folder_is_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (folder / "tokenizer.json").rename(tmp_path / "other" / "tokenizer.json")
    (folder / "inner").symlink_to(tmp_path / "other")
    (folder / "tokenizer.json").symlink_to("inner/tokenizer.json")
    with pytest.raises(InterlaceError, match="leaves its folder"):
        interlace.load(folder)


def test_links_inside_the_folder_and_to_the_hubs_blobs_are_followed(folder, tmp_path):
    linked(folder, "tokenizer.json", folder / "other.json")
    assert interlace.load(folder).tokenizer is not None
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for file in folder.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert interlace.load(snapshot).tokenizer.chat_template == "{{ messages }}"
    (tmp_path / "linked").symlink_to(snapshot)
    assert interlace.load(tmp_path / "linked").tokenizer is not None


def test_a_link_to_nothing_is_said(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("nowhere")
    with pytest.raises(InterlaceError, match=r"tokenizer\.json"):
        interlace.load(folder)


@pytest.mark.parametrize("name", [*FILES, "config.json", "model.safetensors.index.json", "a shard"])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("use", ["load", "convert"])
def test_a_link_to_itself_is_said(folder, tmp_path, name, through, use):
    name = next(folder.glob("model-0*")).name if name == "a shard" else name
    (folder / name).unlink()
    (folder / name).symlink_to("other" if through else name)
    if through:
        (folder / "other").symlink_to(name)
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder) if use == "load" else convert(folder, tmp_path / "out")
    assert name in str(caught.value)


def test_a_folder_that_is_a_link_to_itself_is_said(tmp_path):
    (tmp_path / "model").symlink_to("model")
    for use in (lambda: interlace.load(tmp_path / "model"), lambda: convert(tmp_path / "model", tmp_path / "out")):
        with pytest.raises(InterlaceError, match="model"):
            use()


DIGITS = ["²", "٣", "１", "-1", ""]


@pytest.mark.parametrize("digits", DIGITS)
def test_a_step_is_numbered_in_plain_digits(folder, tmp_path, digits):
    as_step(folder, tmp_path / "run", 3)
    (tmp_path / "run" / "checkpoints" / f"step-{digits}").mkdir()
    interlace.load(tmp_path / "run")


def as_step(folder, run, step):
    """A checkpoint as a training run would write it, from a folder that holds a model."""

    def fill(made):
        shutil.copytree(folder, made, dirs_exist_ok=True)
        (made / "training.json").write_text(json.dumps({"step": step}))
        (made / "optimizer.safetensors").write_bytes(b"")

    return write_checkpoint(run, step, fill)


def test_the_newest_whole_checkpoint_of_a_run_is_loaded(folder, tmp_path):
    """As a run that goes on would take it; where none is whole, that is said."""
    run = tmp_path / "run"
    first, last = as_step(folder, run, 3), as_step(folder, run, 7)
    assert resolve(run) == last
    weights = next(last.glob("model*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"none")
    assert resolve(run) == first
    interlace.load(run)
    (first / "checksums.json").unlink()
    with pytest.raises(InterlaceError, match="none of its checkpoints is whole: step-3, step-7"):
        interlace.load(run)
    assert resolve(last) == last  # it was named


@pytest.mark.parametrize("digits", [*DIGITS, "9" * 5000])
def test_a_tokenizers_size_is_said_in_plain_digits(digits):
    from interlace.data.prepare import check_tokenizer

    with pytest.raises(InterlaceError, match="train:N"):
        check_tokenizer(f"train:{digits}")


@pytest.mark.parametrize("digits", [*DIGITS, "9" * 5000])
def test_ids_of_added_tokens_are_plain_digits(folder, digits):
    path = folder / "tokenizer_config.json"
    added = {digits: {"content": "<|endoftext|>"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": added}))
    assert interlace.load(folder).config.tokens.eos == (0,)


def test_an_added_token_that_stands_in_the_vocabulary_too_may_lie_beyond(folder):
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    size = len(table["model"]["vocab"])
    table["model"]["vocab"] |= {"<pad>": 300, "<other>": 301}
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    table["added_tokens"] += [{**token, "id": i, "content": c} for i, c in ((300, "<pad>"), (301, "<other>"))]
    path.write_text(json.dumps(table))
    assert size < 300 < interlace.load(folder).tokenizer.vocabulary
    table["added_tokens"].pop()
    path.write_text(json.dumps(table))
    with pytest.raises(InterlaceError, match="301.*300"):
        interlace.load(folder)


PIPES = ["a shard", "model.safetensors.index.json", "config.json", *FILES]


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_is_no_file(folder, name):
    """A held and filled pipe, so that a reader would not wait for it for ever."""
    name = next(folder.glob("model-0*")).name if name == "a shard" else name
    (folder / name).unlink()
    os.mkfifo(folder / name)
    held = os.open(folder / name, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(held, bytes(64))
        with pytest.raises(InterlaceError) as caught:
            interlace.load(folder)
    finally:
        os.close(held)
    assert name in str(caught.value)
    assert "regular file" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_folder_is_no_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(InterlaceError, match="regular file"):
        interlace.load(folder)


def test_a_config_nested_to_the_readers_limit_is_no_traceback(folder):
    for depth in range(900, 1000, 7):
        (folder / "config.json").write_text('{"x":' * depth + "1" + "}" * depth)
        with pytest.raises(InterlaceError):
            interlace.load(folder)
