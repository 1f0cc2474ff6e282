"""Identify a set of weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from interlace.base.files import sha256
from interlace.checkpoint.folder import ADAPTER, ADAPTER_WEIGHTS, CONFIG, WEIGHTS, is_adapter, resolve

NOT_WEIGHTS = ("training.json", "optimizer.safetensors", "checksums.json")  # files that answers do not depend on


def weights_hash(folder: Path) -> str:
    """Return one hash of a checkpoint's config and weights; of an adapter, of the adapter's."""
    names = (ADAPTER, ADAPTER_WEIGHTS) if is_adapter(folder) else (CONFIG, *WEIGHTS)
    files = sorted({path for name in names for path in folder.glob(name)})
    written = json.dumps({path.name: sha256(path) for path in files}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def fingerprint(checkpoint: str | Path) -> str:
    """Return one hash of the files of a checkpoint that its answers depend on; notes beside them are not believed.

    Raises:
        CheckpointError: it is no checkpoint.
    """
    folder = resolve(checkpoint)
    files = [p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".jinja") and p.is_file()]
    parts = {p.relative_to(folder).as_posix(): sha256(p) for p in files if p.name not in NOT_WEIGHTS}
    written = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()[:32]
