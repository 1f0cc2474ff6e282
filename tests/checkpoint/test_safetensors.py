"""Our reader of safetensors and the library: what one refuses, the other does."""

from __future__ import annotations

import json

import pytest
from safetensors import SafetensorError, safe_open

from interlace.base.errors import CheckpointError
from interlace.checkpoint.tensors import read_header


def entry(shape, start, stop, dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop], **more}


def written(path, header, size=0):
    """A file of this header, as text or as a table, and so many zeros."""
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    raw = json.dumps(raw).encode() if isinstance(raw, dict) else raw
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))
    return path


ONE = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWO = '"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'
REFUSED = {
    "overlap": ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, 8, ["'b'"]),
    "the same bytes twice": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8, []),
    "a hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12, ["'b'"]),
    "a hole at the start": ({"a": entry([1], 4, 8)}, 8, ["'a'"]),
    "bytes after the last tensor": ({"a": entry([1], 0, 4)}, 8, ["4"]),
    "bytes and no tensor": ({}, 8, []),
    "an empty tensor that floats": ({"z": entry([0], 2, 2), "b": entry([1], 0, 4)}, 4, ["'z'"]),
    "one name twice": (f"{{{ONE},{TWO}}}", 8, ["'a'"]),
    "one key of an entry twice": ('{"a":{"dtype":"F64","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, ["dtype"]),
    "metadata twice": ('{"__metadata__":{"x":"y"},"__metadata__":{},' + ONE + "}", 4, ["__metadata__"]),
    "metadata of numbers": ({"__metadata__": {"x": 1}, "a": entry([1], 0, 4)}, 4, ["__metadata__"]),
    "metadata of tables": ({"__metadata__": {"x": {}}, "a": entry([1], 0, 4)}, 4, ["__metadata__"]),
    "metadata is a list": ({"__metadata__": [], "a": entry([1], 0, 4)}, 4, ["__metadata__"]),
    "a shape of booleans": ({"a": entry([True], 0, 4)}, 4, ["'a'"]),
    "an offset that is a boolean": ({"a": entry([1], False, 4)}, 4, ["'a'"]),
    "a shape that is a table": ({"a": entry({}, 0, 4)}, 4, ["'a'"]),
    "sizes past 64 bits": ({"a": entry([2**33, 2**33, 0], 0, 0)}, 0, ["'a'"]),
    "a size of 2**64": ({"a": entry([2**64, 0], 0, 0)}, 0, ["'a'"]),
    "a byte-order mark": ("\ufeff{" + ONE + "}", 4, ["JSON"]),
    "UTF-16": (("{" + ONE + "}").encode("utf-16-le"), 4, ["JSON"]),
    "half a surrogate": ('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4, []),
    "NaN": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":NaN}}', 4, []),
    "a dtype that nobody knows": ({"a": entry([1], 0, 4, "F99")}, 4, ["F99"]),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_both_refuse(tmp_path, name):
    header, size, words = REFUSED[name]
    path = written(tmp_path / "model.safetensors", header, size)
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert all(word in str(caught.value) for word in ["model.safetensors", *words])
    str(caught.value).encode()  # can be printed


OPENED = {
    "no tensor": ({}, 0),
    "no tensor, some metadata": ({"__metadata__": {"format": "pt"}}, 0),
    "no metadata": ({"__metadata__": None, "a": entry([1], 0, 4)}, 4),
    "another order": ({"b": entry([1], 4, 8), "a": entry([1], 0, 4)}, 8),
    "empty tensors": ({"a": entry([1], 0, 4), "z": entry([3, 0], 4, 4), "b": entry([1], 4, 8)}, 8),
    "a scalar": ({"a": entry([], 0, 4)}, 4),
    "odd places": ({"a": entry([1], 0, 1, "U8"), "b": entry([1], 1, 5)}, 5),
    "other keys": ({"a": entry([1], 0, 4, more=1)}, 4),
    "spaces around": (" {" + ONE + "}   ", 4),
    **{f"{d}": ({"a": entry([8], 0, 8 * n, d)}, 8 * n) for d, n in (("BOOL", 1), ("I8", 1), ("I16", 2), ("U64", 8))},
    **{f"{d}": ({"a": entry([8], 0, n, d)}, n) for d, n in (("F8_E4M3", 8), ("F8_E8M0", 8), ("F4", 4), ("F6_E2M3", 6))},
}


@pytest.mark.parametrize("name", list(OPENED))
def test_both_open(tmp_path, name):
    path = written(tmp_path / "model.safetensors", *OPENED[name])
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(read_header(path))
