"""The rule for state that goes from call to call: it may be given to one call only, which may write over it."""

from __future__ import annotations

from typing import Self

from interlace.base.errors import StateUsed


class UsedOnce:
    """A state that is used up by the call it is given to."""

    _used = False

    def use(self) -> Self:
        """Mark this state as used up, and return it.

        Raises:
            StateUsed: it was used up before.
        """
        self.check_unused()
        self._used = True
        return self

    def check_unused(self) -> None:
        """Raise StateUsed for a state that an earlier call may have written over."""
        if self._used:
            raise StateUsed(
                "state: was used up by an earlier call, which may have written over it; go on from the state that call "
                "returned, or keep a copy (state.select) before it"
            )
