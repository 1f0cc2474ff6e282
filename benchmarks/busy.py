"""Decode on a busy machine: our steps on the threads that are free, beside the same steps on all threads, in one run.

    python benchmarks/busy.py [--busy 0,1,2] [--tokens 60] [--json]

Two hybrids with int8 weights, of 37 and 730 million parameters. For each number of busy processes the two ways take
turns, three times each; a figure is the mean time of a token, as a few long waits are what is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from against_transformers import SMALL
from measure import describe, require_truth

import interlace
from interlace.generation import replay
from interlace.generation.pack import ROUNDINGS, pack_for_decoding
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.model.config import ModelConfig

LARGE: dict[str, Any] = {
    **SMALL,
    "width": 2048,
    "depth": 12,
    "vocabulary": 32_000,
    "gated_delta": {"heads": 16, "key_dim": 96, "value_dim": 192, "norm": "input"},
    "attention": {"heads": 16, "position": "none", "norm": "output"},
    "mlp": {"width": 5504},
}
TURNS, SETTLES_SECONDS = 3, 1.0


def spin() -> None:
    """Keep a processor busy."""
    while True:
        pass


def token_seconds(model: interlace.HybridLM, tokens: int, threads: Callable[[], int]) -> float:
    """The mean time of a token."""
    replay.FREE = threads  # type: ignore[assignment]
    made = generate_tokens(model, [1, 2, 3], max_tokens=tokens + 5, sampling=Sampling(temperature=0))
    for _ in range(5):
        next(made)
    start = time.perf_counter()
    for _ in range(tokens):
        next(made)
    return (time.perf_counter() - start) / tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", default="0,1,2")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    require_truth()
    machine = describe()
    print(machine, file=sys.stderr)
    free, rows = replay.FREE, []
    print(f"{'model':6} {'busy':>4} {'free ms':>8} {'all ms':>8} {'ratio':>6}")
    for name, table in (("37M", SMALL), ("730M", LARGE)):
        model = interlace.HybridLM(ModelConfig.from_dict(table)).bfloat16().eval()
        pack_for_decoding(model, ROUNDINGS["int8"])
        for busy in map(int, options.busy.split(",")):
            others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
            for process in others:
                process.start()
            time.sleep(SETTLES_SECONDS)
            pairs = [
                [token_seconds(model, options.tokens, way) for way in (free, torch.get_num_threads)]
                for _ in range(TURNS)
            ]
            for process in others:
                process.kill()
            ours, every = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
            rows.append({"model": name, "busy": busy, "free_ms": ours, "all_ms": every, "ratio": every / ours})
            print(f"{name:6} {busy:4} {ours:8.2f} {every:8.2f} {every / ours:6.2f}", flush=True)
    if options.json:
        json.dump({"machine": machine, "results": rows}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
