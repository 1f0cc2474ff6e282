"""The guard of a run: a step whose numbers are bad changes no weight, and three in a row end the run.

A step is bad if its loss or gradient is not finite, or if its gradient norm is a spike: more than a number of times
the 90th percentile of the last 64 good norms, once 16 are known. (Norms of small batches vary by a factor of ten around
their median while training goes well; a percentile knows that, and a single large norm does not move it.) All of it is
decided on the device: the host waits for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW, LEAST = 64, 16  # good norms that the percentile is taken of, and how many it takes
IN_A_ROW = 3


class Guard:
    """Knows the gradient norms of good steps, and how many bad ones followed one another."""

    def __init__(self, spike: float, device: torch.device):
        """spike: the largest norm, in 90th percentiles of the last good ones; 0 for no limit."""
        self.spike = spike
        self._norms = torch.full((WINDOW,), torch.nan, device=device)
        self._good = torch.zeros((), dtype=torch.int64, device=device)
        self._bad = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(WINDOW, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Return how many bad steps there are in a row with this one, 0 for a good one; int64 on the device.

        After the last that is allowed every step is bad.
        """
        norm = norm.detach().to(torch.float32)
        bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(norm)) | (self._bad >= IN_A_ROW)
        if self.spike:
            known = torch.isfinite(self._norms).sum()
            usual = self._norms.sort().values.gather(0, (known * 9 // 10).view(1))[0]  # NaN is sorted to the end
            bad |= (known >= LEAST) & (norm > self.spike * usual)
        here = (self._places == self._good % WINDOW) & ~bad
        self._norms = torch.where(here, norm, self._norms)
        self._good = self._good + ~bad
        self._bad = torch.where(bad, self._bad + 1, 0)
        return self._bad

    def forgive(self) -> None:
        """Count the next bad step as the first: somebody has changed something."""
        self._bad = torch.zeros_like(self._bad)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for which the host waits."""
        norms = [x if x == x else None for x in self._norms.tolist()]
        return {"norms": norms, "good": int(self._good), "bad": int(self._bad)}

    def resume(self, known: dict[str, Any]) -> None:
        """Take up what `to_dict` returned."""
        norms = [torch.nan if x is None else x for x in known["norms"]]
        self._norms[: len(norms)] = torch.tensor(norms, dtype=torch.float32)
        self._good.fill_(known["good"])
        self._bad.fill_(known["bad"])
