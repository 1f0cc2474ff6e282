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


class Logger:
    """Hands rows on, to a run of the logger's own for each run folder."""

    def __init__(self, kind: str):
        """Load a logger by its name.

        Raises:
            ConfigError: there is no such logger, or it is not installed.
        """
        if kind not in PACKAGES:
            raise ConfigError(f"--log: there is no logger '{kind}'; {nearest(kind, PACKAGES)}")
        try:
            self._package = import_module(PACKAGES[kind])
        except ImportError:
            raise ConfigError(f"--log: {kind} is not installed; install it with: pip install {kind}") from None
        self._kind = kind
        self.log: Log = lambda row: None
        self.end: Callable[[], None] = lambda: None

    def begin(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """Begin the log of a run, after the end of the one before; a run that goes on has a log for each start.

        Raises:
            Failure: the logger refuses.
        """
        self.end()
        try:
            if self._kind == "tensorboard":
                self.log, self.end = _tensorboard(self._package, folder)
            else:
                place = {"dir": str(folder)} if self._kind == "wandb" else {}  # trackio has a place of its own
                self.log, self.end = _like_wandb(self._package, name, config, place)
        except Exception as error:
            raise Failure(f"--log {self._kind}: cannot begin: {first_line(error)}") from error


def numbers(row: Row) -> dict[str, float]:
    """Return the numbers of a row, its step left out."""
    return {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float) and not isinstance(v, bool)}


def _tensorboard(package: Any, folder: Path) -> tuple[Log, Callable[[], None]]:
    writer = package.SummaryWriter(str(folder / "tensorboard"))

    def log(row: Row) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, row["step"])

    return log, writer.close


def _like_wandb(
    package: Any, name: str, config: Mapping[str, Any], place: Mapping[str, str]
) -> tuple[Log, Callable[[], None]]:
    """Return the functions of wandb, and of trackio, which has the same. place: where its files go."""
    package.init(project="interlace", name=name, config=dict(config), **place)
    return lambda row: package.log(numbers(row), step=row["step"]), package.finish
