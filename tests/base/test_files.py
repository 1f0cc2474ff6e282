"""Files that are written appear whole or not at all; configs are closed; texts and digests are the same everywhere."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import Field

from interlace.base.errors import ConfigError, DataError, Failure
from interlace.base.files import PARTIAL, new_folder, read_json, sha256, write_file
from interlace.base.schema import Closed, apply_override, read_toml, validate
from interlace.base.text import canonical, clean, clean_values, digest, finite, text_of


def left(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_a_file_is_replaced_in_one_step(tmp_path):
    file = tmp_path / "a.txt"
    write_file(file, "one")
    write_file(file, b"two")
    assert file.read_text() == "two"
    assert left(tmp_path) == ["a.txt"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(Failure, match="cannot be written"):
        write_file(tmp_path / "a", "over a folder")
    assert left(tmp_path) == ["a"]


def test_a_folder_that_is_not_filled_is_not_there(tmp_path):
    def broken():
        with new_folder(tmp_path / "made") as folder:
            (folder / "part").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert left(tmp_path) == []


def test_a_folder_replaces_its_own_files_and_no_others(tmp_path):
    for content in ("old", "new"):
        with new_folder(tmp_path / "made", stale=("shard-*",)) as folder:
            (folder / "a").write_text(content)
            (folder / f"shard-{content}").write_text(content)
        (tmp_path / "made" / "mine").touch()
    assert left(tmp_path / "made") == ["a", "mine", "shard-new"]
    assert (tmp_path / "made" / "a").read_text() == "new"
    assert not list(tmp_path.glob(f"*{PARTIAL}"))


def test_json_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match="the table is missing"):
        read_json(tmp_path / "no.json", "the table")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="the table cannot be read"):
        read_json(tmp_path / "a.json", "the table")
    (tmp_path / "b.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "b.json", "the table") == {"a": 1}
    (tmp_path / "c").write_bytes(b"abc" * 1_000_000)
    assert sha256(tmp_path / "c") == sha256(tmp_path / "c")
    assert len(sha256(tmp_path / "c")) == 64


class Inner(Closed):
    rate: float = Field(default=1.0, gt=0)


class Table(Closed):
    name: str
    size: int = Field(default=1, ge=1)
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "a", "siez": 1}, "t.siez: unknown key; did you mean 'size'"),
        ({"name": "a", "inner": {"rat": 1}}, "t.inner.rat: unknown key; did you mean 'rate'"),
        ({}, "t.name: required, and not given"),
        ({"name": "a", "size": 0}, "t.size: input should be greater than or equal to 1, got 0"),
        ({"name": "a", "size": 1.5}, "t.size: "),
        ({"name": 3}, "t.name: "),
        ({"name": "a", "inner": {"rate": math.nan}}, "t.inner.rate: "),
        ({"name": "a", "inner": {"rate": math.inf}}, "t.inner.rate: "),
    ],
    ids=str,
)
def test_a_config_is_closed_and_says_what_is_wrong(given: dict[str, Any], words):
    with pytest.raises(ConfigError) as caught:
        validate(Table, given, "t")
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_overrides_are_laid_over_a_file(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('name = "a"\n[inner]\nrate = 2.0\n')
    data = read_toml(file, "table", ["inner.rate=0.5", "size=3", "name=word"])
    found = validate(Table, data, "t")
    assert (found.name, found.size, found.inner.rate) == ("word", 3, 0.5)
    for bad in ("size", "=3", "name.deeper=1"):
        with pytest.raises(ConfigError, match="override"):
            apply_override({"name": "a"}, bad)
    for broken, words in (("no.toml", "no such table"), ("", "is a folder")):
        with pytest.raises(ConfigError, match=words):
            read_toml(tmp_path / broken, "table")


def test_digests_depend_on_values_alone():
    assert digest({"a": 1, "b": ["é", None]}) == digest({"b": ["é", None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert json.loads(canonical({"b": "é", "a": [1]})) == {"a": [1], "b": "é"}
    assert canonical({"b": "é", "a": [1]}) == '{"a":[1],"b":"\\u00e9"}'


def test_texts_hold_what_every_encoding_knows():
    assert clean("a\ud800b") == "a\ufffdb"
    assert clean("\ud83d\ude00") == "😀"  # two halves that belong together
    assert clean_values({"\udc00": ["\ud800", 1, None]}) == {"\ufffd": ["\ufffd", 1, None]}
    assert finite({"a": [math.nan, 1.0, -math.inf], 2: (3,)}) == {"a": [None, 1.0, None], "2": [3]}
    assert [text_of(x) for x in ("a", None, 3, {"b": "é"})] == ["a", "", "3", '{"b": "é"}']
