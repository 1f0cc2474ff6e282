"""What recurrent layers keep and write on a text: statistics of their gates, by table of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.data.batches import Batch
from interlace.model.model import HybridLM

MOST_TOKENS = 4096  # that are looked at


@torch.no_grad()
def gate_statistics(
    model: HybridLM, batch: Batch, everywhere: Callable[[Tensor], Tensor] = lambda x: x
) -> dict[str, float]:
    """Return, of each table of recurrent layers with gates, the mean and the 5 % and 95 % quantiles of each gate.

    "decay" is what a token keeps of the state; "beta" the strength of its write, of which the share above 1 is told
    too; "step" Mamba-2's. Keys are such as "gated_delta.decay_p05".

    everywhere: brings the heads of all workers together, where several divide a layer.
    """
    seen: dict[tuple[str, str], list[Tensor]] = {}
    hooks = []
    for index, block in enumerate(model.blocks):
        mixer: Any = getattr(block, "mixer", None)
        if hasattr(mixer, "gates"):
            hooks.append(mixer.register_forward_pre_hook(_noting(seen, model.config.kinds[index])))
    if not hooks:
        return {}
    training = model.training
    model.eval()
    try:
        keep = batch.segments.lengths
        tokens = 0
        count = next((i for i, n in enumerate(keep, start=1) if (tokens := tokens + n) >= MOST_TOKENS), len(keep))
        segments = Segments.from_lengths(keep[:count])
        model.read(batch.tokens[: segments.total].to(model.device), segments)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    found: dict[str, float] = {}
    for (table, name), parts in seen.items():
        values = torch.cat([everywhere(part).flatten() for part in parts])
        low, high = torch.quantile(values[:: max(1, values.numel() // (1 << 20))], values.new_tensor([0.05, 0.95]))
        found |= {
            f"{table}.{name}_mean": float(values.mean()),
            f"{table}.{name}_p05": float(low),
            f"{table}.{name}_p95": float(high),
        }
        if name == "beta":
            found[f"{table}.beta_above_1"] = float((values > 1).float().mean())
    return found


def _noting(seen: dict[tuple[str, str], list[Tensor]], table: str) -> Callable[..., None]:
    def note(mixer: Any, arguments: tuple[Any, ...]) -> None:
        for name, values in mixer.gates(arguments[0]).items():
            seen.setdefault((table, name), []).append(values.float())

    return note
