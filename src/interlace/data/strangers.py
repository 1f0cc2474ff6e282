"""Open a stranger's tokenizer.json safely, even if the library panics, aborts or does not end on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as Fast

from interlace.base.errors import DataError, first_line
from interlace.sandbox.worker import OutOfBounds, Refused, Worker

CHILD = "interlace.data.tokenizer_child"
SECONDS, MEMORY_BYTES = 30.0, 3 << 30
LARGEST_ID = 1 << 28
PANIC = "pyo3_runtime"  # the module of the exception that stands for one, which is no Exception

T = TypeVar("T")


def open_fast(raw: bytes, path: Path | str) -> Fast:
    """Return the tokenizer of a tokenizer.json.

    Raises:
        DataError: it is none, or breaks the library.
    """
    try:
        text = raw.decode("utf-8-sig")
        table = json.loads(text)
        json.dumps(table, ensure_ascii=False).encode()  # half a surrogate is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no tokenizer.json: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{path}: is no tokenizer.json: must be a table, got {type(table).__name__}")
    if not _is_plain(table):
        _try_out(text, path)
    fast = guarded(lambda: Fast.from_str(text), f"{path}: is no tokenizer.json")
    if max([*fast.get_added_tokens_decoder(), *fast.get_vocab(False).values()], default=0) > LARGEST_ID:
        raise DataError(f"{path}: holds an id beyond {LARGEST_ID:,}; the file is damaged")
    return fast


def guarded(call: Callable[[], T], what: str) -> T:
    """Return what the library makes; raise its refusal or panic as DataError."""
    try:
        return call()
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{what}: {first_line(error)}") from None
    except BaseException as error:
        if type(error).__module__ != PANIC:
            raise
        raise DataError(f"{what}: it breaks the tokenizers library ({first_line(error)})") from None


def _is_plain(table: dict[str, Any]) -> bool:
    """Return whether a file is a byte-level BPE without anything that ever broke the library, as our own files are."""
    model = table.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return False
    plain = not any(model.get(k) for k in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))
    parts = [table.get(k) for k in ("pre_tokenizer", "decoder")]
    byte_level = all(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in parts)
    return bool(plain and byte_level and not any(table.get(k) for k in ("normalizer", "post_processor")))


_tried: set[str] = set()


@cache
def _worker() -> Worker:
    return Worker(CHILD, SECONDS, MEMORY_BYTES)


def _try_out(text: str, path: Path | str) -> None:
    """Open and use the file in a process that may end; each file is tried once."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest in _tried:
        return
    try:
        _worker().ask({"tokenizer": text})
    except Refused as error:
        raise DataError(f"{path}: is no tokenizer.json: {error}") from None
    except OutOfBounds as error:
        raise DataError(f"{path}: breaks the tokenizers library: opening and trying it {error}") from None
    _tried.add(digest)
