"""What lies beside a tokenizer.json: no link may lead away, and a model's configs may name the end of text."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import interlace
from interlace.base.errors import DataError, InterlaceError
from interlace.data.chat import DEFAULT
from interlace.data.prepare import check_tokenizer, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.model.presets import preset

END = "</s>"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    Tokenizer.train(["the quick brown fox " * 9], 300, ["<|im_end|>"]).write(tmp_path / "model")
    return tmp_path / "model"


def link(folder, name, target, text="PRIVATE"):
    """A link in the place of a file, to one that is there."""
    if not target.exists():
        target.write_bytes((folder / name).read_bytes() if (folder / name).exists() else text.encode())
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(os.path.relpath(target, (folder / name).parent))


NAMES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "additional_chat_templates/rag.jinja",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_link_that_leaves_the_folder_is_refused_and_nothing_is_written(folder, texts, tmp_path, name):
    link(folder, name, tmp_path / "private")
    for use in (check_tokenizer, lambda spec: prepare(Sources([texts]), spec, tmp_path / "out")):
        with pytest.raises(DataError, match="leaves its folder") as caught:
            use(str(folder / "tokenizer.json"))
        assert name in str(caught.value)
        assert "PRIVATE" not in str(caught.value)
    with pytest.raises(DataError, match="leaves its folder"):
        Tokenizer.from_folder(folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_is_a_link_to_elsewhere_is_not_read_for_its_end(folder, tmp_path, name):
    (folder / "tokenizer_config.json").write_text("{}")
    link(folder, name, tmp_path / "private", '{"eos_token_id": 1}')
    with pytest.raises(DataError, match=rf"{name}.* leaves its folder"):
        Tokenizer.from_file(folder / "tokenizer.json")


def test_a_link_in_a_prepared_folder_is_refused(folder, texts, tmp_path):
    prepare(Sources([texts]), str(folder / "tokenizer.json"), tmp_path / "out")
    link(tmp_path / "out", "chat_template.jinja", tmp_path / "private")
    with pytest.raises(DataError, match="leaves its folder"):
        Corpus.open(tmp_path / "out")


def test_links_inside_the_folder_and_to_the_hubs_blobs_are_followed(folder, tmp_path):
    link(folder, "tokenizer_config.json", folder / "other.json")
    assert Tokenizer.from_file(folder / "tokenizer.json").eos == 0
    home = tmp_path / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots/0f").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, home / "blobs" / name)
        (home / "snapshots/0f" / name).symlink_to(f"../../blobs/{name}")
    assert Tokenizer.from_file(home / "snapshots/0f/tokenizer.json").eos == 0


@pytest.mark.parametrize("use", ["tokenizer", "load"])
def test_a_link_that_leads_to_itself_is_one_sentence(folder, use):
    interlace.save(HybridLM(preset("tiny-transformer").replace(vocabulary=300)), folder.parent / "loop")
    for file in folder.iterdir():
        shutil.copy(file, folder.parent / "loop")
    (folder.parent / "loop/chat_template.jinja").symlink_to("chat_template.jinja")
    with pytest.raises(InterlaceError, match=r"chat_template\.jinja: .*itself"):
        if use == "load":
            interlace.load(folder.parent / "loop")
        else:
            Tokenizer.from_file(folder.parent / "loop/tokenizer.json")


@pytest.mark.parametrize("name", ["chat_template.jinja", "vocab.txt"])
def test_a_pipe_or_a_folder_is_no_file(folder, name):
    os.mkfifo(folder / name) if name.endswith("jinja") else (folder / name).mkdir()
    with pytest.raises(DataError, match=f"{name}: is not a regular file"):
        Tokenizer.from_file(folder / "tokenizer.json")


# --- the end of text ---------------------------------------------------------------------------------------------


@pytest.fixture
def endless(folder):
    """Its own files name no end, and it has no token that is known as one."""
    raw = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(raw.replace("<|endoftext|>", END), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("configs", "eos"),
    [
        ({"generation_config.json": {"eos_token_id": 0}}, 0),
        ({"config.json": {"eos_token_id": 0}}, 0),
        ({"config.json": {"text_config": {"eos_token_id": 1}, "eos_token_id": 0}}, 1),
        ({"config.json": {"eos_token_id": None}, "generation_config.json": {"eos_token_id": [1, 0]}}, 1),
        ({"config.json": {"eos_token_id": 0}, "generation_config.json": {"eos_token_id": [1]}}, 0),
        ({"config.json": {"eos_token_id": -1}, "generation_config.json": {"eos_token_id": [100_000, 0]}}, 0),
        ({"config.json": {}, "generation_config.json": {}}, None),
    ],
)
def test_an_end_that_a_model_s_config_names_ends_documents(endless, texts, configs, eos):
    for name, table in configs.items():
        (endless / name).write_text(json.dumps(table))
    out = endless.parent / "out"
    manifest = prepare(Sources([texts]), str(endless / "tokenizer.json"), out)
    assert manifest["tokenizer"]["eos"] == eos
    corpus = Corpus.open(out)  # which has the tokenizer's files, and not the model's
    assert corpus.tokenizer.eos == eos
    split = corpus.splits["train"]
    ends = [int(split.read(int(b) - 1, int(b))[0]) for b in split.borders[1:]]
    assert set(ends) == {eos} if eos is not None else 0 not in ends


def test_the_tokenizer_s_own_files_come_first(folder):
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    assert Tokenizer.from_file(folder / "tokenizer.json").eos == 0
    (folder / "tokenizer_config.json").write_text("{}")  # now <|endoftext|> is only guessed
    assert Tokenizer.from_file(folder / "tokenizer.json").eos == 1


@pytest.mark.parametrize("table", [{"eos_token_id": "0"}, {"eos_token_id": [True]}, {"eos_token_id": 0.5}, []])
def test_a_config_with_no_id_for_its_end_is_named(endless, table):
    (endless / "config.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"config\.json"):
        Tokenizer.from_file(endless / "tokenizer.json")


def test_documents_that_get_no_end_are_said(endless, texts, tmp_path, caplog):
    prepare(Sources([texts]), str(endless / "tokenizer.json"), tmp_path / "out")
    assert "names no end of text" in caplog.text
    caplog.clear()
    prepare(Sources([texts]), "train:300", tmp_path / "two")
    assert not caplog.text


@pytest.mark.parametrize("special", [None, {"eos_token": "<|im_end|>"}, {"eos_token": {"content": "<|endoftext|>"}}])
def test_an_end_that_was_taken_away_does_not_come_back(folder, tmp_path, special):
    if special is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "x"}))
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    tokenizer.eos = None
    (tmp_path / "saved").mkdir()
    tokenizer.write(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_text('{"eos_token_id": 0}')
    again = Tokenizer.from_file(tmp_path / "saved/tokenizer.json")
    assert again.eos is None
    if special is not None:
        assert json.loads((tmp_path / "saved/special_tokens_map.json").read_text())["pad_token"] == "x"
    again.eos = 1
    again.write(tmp_path / "saved")
    assert Tokenizer.from_file(tmp_path / "saved/tokenizer.json").eos == 1


def test_another_template_changes_no_end(folder, tmp_path):
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    tokenizer.chat_template = DEFAULT
    (tmp_path / "saved").mkdir()
    tokenizer.write(tmp_path / "saved")
    assert (tmp_path / "saved/special_tokens_map.json").read_text() == '{"eos_token": "<|im_end|>"}'
