"""Identify a set of weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from interlace.base.files import sha256
from interlace.checkpoint.folder import resolve

NOT_WEIGHTS = ("training.json", "optimizer.safetensors", "checksums.json")  # files that answers do not depend on


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
