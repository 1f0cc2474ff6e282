"""Training step, prefill and decode beside `transformers`' Olmo Hybrid of the same shape and weights, in one run.

    python benchmarks/against_transformers.py [--pairs 7] [--dtypes float32,bfloat16] [--slow]

Width 512, depth 8, 3:1, 4 x 512 tokens, 37 million parameters. Ours and theirs alternate, so that a noisy machine
disturbs both; ratios are of medians. Prints nothing unless the operators agree with the float64 recurrence first.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

import interlace
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch
from interlace.generate.engine import generate_tokens, lay_out_for_decoding
from interlace.generate.sampling import Sampling
from interlace.model.config import ModelConfig
from interlace.ops.selftest import check
from interlace.train.precision import matmul_flops_per_second
from interlace.train.recipe import TrainSettings
from interlace.train.trainer import Trainer, parameter_groups

CONFIG = ModelConfig.from_dict(
    {
        "width": 512,
        "depth": 8,
        "vocabulary": 8192,
        "pattern": ["gated_delta", "gated_delta", "gated_delta", "attention"],
        "gated_delta": {"heads": 8, "key_dim": 48, "value_dim": 96, "norm": "input"},
        "attention": {"heads": 8, "position": "none", "norm": "output"},
        "mlp": {"width": 1376},
    }
)
ROWS, LENGTH, DECODED = 4, 512, 64


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> dict[str, float]:
    """Medians and quartiles of alternating runs, after one of each to warm up."""
    ours(), theirs()
    a, b = [], []
    for _ in range(pairs):
        a.append(seconds(ours))
        b.append(seconds(theirs))
    ratios = statistics.quantiles([y / x for x, y in zip(a, b, strict=True)], n=4)
    return {
        "ours_seconds": statistics.median(a),
        "theirs_seconds": statistics.median(b),
        "ratio": statistics.median(b) / statistics.median(a),
        "ratio_low": ratios[0],
        "ratio_high": ratios[2],
    }


def training(ours: interlace.HybridLM, theirs: torch.nn.Module, dtype: torch.dtype, pairs: int) -> dict[str, float]:
    """One AdamW step on float32 master weights, matrix products in `dtype`, gradients clipped, on both sides."""
    tokens = torch.randint(CONFIG.vocabulary, (ROWS, LENGTH + 1))
    batch = Batch(tokens[:, :-1].flatten(), tokens[:, 1:].flatten(), Segments.equal(ROWS, LENGTH))
    assert IGNORE not in batch.targets
    trainer = Trainer(ours, TrainSettings(tokens=1), 10_000, str(dtype).removeprefix("torch."))
    optimizer = torch.optim.AdamW(parameter_groups(theirs, 0.1), lr=1e-4, betas=(0.9, 0.95), fused=True)
    theirs.train()

    def their_step() -> None:
        with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext():
            logits = theirs(tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    result = compare(lambda: trainer.step(batch), their_step, pairs)
    return {**result, "tokens_per_second": ROWS * LENGTH / result["ours_seconds"]}


@torch.inference_mode()
def prefill(ours: interlace.HybridLM, theirs: torch.nn.Module, pairs: int) -> dict[str, float]:
    """4 x 512 tokens read, state kept, logits of the last token."""
    tokens = torch.randint(CONFIG.vocabulary, (ROWS, LENGTH))
    a, b = ours(tokens, last_only=True)[0].float(), theirs(tokens, logits_to_keep=1).logits[:, 0].float()
    error = float((a - b).norm() / b.norm())
    result = compare(
        lambda: ours(tokens, last_only=True), lambda: theirs(tokens, use_cache=True, logits_to_keep=1), pairs
    )
    return {**result, "tokens_per_second": ROWS * LENGTH / result["ours_seconds"], "logit_difference": error}


def decode(ours: interlace.HybridLM, theirs: torch.nn.Module, pairs: int) -> dict[str, float]:
    """Greedy tokens, one at a time with carried state, after a prompt of 16, batch 1, `generate` on both sides."""
    prompt = torch.randint(CONFIG.vocabulary, (1, 16))
    ids, greedy = prompt[0].tolist(), Sampling(temperature=0)

    def mine() -> list[int]:
        return list(generate_tokens(ours, ids, max_tokens=DECODED, sampling=greedy))

    def other() -> list[int]:
        return theirs.generate(prompt, max_new_tokens=DECODED, do_sample=False)[0, 16:].tolist()

    same = sum(a == b for a, b in zip(mine(), other(), strict=True)) / DECODED
    result = compare(mine, other, pairs)
    return {**result, "tokens_per_second": DECODED / result["ours_seconds"], "same_tokens": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--slow", action="store_true", help="measure bfloat16 even where it is slower than float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wrong = [f for f in check() if not f.good]
    if wrong:
        sys.exit(f"nothing was measured: {wrong[0]} disagrees with the float64 recurrence")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    rates = {n: matmul_flops_per_second(getattr(torch, n)) / 1e9 for n in ("float32", "bfloat16")}
    print(
        f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"matrix products {rates['float32']:.0f} (float32) and {rates['bfloat16']:.1f} (bfloat16) GFLOP/s; "
        f"load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
    )
    results = {}
    for name in options.dtypes.split(","):
        dtype = getattr(torch, name)
        slow = name == "bfloat16" and rates["bfloat16"] < rates["float32"] and not options.slow
        ours = interlace.HybridLM(CONFIG)
        with tempfile.TemporaryDirectory() as folder:
            interlace.save(ours, folder + "/m")
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder + "/m", dtype=torch.float32)
        if slow:
            print(
                "bfloat16: training and prefill left out, slower than float32 on this processor (--slow)",
                file=sys.stderr,
            )
        else:
            results[f"training step, {name}"] = training(ours, theirs, dtype, options.pairs)
        ours.to(dtype).eval()
        theirs.to(dtype).eval()
        if not slow:
            same_weights(ours, theirs)
            results[f"prefill, {name}"] = prefill(ours, theirs, options.pairs)
        same_weights(ours, theirs)
        results[f"decode, {name}"] = decode(lay_out_for_decoding(ours), theirs, options.pairs)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{'':24} {'ours':>11} {'theirs':>11} {'ratio':>7}   quartiles    tokens/s")
    for label, r in results.items():
        print(
            f"{label:24} {r['ours_seconds'] * 1e3:8.1f} ms {r['theirs_seconds'] * 1e3:8.1f} ms {r['ratio']:6.2f}x"
            f"   {r['ratio_low']:.2f}-{r['ratio_high']:.2f}  {r['tokens_per_second']:9.0f}"
        )


@torch.no_grad()
def same_weights(ours: interlace.HybridLM, theirs: torch.nn.Module) -> None:
    """Give ours their weights again, since both have trained since."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        loaded = interlace.load(folder, dtype=ours.dtype)
    for mine, other in zip(ours.parameters(), loaded.parameters(), strict=True):
        mine.copy_(other)


if __name__ == "__main__":
    main()
