"""Conversations that later requests may go on from, by the id of an answer: in memory alone, and bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interlace.serve.errors import ApiError
from interlace.serve.items import size_bytes

MOST, MOST_BYTES = 1000, 64 << 20


@dataclass(frozen=True)
class Kept:
    """An answer.

    Attributes:
        turns: of the conversation, the answer's included; instructions are none.
        response: as it was sent.
        bytes: that it takes.
    """

    turns: list[dict[str, Any]]
    response: dict[str, Any]
    bytes: int


class Store:
    """Answers by owner and id, the least recently used out first."""

    def __init__(self) -> None:
        """Begin empty."""
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def keep(self, owner: str, turns: Sequence[dict[str, Any]], response: dict[str, Any]) -> None:
        """Keep an answer; an old one may go."""
        size = size_bytes(turns) + size_bytes([response])
        if size > MOST_BYTES // 4:
            return
        self._kept[owner, response["id"]] = Kept(list(turns), response, size)
        self.bytes += size
        while len(self._kept) > MOST or self.bytes > MOST_BYTES:
            self.bytes -= self._kept.popitem(last=False)[1].bytes

    def find(self, owner: str, name: str, field: str | None) -> Kept:
        """Return an answer.

        Raises:
            ApiError: there is none of this owner under this id.
        """
        found = self._kept.get((owner, name))
        if found is None:
            said = f"{field}: " if field else ""
            raise ApiError(
                404,
                f"{said}there is no answer '{name[:80]}'; the server keeps the last {MOST:,}, and none after it ends",
                field,
                "response_not_found",
            )
        self._kept.move_to_end((owner, name))
        return found

    def forget(self, owner: str, name: str) -> None:
        """Forget an answer.

        Raises:
            ApiError: as `find`.
        """
        self.find(owner, name, None)
        self.bytes -= self._kept.pop((owner, name)).bytes
