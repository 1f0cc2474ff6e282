"""tokenizer.json files on which the library panics, aborts, eats memory or does not end: one sentence each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
from tokenizers import Tokenizer as Fast

from interlace.base.errors import InterlaceError
from interlace.data.tokenizer import Tokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "é": 4, "aé": 5}, "merges": [["a", "b"]]}
PLAIN = {"version": "1.0", "added_tokens": [], "pre_tokenizer": BYTES, "decoder": BYTES, "model": MODEL}
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}


def charsmap(text):
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


def replace(pattern, content, times=1):
    one = {"type": "Replace", "pattern": pattern, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [one] * times}}


def template(*pieces):
    pair = [{"Sequence": {"id": "A", "type_id": 0}}]
    return {"post_processor": {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": {}}}


PANICS = {  # the library ends the call with an exception that is no Exception
    "a charsmap that is null": charsmap(None),
    "a charsmap that is empty": charsmap(""),
    "a charsmap that is no base64": charsmap("!!!"),
    "a charsmap that is cut": charsmap("AAAA"),
    "a charsmap without a trie": charsmap("AAAAAAAAAAA="),
    "a charsmap that is a number": charsmap(5),
    "a prefix longer than its piece": {"model": {**MODEL, "continuing_subword_prefix": "xxxxxxxx"}},
    "an empty pattern": replace({"String": ""}, "x"),
    "an empty regular expression": replace({"Regex": ""}, "x"),
    "pieces of length 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a decoder that strips too much": {"decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 5}},
    "a normaliser that takes an added token away": {
        **replace({"String": "<x>"}, ""),
        "added_tokens": [{"id": 6, "content": "<x>", **SPECIAL}],
    },
    "a template with a token it does not define": template(
        {"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    ),
    "a template of a second text": template({"Sequence": {"id": "B", "type_id": 0}}),
}
ENDS = {  # the library ends the process, or eats memory, or does not come back
    "a prefix that cuts a letter": {"model": {**MODEL, "continuing_subword_prefix": "x", "merges": [["a", "é"]]}},
    "a charsmap of 4 GB": charsmap("/////w=="),
    "a text that grows a thousand million times": replace({"String": "a"}, "a" * 10, 9),
    "a prefix of 10 MB": {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000_000}},
    "a regular expression that does not end": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(?<x>a\\g<x>?b?)+c"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
}
DAMAGED = {
    "nothing": b"",
    "zeros": b"\0" * 100,
    "not UTF-8": b'{"version": "\xff"}',
    "a list": b"[1]",
    "an empty table": b"{}",
    "too deep": b"[" * 1_000_000,
    "NaN": b'{"model": NaN}',
    "half a surrogate": json.dumps({**PLAIN, "model": {**MODEL, "vocab": {"\ud800": 0}}}).encode(),
}


def written(tmp_path, changes):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(changes if isinstance(changes, bytes) else json.dumps({**PLAIN, **changes}).encode())
    return path


def refused(path):
    with pytest.raises(InterlaceError) as caught:
        Tokenizer.from_file(path)
    said = str(caught.value)
    assert "tokenizer.json" in said
    assert "\n" not in said
    said.encode()


def test_a_plain_one_opens(tmp_path):
    tokenizer = Tokenizer.from_file(written(tmp_path, {}))
    assert tokenizer.encode("ab") == [2]
    assert tokenizer.decode([2]) == "ab"


@pytest.mark.parametrize("name", list(PANICS))
def test_a_panic_is_one_sentence(tmp_path, name, capfd):
    refused(written(tmp_path, PANICS[name]))
    assert "panicked" not in capfd.readouterr().err  # nor does the library's own note reach the terminal


@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_damaged_file_is_one_sentence(tmp_path, name):
    refused(written(tmp_path, DAMAGED[name]))


WORDS = {"type": "WordLevel", "unk_token": "<unk>"}
VANISHES = [
    {"type": "Replace", "pattern": {"String": "x"}, "content": ""},
    {"type": "Strip", "content": " ", "start": 0, "stop": 1},
]


def words(vocabulary, decoders):
    model = {**WORDS, "vocab": {word: i for i, word in enumerate(["<unk>", *vocabulary])}}
    return {
        "model": model,
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def test_a_token_that_breaks_the_decoder_alone_is_found_when_the_file_is_opened(tmp_path):
    with pytest.raises(InterlaceError, match="fails on writing the token 'xx'"):
        Tokenizer.from_file(written(tmp_path, words(["hello", "xx", "a"], VANISHES)))
    assert Tokenizer.from_file(written(tmp_path, words(["hello", "a"], VANISHES))).decode([1]) == "hello"


USES = {
    "decode": lambda t: t.decode([2]),
    "stream": lambda t: list(t.stream([2])),
    "stream after a text": lambda t: list(t.stream([2], after=[1])),
    "byte_lengths": lambda t: t.byte_lengths(),
    "lead_bytes": lambda t: t.lead_bytes([2]),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("fused", [False, True])
def test_a_panic_of_the_decoder_is_one_sentence_wherever_it_is_used(use, fused):
    """Of a tokenizer that was made here, and was not opened by a process that may end."""
    table = words(["hello", "xx"], [VANISHES[0], {"type": "Fuse"}, VANISHES[1]] if fused else VANISHES)
    tokenizer = Tokenizer(Fast.from_str(json.dumps({"version": "1.0", "added_tokens": [], **table})), None)
    try:
        USES[use](tokenizer)
    except InterlaceError as error:
        assert "tokenizer: cannot write" in str(error)


def test_threads_ask_one_after_another(tmp_path):
    """Good files by eight threads at once: each gets its own answer."""
    paths, said = [], []
    for i in range(8):
        (tmp_path / str(i)).mkdir()
        paths.append(written(tmp_path / str(i), words([f"w{i}", *(["xx"] if i % 4 == 3 else [])], VANISHES)))

    def work(path):
        try:
            said.append(Tokenizer.from_file(path).decode([1]))
        except InterlaceError:
            said.append("refused")

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(said) == sorted(["refused" if i % 4 == 3 else f"w{i}" for i in range(8)])


SCRIPT = """
import sys
from pathlib import Path
from interlace.base.errors import InterlaceError
from interlace.data.tokenizer import Tokenizer
for path in sys.argv[1:]:
    try:
        Tokenizer.from_file(Path(path)).encode("aaaa ab")
    except InterlaceError as error:
        print(str(error).splitlines()[0])
    else:
        print("opened")
"""


@pytest.mark.slow
def test_what_ends_the_process_or_does_not_end_is_one_sentence(tmp_path):
    """In a process of its own, which must outlive them all."""
    paths = []
    for i, changes in enumerate(ENDS.values()):
        (tmp_path / str(i)).mkdir()
        paths.append(str(written(tmp_path / str(i), changes)))
    start = time.monotonic()
    command = [sys.executable, "-c", SCRIPT, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(ENDS)
    assert all("tokenizer.json" in line for line in lines), lines
    assert time.monotonic() - start < 60
