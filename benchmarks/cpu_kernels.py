"""The CPU kernels beside `transformers`' PyTorch functions and `nn.Conv1d`, on one thread and on all, in one run.

    python benchmarks/cpu_kernels.py [--pairs 7] [--threads 1,2] [--json]

Ours and theirs alternate; ratios are of medians, with quartiles of the pairs' ratios. Prints nothing unless every
backend agrees with the float64 recurrence first, and ours with theirs on the inputs measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from measure import compare, describe, require_truth
from torch import Tensor
from torch.nn.functional import normalize, silu
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from interlace.ops import gated_delta, gated_delta_step, short_convolution

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """End the program if the two sides do not compute the same."""
    error = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if not error <= tolerance:
        sys.exit(f"nothing was measured: ours and theirs differ by {error:.1e}")


def rule(H: int, K: int, V: int, time: int = 2048) -> list[Tensor]:
    """query, key, value in bfloat16, log_decay, beta of one sequence: [T, H, ...]."""
    query, key = (normalize(torch.randn(time, H, K), dim=-1).bfloat16() for _ in range(2))
    value = torch.randn(time, H, V).bfloat16()
    return [query, key, value, -torch.rand(time, H) * 0.5, torch.rand(time, H) * 2]


def forward(H: int, K: int, V: int) -> Pair:
    """One sequence of 2048 tokens, no gradients."""
    inputs = rule(H, K, V)
    batched = [x.unsqueeze(0) for x in inputs]

    def ours() -> Tensor:
        with torch.no_grad():
            return gated_delta(*inputs)[0]

    def theirs() -> Tensor:
        with torch.no_grad():
            return torch_chunk_gated_delta_rule(*batched)[0]

    close(ours(), theirs()[0], 1e-2)
    return ours, theirs


def forward_backward(H: int, K: int, V: int) -> Pair:
    """The same with gradients of all five inputs."""
    inputs = [x.requires_grad_() for x in rule(H, K, V)]
    d_out = torch.randn(2048, H, V).bfloat16()

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(gated_delta(*inputs)[0], inputs, d_out)

    def theirs() -> tuple[Tensor, ...]:
        out = torch_chunk_gated_delta_rule(*[x.unsqueeze(0) for x in inputs])[0]
        return torch.autograd.grad(out, inputs, d_out.unsqueeze(0))

    for a, b in zip(ours(), theirs(), strict=True):
        close(a, b, 3e-2)
    return ours, theirs


def decode(N: int, H: int, K: int, V: int) -> Pair:
    """One token for each of N sequences, with their states."""
    query, key, value, decay, beta = rule(H, K, V, time=N)
    state = torch.randn(N, H, K, V)
    memory = state.clone()
    batched = [x.unsqueeze(1) for x in (query, key, value, decay, beta)]

    def ours() -> Tensor:
        return gated_delta_step(query, key, value, decay, beta, memory)

    def theirs() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return torch_recurrent_gated_delta_rule(*batched, initial_state=state, output_final_state=True)

    out, after = theirs()
    close(ours(), out[:, 0], 1e-2)
    close(memory, after, 1e-5)
    return ours, theirs


def convolution() -> Pair:
    """2048 tokens of 3072 channels, width 4, float32, forward and backward."""
    time, D, W = 2048, 3072, 4
    x = torch.randn(time, D).requires_grad_()
    weight = torch.randn(D, W).requires_grad_()
    layer = torch.nn.Conv1d(D, D, W, groups=D, padding=W - 1, bias=False)
    layer.weight.data.copy_(weight.detach().unsqueeze(1))
    channels_first, d_out = x.detach().T.unsqueeze(0).contiguous().requires_grad_(), torch.randn(time, D)
    d_first = d_out.T.unsqueeze(0).contiguous()  # their layout, so that neither side pays for a transposition

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(short_convolution(x, weight)[0], (x, weight), d_out)

    def theirs() -> tuple[Tensor, ...]:
        out = silu(layer(channels_first)[..., :time])
        return torch.autograd.grad(out, (channels_first, layer.weight), d_first)

    (dx, dw), (ex, ew) = ours(), theirs()
    close(dx, ex[0].T, 1e-5)
    close(dw, ew.squeeze(1), 1e-5)
    return ours, theirs


def cases() -> dict[str, tuple[Pair, float, str]]:
    """Label to (pair, what its seconds are divided by, unit)."""
    found: dict[str, tuple[Pair, float, str]] = {}
    for H, K, V in ((16, 128, 128), (15, 96, 192)):
        per = 1e6 / (2048 * H)
        found[f"gated_delta forward, H {H}, {K} x {V}"] = (forward(H, K, V), per, "us/token/head")
        found[f"gated_delta forward + backward, H {H}, {K} x {V}"] = (forward_backward(H, K, V), per, "us/token/head")
    for N in (1, 32):
        found[f"gated_delta step, H 32, 128 x 128, batch {N}"] = (decode(N, 32, 128, 128), 1e6 / (32 * N), "us/head")
    found["short_convolution forward + backward, 2048 x 3072"] = (convolution(), 1e3, "ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", default=f"1,{torch.get_num_threads()}")
    parser.add_argument("--only", default="", help="measure only cases whose label holds this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    require_truth()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    print(describe(f"transformers {transformers.__version__}"), file=sys.stderr)
    results = []
    if not options.json:
        print(f"{'':52} {'threads':>7} {'ours':>8} {'theirs':>8} {'':13} {'ratio':>6}  quartiles")
    for label, (pair, per, unit) in cases().items():
        if options.only not in label:
            continue
        for threads in dict.fromkeys(int(n) for n in options.threads.split(",")):
            torch.set_num_threads(threads)
            r = {"case": label, "threads": threads, "unit": unit, **compare(*pair, options.pairs)}
            r |= {"ours": r["ours_seconds"] * per, "theirs": r["theirs_seconds"] * per}
            results.append(r)
            if not options.json:
                print(
                    f"{label:52} {threads:7} {r['ours']:8.3f} {r['theirs']:8.3f} {unit:13} {r['ratio']:5.1f}x"
                    f"  {r['ratio_low']:.1f}-{r['ratio_high']:.1f}",
                    flush=True,
                )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
