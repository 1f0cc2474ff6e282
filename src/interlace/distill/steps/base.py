"""What a step is: a closed table of a recipe, and what it does with rows."""

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
        state: "ok" if it goes on; "dropped", or the state of the request that ended it.
        reason: why it ended.
        parent: the row it came from, for steps that see all rows at once.
        requests: keys of those it came of, where the row's requests are not all of this one's.
    """

    values: dict[str, Any] = field(default_factory=dict)
    state: str = "ok"
    reason: str = ""
    parent: Row | None = None
    requests: tuple[str, ...] = ()


def drop(reason: str, **values: Any) -> Out:
    """A row that ends here."""
    return Out(values, "dropped", reason)


# What may be wrong with one row; it ends that row alone, in steps that see all rows as well.
OF_A_ROW = (ConfigError, ValueError, RecursionError, OverflowError, MemoryError)


def ended_by(error: Exception, row: Row | None = None) -> Out:
    """The end of a row that a step met one of OF_A_ROW on; a template that is unsafe is no row's fault, and raised."""
    if isinstance(error, UnsafeTemplate):
        raise error
    if isinstance(error, ConfigError):  # a template fails on what the row holds
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
        """Templates over a row's columns, by the field they stand in."""
        return {}

    def draws(self) -> bool:
        """Whether chance, seeded by the step's name among others, has a say in its rows."""
        return False

    def reads(self) -> dict[str, str]:
        """Columns that it needs, by the field that names them."""
        return {}

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """The columns of its rows, given those that reach it."""
        return given

    def asks(self) -> tuple[str, ...]:
        """Teachers that it may ask, in the order it would."""
        return ()

    def files(self) -> tuple[str, ...]:
        """Files and folders that it reads, from the recipe's folder on."""
        return ()

    def requests(self, rows: int) -> int:
        """The most requests it makes for so many rows, retries aside."""
        return 0

    def fan(self, rows: int) -> int:
        """The most rows that leave it, where so many reach it."""
        return rows

    def rows(self, desk: Desk) -> Iterator[dict[str, Any]]:
        """For a step that feeds: its rows."""
        raise NotImplementedError

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """For a step that takes rows one by one: what becomes of a row."""
        raise NotImplementedError

    def all(self, rows: Rows, desk: Desk) -> AsyncIterator[Out]:
        """For a step that sees all rows: what becomes of them, in order."""
        raise NotImplementedError
