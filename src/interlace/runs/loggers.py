"""Hand the rows of metrics.jsonl on to a logger that people have installed: wandb, tensorboard or trackio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, Failure, first_line, nearest

Row = Mapping[str, Any]
Log = Callable[[Row], None]
PACKAGES = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard", "trackio": "trackio"}


def open_logger(kind: str, run: Path, config: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    """Return what takes a row of a run, and what ends the log.

    Raises:
        ConfigError: there is no such logger, or it is not installed.
        Failure: it refuses to begin.
    """
    if kind not in PACKAGES:
        raise ConfigError(f"--log: there is no logger '{kind}'; {nearest(kind, PACKAGES)}")
    try:
        package = import_module(PACKAGES[kind])
    except ImportError:
        raise ConfigError(f"--log: {kind} is not installed; install it with: pip install {kind}") from None
    try:
        return _tensorboard(package, run) if kind == "tensorboard" else _like_wandb(package, run, config)
    except Exception as error:
        raise Failure(f"--log {kind}: cannot begin: {first_line(error)}") from error


def numbers(row: Row) -> dict[str, float]:
    """Return the numbers of a row, its step left out."""
    return {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float) and not isinstance(v, bool)}


def _tensorboard(package: Any, run: Path) -> tuple[Log, Callable[[], None]]:
    writer = package.SummaryWriter(str(run / "tensorboard"))

    def log(row: Row) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, row["step"])

    return log, writer.close


def _like_wandb(package: Any, run: Path, config: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    """Return the functions of wandb, and of trackio, which has the same."""
    package.init(project="interlace", name=run.name, config=dict(config))
    return lambda row: package.log(numbers(row), step=row["step"]), package.finish
