"""The child process of `interlace.data.strangers`: open a stranger's tokenizer.json, and use it on hard texts.

The library behind `tokenizers` panics, aborts or does not end on some files; here that ends a process that is expected
to end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer

from interlace.base.errors import first_line

MOST_IDS = 64  # for a letter; a text that grows more is an attack
LITERALS = 500  # of a file, that are tried as texts


def answer(request: dict[str, Any]) -> bool:
    """Return True if a tokenizer.json could be opened and used; a ValueError says why not."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)  # a panic writes a report of its own
    os.close(nothing)
    try:
        fast = Tokenizer.from_str(request["tokenizer"])
    except BaseException as error:
        raise ValueError(first_line(error)) from None
    fast.no_truncation()
    fast.no_padding()
    for text in _texts(json.loads(request["tokenizer"])):
        for special in (False, True):
            try:
                ids = fast.encode(text, add_special_tokens=special).ids
                if len(ids) > MOST_IDS * (len(text) + 1):
                    raise ValueError(f"makes {len(ids):,} ids of a text of {len(text)} letters")
                fast.decode(ids, skip_special_tokens=not special)
            except ValueError:
                raise
            except Exception:  # a text that it has no token for, which is no fault of the file
                continue
            except BaseException as error:
                raise ValueError(f"fails on the text {text[:20]!r}: {first_line(error)}") from None
    _decode_each(fast)
    return True


def _decode_each(fast: Tokenizer) -> None:
    """Write every token by itself, as ids that come one by one are written."""
    for token, number in fast.get_vocab().items():
        try:
            fast.decode([number], skip_special_tokens=False)
        except Exception:  # as above
            continue
        except BaseException as error:
            raise ValueError(f"fails on writing the token {token[:20]!r}: {first_line(error)}") from None


def _texts(table: Any) -> Iterator[str]:
    """Return short texts, and all texts that a file itself names."""
    yield from ("", "a", "ab", "é", "🔥", " ", "".join(map(chr, range(256))), "a" * 200, "ab" * 100, " \n\t" * 20)
    literals = dict.fromkeys(text for text in _literals(table) if len(text) < 200)
    yield from list(literals)[:LITERALS]


def _literals(value: Any, key: str = "") -> Iterator[str]:
    if key in ("vocab", "merges"):
        return
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _literals(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _literals(inner)
