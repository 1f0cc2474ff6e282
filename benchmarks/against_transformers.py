"""Training step, prefill and decode beside `transformers`' Olmo Hybrid of the same shape and weights, in one run.

    python benchmarks/against_transformers.py [--pairs 7] [--only training,decode] [--dtypes bfloat16,float32] [--json]

37 million parameters: width 512, depth 8, 3:1; decode also with width 1024, depth 20 (356 million). Ours and theirs
alternate, so that a noisy machine disturbs both; ratios are of medians, with quartiles of the pairs' ratios. Beside
them stand two limits measured in the same run: a training step of matrix products alone, and reading every weight
once per token. Their training runs in a process of its own, since ours tells malloc to keep memory. Prints nothing
unless the operators agree with the float64 recurrence first.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from measure import Apart, compare, describe, median, reading_bytes_per_second, require_truth

import interlace
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch
from interlace.generation.pack import ROUNDINGS, pack_for_decoding
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.model.config import ModelConfig
from interlace.model.precision import matmul_flops_per_second
from interlace.ops.core import kernels
from interlace.train.optimizer import parameter_groups
from interlace.train.recipe import TrainSettings
from interlace.train.trainer import Trainer

SMALL: dict[str, Any] = {
    "width": 512,
    "depth": 8,
    "vocabulary": 8192,
    "pattern": ["gated_delta", "gated_delta", "gated_delta", "attention"],
    "gated_delta": {"heads": 8, "key_dim": 48, "value_dim": 96, "norm": "input"},
    "attention": {"heads": 8, "position": "none", "norm": "output"},
    "mlp": {"width": 1376},
}
LARGE: dict[str, Any] = {
    **SMALL,
    "width": 1024,
    "depth": 20,
    "vocabulary": 32_000,
    "gated_delta": {"heads": 8, "key_dim": 96, "value_dim": 192, "norm": "input"},
    "attention": {"heads": 16, "position": "none", "norm": "output"},
    "mlp": {"width": 2752},
}
ROWS, LENGTH = 4, 512
Result = dict[str, float]


def both(table: dict[str, Any], dtype: torch.dtype) -> tuple[interlace.HybridLM, torch.nn.Module]:
    """Our model and theirs with the same weights."""
    ours = interlace.HybridLM(ModelConfig.from_dict(table))
    with tempfile.TemporaryDirectory() as folder:
        interlace.save(ours, folder + "/m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder + "/m", dtype=torch.float32)
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def matmul_floor(model: interlace.HybridLM, tokens: int, dtype: torch.dtype) -> float:
    """Seconds of one step's products with weights, forward and both backward, and nothing else."""
    shapes = [m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Linear)]
    work = []
    for outputs, inputs in shapes:
        x, w, dy = (torch.randn(*s).to(dtype) for s in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
        results = [torch.empty(s, dtype=dtype) for s in (dy.shape, x.shape, w.shape)]
        work.append((x, w, dy, results))

    def step() -> None:
        for x, w, dy, (y, dx, dw) in work:
            torch.mm(x, w.T, out=y)
            torch.mm(dy, w, out=dx)
            torch.mm(dy.T, x, out=dw)

    return median(step)


def their_training(folder: str, rows: int, length: int, vocabulary: int, name: str) -> Callable[[], None]:
    """Their training step, made and run in a process of its own."""
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    theirs, dtype = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), getattr(torch, name)
    optimizer = torch.optim.AdamW(parameter_groups(theirs, 0.1), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(vocabulary, (rows, length + 1))
    theirs.train()

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext():
            logits = theirs(tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training(table: dict[str, Any], rows: int, length: int, dtype: torch.dtype, pairs: int) -> Result:
    """One AdamW step on float32 master weights, matrix products in `dtype`, gradients clipped, on both sides."""
    ours, name = interlace.HybridLM(ModelConfig.from_dict(table)), str(dtype).removeprefix("torch.")
    tokens = torch.randint(table["vocabulary"], (rows, length + 1))
    batch = Batch(tokens[:, :-1].flatten(), tokens[:, 1:].flatten(), Segments.equal(rows, length))
    assert IGNORE not in batch.targets
    with tempfile.TemporaryDirectory() as folder:
        interlace.save(ours, folder + "/m")
        theirs = Apart(their_training, folder + "/m", rows, length, table["vocabulary"], name)
        theirs()
    trainer = Trainer.of(ours, TrainSettings(tokens=1), 10_000, name)
    result = compare(lambda: trainer.step(batch), theirs, pairs)
    theirs.end()
    floor = matmul_floor(ours, rows * length, dtype)
    return {
        **result,
        "tokens_per_second": rows * length / result["ours_seconds"],
        "limit": floor / result["ours_seconds"],
    }


@torch.inference_mode()
def prefill(table: dict[str, Any], dtype: torch.dtype, pairs: int) -> Result:
    """4 x 512 tokens read, state kept, logits of the last token."""
    ours, theirs = both(table, dtype)
    tokens = torch.randint(table["vocabulary"], (ROWS, LENGTH))
    a, b = ours(tokens, last_only=True)[0].float(), theirs(tokens, logits_to_keep=1).logits[:, 0].float()
    result = compare(
        lambda: ours(tokens, last_only=True), lambda: theirs(tokens, use_cache=True, logits_to_keep=1), pairs
    )
    difference = float((a - b).norm() / b.norm())
    return {**result, "tokens_per_second": ROWS * LENGTH / result["ours_seconds"], "logit_difference": difference}


def decode(table: dict[str, Any], dtype: torch.dtype, pairs: int, made: int, weights: str = "") -> Result:
    """Greedy tokens, one at a time with carried state, after a prompt of 16, batch 1, `generate` on both sides."""
    ours, theirs = both(table, dtype)
    pack_for_decoding(ours, ROUNDINGS.get(weights))
    prompt = torch.randint(table["vocabulary"], (1, 16))
    ids, greedy = prompt[0].tolist(), Sampling(temperature=0)

    def mine() -> list[int]:
        return list(generate_tokens(ours, ids, max_tokens=made, sampling=greedy))

    def other() -> list[int]:
        settings = {"max_new_tokens": made, "min_new_tokens": made, "do_sample": False, "pad_token_id": 0}
        return theirs.generate(prompt, **settings)[0, 16:].tolist()

    result = compare(mine, other, pairs)
    per_second = made / result["ours_seconds"]
    read = ours.weights_bytes - ours.embedding.weight.nbytes
    limit = read * per_second / reading_bytes_per_second()
    agreement = sum(a == b for a, b in zip(mine(), other(), strict=True)) / made
    return {**result, "tokens_per_second": per_second, "limit": limit, "same_tokens": agreement}


def cases(name: str, pairs: int) -> dict[str, Any]:
    """What is measured in a dtype, by label."""
    dtype = getattr(torch, name)
    found: dict[str, Any] = {}
    for rows, length in ((4, 512), (1, 4096)):
        found[f"training step 37M, {rows} x {length}, {name}"] = lambda r=rows, t=length: training(
            SMALL, r, t, dtype, pairs
        )
    found[f"prefill 37M, 4 x 512, {name}"] = lambda: prefill(SMALL, dtype, pairs)
    found[f"decode 37M, {name}"] = lambda: decode(SMALL, dtype, pairs, 64)
    if dtype == torch.bfloat16:
        found[f"decode 356M, {name}"] = lambda: decode(LARGE, dtype, pairs, 32)
        for weights in ROUNDINGS:
            found[f"decode 356M, {weights} against {name}"] = lambda w=weights: decode(LARGE, dtype, pairs, 32, w)
    return found


def main() -> None:
    kernels.keep_memory()  # as `interlace train` does; both sides run in this process
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--only", default="", help="training, prefill or decode; several with commas")
    parser.add_argument("--slow", action="store_true", help="measure bfloat16 even where it is slower than float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    require_truth()
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    print(describe(f"transformers {transformers.__version__}"), file=sys.stderr)
    slow = matmul_flops_per_second(torch.bfloat16) < matmul_flops_per_second(torch.float32) and not options.slow
    wanted = [word for word in options.only.split(",") if word]
    results = {}
    if not options.json:
        print(f"{'':36} {'ours':>11} {'theirs':>11} {'ratio':>7}  quartiles   tokens/s  of the limit")
    for name in options.dtypes.split(","):
        for label, work in cases(name, options.pairs).items():
            if wanted and not any(label.startswith(word) for word in wanted):
                continue
            if slow and name == "bfloat16" and not label.startswith("decode"):
                print(f"{label}: left out, slower than float32 on this processor (--slow)", file=sys.stderr)
                continue
            r = results[label] = work()
            if not options.json:
                limit = f"{r['limit']:10.0%}" if "limit" in r else ""
                quartiles = f"{r['ratio_low']:.2f}-{r['ratio_high']:.2f}"
                print(
                    f"{label:36} {r['ours_seconds'] * 1e3:8.1f} ms {r['theirs_seconds'] * 1e3:8.1f} ms"
                    f" {r['ratio']:6.2f}x  {quartiles} {r['tokens_per_second']:9.0f} {limit}",
                    flush=True,
                )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
