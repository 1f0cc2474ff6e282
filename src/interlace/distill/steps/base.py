"""The base of all steps: a step is a closed table of a recipe, with methods that say what it does with rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field, field_validator

from interlace.base.errors import ConfigError
from interlace.base.schema import Closed
from interlace.distill.ledger.records import Row
from interlace.sandbox.templates import UnsafeTemplate

if TYPE_CHECKING:
    from interlace.distill.desk import Desk

Rows = Callable[[], Iterator[Row]]
"""The rows that reach a step, by key; may be gone through more than once."""


@dataclass(frozen=True)
class Out:
    """One row that leaves a step.

    Attributes:
        values: columns that are new or changed.
        state: "ok" if the row goes on, "dropped", or the state of the request that ended it.
        reason: why it ended.
        parent: the row it was made from, in steps that see all rows at once.
        requests: keys of the requests that this row alone used, if the rows made from one row used different ones.
    """

    values: dict[str, Any] = field(default_factory=dict)
    state: str = "ok"
    reason: str = ""
    parent: Row | None = None
    requests: tuple[str, ...] = ()


def drop(reason: str, **values: Any) -> Out:
    """Return a row that is dropped here."""
    return Out(values, "dropped", reason)


# Errors that one row may cause. They end that row alone, also in steps that see all rows at once.
OF_A_ROW = (ConfigError, ValueError, RecursionError, OverflowError, MemoryError)


def ended_by(error: Exception, row: Row | None = None) -> Out:
    """Return the end of a row on which a step raised one of OF_A_ROW.

    An unsafe template is raised again, as it is no row's fault.
    """
    if isinstance(error, UnsafeTemplate):
        raise error
    if isinstance(error, ConfigError):  # a template fails on the row's values
        return Out({}, "dropped", f"{error}", row)
    return Out({}, "failed", f"the step failed on it: {type(error).__name__}: {error}"[:300], row)


class Step(Closed):
    """A table `[[steps]]` of a recipe.

    Attributes:
        name: by which other steps take its rows; the kind, if not given.
        kind: which step it is.
        source: `from` in TOML: the steps whose rows it takes; the one before it, if not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
    FEEDS: ClassVar[bool] = False  # makes rows of its own, and takes none
    ORDERED: ClassVar[bool] = False  # sees all rows at once, in order

    name: str = Field(default="", pattern=r"^([A-Za-z][\w-]*)?$")
    kind: str
    source: tuple[str, ...] = Field(default=(), alias="from", strict=False)

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def templates(self) -> dict[str, str]:
        """Return the templates over a row's columns, by the field they stand in."""
        return {}

    def draws(self) -> bool:
        """Return whether the rows depend on chance, which is seeded with the step's name among others."""
        return False

    def reads(self) -> dict[str, str]:
        """Return the columns that the step needs, by the field that names them."""
        return {}

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Return the columns of the rows that leave, given the columns of those that reach the step."""
        return given

    def asks(self) -> tuple[str, ...]:
        """Return the teachers that the step may ask, in the order it would ask them."""
        return ()

    def files(self) -> tuple[str, ...]:
        """Return the files and folders that the step reads, relative to the recipe's folder."""
        return ()

    def requests(self, rows: int) -> int:
        """Return the most requests that the step makes for so many rows, without retries."""
        return 0

    def fan(self, rows: int) -> int:
        """Return the most rows that leave the step if so many reach it."""
        return rows

    def rows(self, desk: Desk) -> Iterator[dict[str, Any]]:
        """Yield the rows of a step that feeds others."""
        raise NotImplementedError

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Return the rows that a step makes from one row, in a step that takes rows one by one."""
        raise NotImplementedError

    def all(self, rows: Rows, desk: Desk) -> AsyncIterator[Out]:
        """Yield the rows that a step makes from all rows, in order, in a step that sees all rows at once."""
        raise NotImplementedError
