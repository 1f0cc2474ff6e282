"""Recognise folders whose weights are quantised by the stored tensors; the release's files name the method.

The tensors decide, because a config may speak of quantisation although its weights were made plain again, and weights
may be quantised although no config says so.

Sources of the names: huggingface/transformers src/transformers/quantizers, neuralmagic/compressed-tensors,
NVIDIA/TensorRT-Model-Optimizer, AutoGPTQ, casper-hansen/AutoAWQ, bitsandbytes-foundation/bitsandbytes, mobiusml/hqq,
ml-explore/mlx-lm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace.base.errors import CheckpointError, DataError
from interlace.base.files import read_json
from interlace.checkpoint.folder import read_config
from interlace.checkpoint.tensors import WEIGHTS, Entry

# How the tensors of each method end; the first that is found names it where no config does.
ENDINGS = {
    "bitsandbytes, 4 bits": r"\.(quant_state\.bitsandbytes__\w+|absmax|quant_map|nested_absmax|nested_quant_map)",
    "bitsandbytes, 8 bits": r"\.SCB",
    "gptq": r"\.g_idx",
    "awq or gptq": r"\.(qweight|qzeros)",
    "compressed-tensors": r"\.(weight_packed|weight_shape|weight_zero_point|weight_global_scale)",
    "fp8": r"\.(weight_scale_inv|activation_scale)",
    "modelopt": r"\.weight_scale_2",
    "fp8, one scale for each row or tensor": r"\.weight_scale",
    "mxfp4": r"_(blocks|scales)",
    "hqq": r"\.W_q",
    "torchao": r"(\.?_weight_|weight:)(qdata|scale)",
    "quanto": r"\.weight\._(data|scale)",
    "eetq": r"\.weight_scales",
    "aqlm": r"\.codebooks",
    "vptq": r"\.centroids\.weight",
    "exl2": r"\.(q_weight|q_invperm)",
    "exl3": r"\.trellis",
    "spqr": r"\.dense_weights",
}
CODES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "F8_E4M3FNUZ": "fp8", "F8_E5M2FNUZ": "fp8", "F4": "4-bit floats"}
NOTES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


def refuse_quantised(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Refuse weights that are not plain numbers, in one sentence that says how they are quantised.

    Args:
        entries: the tensors that are to be loaded; others may be quantised.

    Raises:
        CheckpointError: the stored tensors are a quantised model's.
    """
    strange = {name: entry.code for name, entry in entries.items() if entry.code not in WEIGHTS}
    if not strange:  # whatever was quantised once, weights and scales are plain numbers now
        return
    said = next((how for note in _notes(folder) if (how := _described(note))), _by_tensors(entries, strange))
    if said is not None:
        raise CheckpointError(
            f"{folder}: the weights are quantised ({said}); interlace reads plain weights: take the release that is "
            "not quantised, or dequantise it first"
        )


def _by_tensors(entries: Mapping[str, Entry], strange: Mapping[str, str]) -> str | None:
    """Return the method that the tensors' names and dtypes show; None if they show none."""
    for method, ending in ENDINGS.items():
        if any(re.search(f"{ending}$", name) for name in entries):
            return method
    codes = [code for name, code in strange.items() if name.endswith("proj.weight")]
    if "U32" in codes and any(name.endswith(".scales") for name in entries):
        return "mlx"
    return next((CODES[code] for code in codes if code in CODES), None)


def _notes(folder: Path) -> list[Any]:
    """Return what config.json and the files beside it say of quantisation."""
    config = read_config(folder)
    inner = config.get("text_config")
    tables = [config, inner if isinstance(inner, dict) else {}]
    keys = ("quantization_config", "compression_config", "quantization")
    found = [table[key] for key in keys for table in tables if table.get(key)]
    for name, method in NOTES.items():
        if (folder / name).is_file():
            try:
                note = read_json(folder / name, "a note of quantisation")
            except DataError:
                continue
            note = note.get("quantization", note) if isinstance(note, dict) else {}
            found.append({"quant_method": method, **note} if isinstance(note, dict) else {"quant_method": method})
    return found


def _described(note: Any) -> str:
    """Return "gptq, 4 bits" from a table of a config; "" if it does not say how."""
    if not isinstance(note, dict):
        return ""
    method = note.get("quant_method")
    if method is None and isinstance(note.get("group_size"), int) and isinstance(note.get("bits"), int):
        method = "mlx"
    parts = [word for word in (method, note.get("quant_algo"), note.get("format")) if isinstance(word, str)]
    if not parts:
        return ""
    bits = _bits(note)
    return ", ".join([*parts, *([f"{bits} bits"] if bits else [])])


def _bits(note: Mapping[str, Any]) -> int | None:
    """Return the bits of a weight, if a config says them in a way of its method."""
    if note.get("load_in_4bit") is True:
        return 4
    if note.get("load_in_8bit") is True:
        return 8
    candidates = [note.get("bits"), note.get("nbits")]
    for key, inner in (("config_groups", "weights"), ("quant_config", "weight_quant_params")):
        groups = note.get(key)
        tables = [*groups.values(), groups] if isinstance(groups, dict) else []
        for table in tables:
            weights = table.get(inner, table) if isinstance(table, dict) else None
            candidates += [weights.get("num_bits"), weights.get("nbits")] if isinstance(weights, dict) else []
    return next((bits for bits in candidates if isinstance(bits, int) and not isinstance(bits, bool)), None)
