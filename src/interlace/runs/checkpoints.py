"""The checkpoints of a run: folders checkpoints/step-N that are whole or absent, and which of them is the newest."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interlace.base.files import new_folder, sha256

FOLDER, SUMS = "checkpoints", "checksums.json"
KEPT = 2  # checkpoints
NEEDED = "training.json"
KINDS = (  # of a checkpoint, by the files that it has: of one worker, of adapters alone, of several workers
    (r"config\.json", r"model.*\.safetensors", r"optimizer\.safetensors"),
    (r"adapter_config\.json", r"adapter_model\.safetensors", r"optimizer\.safetensors"),
    (r"config\.json", r"state/.+\.safetensors"),
    (r"adapter_config\.json", r"adapter_model\.safetensors", r"state/.+\.safetensors"),
)

_checked: dict[Path, tuple[object, bool]] = {}  # what was found, until a file changes: hashing reads every byte


def step_of(checkpoint: Path) -> int | None:
    """Return N of a folder named step-N; None for another name."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isascii() and number.isdigit() else None


def step_folders(run: Path) -> list[Path]:
    """The folders step-N of a run, oldest first."""
    found = [p for p in (run / FOLDER).glob("step-*") if step_of(p) is not None]
    return sorted(found, key=lambda p: step_of(p) or 0)


def newest_whole(checkpoints: Sequence[Path]) -> Path | None:
    """Return the last whole one of these checkpoints, oldest first; None if none is whole.

    Resuming and loading both follow this one rule.
    """
    return next((path for path in reversed(checkpoints) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint's files are those it was written with, and of the step that its name says."""
    try:
        files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
        stamp = [(p, (s := p.stat()).st_size, s.st_mtime_ns, s.st_ino) for p in files]
    except OSError:
        return False
    known = _checked.get(checkpoint)
    if known is None or known[0] != stamp:
        known = _checked[checkpoint] = (stamp, _matches(checkpoint))
    return known[1]


def _matches(checkpoint: Path) -> bool:
    try:
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
        if not isinstance(sums, dict) or NEEDED not in sums:
            return False
        if not any(all(any(re.fullmatch(k, name) for name in sums) for k in kinds) for kinds in KINDS):
            return False
        if sums.keys() | {SUMS} != {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}:
            return False
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in sums):
            return False
        if json.loads((checkpoint / NEEDED).read_text(encoding="utf-8"))["step"] != step_of(checkpoint):
            return False
        return _hashes(checkpoint, list(sums)) == sums
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return False


def write_checkpoint(run: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Have `fill(folder)` write a checkpoint; older ones but the last KEPT go once it is whole.

    Raises:
        Failure: the disk refuses; earlier checkpoints stay.
    """
    path = checkpoint_path(run, step)
    with new_folder(path) as folder:
        fill(folder)
        write_sums(folder)
    drop_old(run)
    return path


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return run / FOLDER / f"step-{step}"


def write_sums(folder: Path) -> None:
    """Write the checksums of all files of a checkpoint into it."""
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    (folder / SUMS).write_text(json.dumps(_hashes(folder, names), indent=2) + "\n", encoding="utf-8")


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the hashes of files by name; several are read at a time."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256(folder / name), names), strict=True))


def drop_old(run: Path) -> None:
    """Remove all checkpoints but the last KEPT, and those that adapters stand beside."""
    for old in step_folders(run)[:-KEPT]:
        if not _mark(old).exists():
            shutil.rmtree(old)


def keep(checkpoint: Path) -> None:
    """Have a checkpoint of a run stay, whatever the run does later: something stands on it."""
    if step_of(checkpoint) is not None and checkpoint.parent.name == FOLDER and os.access(checkpoint.parent, os.W_OK):
        _mark(checkpoint).touch()


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.kept")
