"""Load, prefill and decode of Olmo Hybrid's 7B geometry in bfloat16, int8 and int4, beside `transformers`, in one run.

    python benchmarks/seven_billion.py FOLDER [--layers 32] [--tokens 8] [--prompt 64] [--rounds 3] [--busy 0]
        [--their-tokens 2] [--their-prompt 8] [--json]

Makes FOLDER/bfloat16 with random weights, shard by shard (15 GB of disk), and FOLDER/int8 and FOLDER/int4 by `interlace
quantise` (12 GB more); they stay for the next run. Each side runs in a process of its own, one after the other, as two
do not fit into 24 GB; the rounds go through all sides, and figures are medians of a token's time over all rounds. The
memory's rate is measured before each. --busy: processes that keep a core busy beside it. --layers: fewer, for other
widths of run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from measure import describe, reading_bytes_per_second, require_truth

SIDES = ("bfloat16", "int8", "int4", "transformers")
STD = 0.02


def make(folder: Path, layers: int) -> None:
    """Write a checkpoint with random weights; one tensor is in memory at a time."""
    import transformers

    from interlace.base.files import new_folder
    from interlace.checkpoint.families.registry import FAMILIES
    from interlace.checkpoint.rows import published_shape
    from interlace.checkpoint.save import SHARD_BYTES, in_shards, index_of
    from interlace.checkpoint.tensors import Planned, write_planned
    from interlace.model.model import HybridLM

    draw = torch.Generator().manual_seed(0)
    raw = transformers.OlmoHybridConfig(
        num_hidden_layers=layers, rope_parameters={"rope_type": "default", "rope_theta": None}
    )
    table = {**raw.to_dict(), "architectures": ["OlmoHybridForCausalLM"], "dtype": "bfloat16", "eos_token_id": None}
    family = next(f for f in FAMILIES if f.model_type == "olmo_hybrid")
    config = family.read_config(table)
    shapes = {name: tuple(p.shape) for name, p in HybridLM(config, device="meta").named_parameters()}

    def planned(name: str, shape: tuple[int, ...]) -> Planned:
        if "norm" in name:
            return Planned(name, shape, torch.bfloat16, lambda x: x.fill_(1))  # type: ignore[arg-type,return-value]
        return Planned(name, shape, torch.bfloat16, lambda x: x.normal_(std=STD, generator=draw))  # type: ignore[arg-type,return-value]

    tensors = [planned(name, published_shape(slots, shapes)) for name, slots in family.slots(config).items()]
    with new_folder(folder) as partial:
        shards = in_shards(tensors, SHARD_BYTES)
        for name, shard in shards.items():
            write_planned(partial / name, shard)
            print(f"wrote {name}", file=sys.stderr, flush=True)
        (partial / "model.safetensors.index.json").write_text(json.dumps(index_of(shards)))
        (partial / "config.json").write_text(json.dumps(table))


def run_side(side: str, folder: Path, tokens: int, prompt: int) -> dict[str, Any]:
    """Load, read a prompt, and make tokens; seconds of each, and of every token."""
    ids = torch.randint(100_000, (1, prompt), generator=torch.Generator().manual_seed(1))
    rate, each = reading_bytes_per_second(), []
    start = time.perf_counter()
    if side == "transformers":
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "bfloat16", dtype=torch.bfloat16).eval()
        read = sum(p.nbytes for n, p in theirs.named_parameters() if "embed_tokens" not in n)
        loaded = time.perf_counter()
        with torch.inference_mode():
            out = theirs(ids, use_cache=True, logits_to_keep=1)
            filled = time.perf_counter()
            for _ in range(tokens):
                begin = time.perf_counter()
                out = theirs(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
                each.append(time.perf_counter() - begin)
    else:
        import interlace
        from interlace.generation.pack import pack_for_decoding
        from interlace.generation.sampling import Sampling
        from interlace.generation.text import generate_tokens

        ours = pack_for_decoding(interlace.load(folder / side))
        read = ours.weights_bytes - ours.embedding.weight.nbytes
        loaded = time.perf_counter()
        made = generate_tokens(ours, ids[0].tolist(), max_tokens=tokens + 3, sampling=Sampling(temperature=0))
        next(made)
        filled = time.perf_counter()
        for number in range(tokens + 2):
            begin = time.perf_counter()
            next(made)
            each.append(time.perf_counter() - begin)
            if number == 1:
                each.clear()  # the step was captured
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    read_tokens = prompt / (filled - loaded)
    times = {"load_seconds": loaded - start, "prefill_tokens_per_second": read_tokens, "token_seconds": each}
    return {**times, "read_bytes": read, "peak_bytes": peak, "bytes_per_second": rate}


def _spin() -> None:
    while True:
        pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--their-tokens", type=int, default=2, help="of transformers, in one round")
    parser.add_argument("--their-prompt", type=int, default=8)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--only", default=",".join(SIDES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = options.folder / f"{options.layers}-layers"
    if options.side:
        json.dump(run_side(options.side, folder, options.tokens, options.prompt), sys.stdout)
        return
    require_truth()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "bfloat16").exists():
        make(folder / "bfloat16", options.layers)
    for weights in ("int8", "int4"):
        if weights in options.only and not (folder / weights).exists():
            verb = [sys.executable, "-m", "interlace", "quantise", folder / "bfloat16", "--out", folder / weights]
            start = time.perf_counter()
            subprocess.run([*verb, "--weights", weights], check=True, stdout=sys.stderr)
            print(f"quantise {weights}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    machine = describe()
    print(machine, file=sys.stderr)
    spinning = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(options.busy)]
    for process in spinning:
        process.start()
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.only.split(",")}
    for number in range(options.rounds):
        for side, results in found.items():
            if (theirs := side == "transformers") and number:
                continue
            tokens, prompt = (
                (options.their_tokens, options.their_prompt) if theirs else (options.tokens, options.prompt)
            )
            same = ["--tokens", str(tokens), "--prompt", str(prompt), "--layers", str(options.layers)]
            command = [sys.executable, __file__, options.folder, "--side", side, *same]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            token = statistics.median(results[-1]["token_seconds"])
            print(f"round {number + 1}, {side}: {token:.3f} s a token", file=sys.stderr, flush=True)
    for process in spinning:
        process.kill()
    heads = (
        ("load s", 7),
        ("prefill t/s", 11),
        ("token s", 8),
        ("of bf16", 8),
        ("read GB", 8),
        ("of memory", 9),
        ("peak GB", 8),
    )
    print(f"{'':12} " + " ".join(f"{head:>{width}}" for head, width in heads))
    base = None
    for side, results in found.items():
        token = statistics.median(t for r in results for t in r["token_seconds"])
        base = token if side == "bfloat16" else base
        keys = ("load_seconds", "prefill_tokens_per_second", "bytes_per_second")
        load, prefill, rate = (statistics.median(r[key] for r in results) for key in keys)
        read, peak = results[0]["read_bytes"], max(r["peak_bytes"] for r in results)
        times = "" if base is None else f"{base / token:.2f}"
        cells = (f"{load:.1f}", f"{prefill:.2f}", f"{token:.3f}", times, f"{read / 1e9:.2f}")
        cells += (f"{read / token / rate:.0%}", f"{peak / 1e9:.1f}")
        print(f"{side:12} " + " ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, heads, strict=True)))
    if options.json:
        json.dump({"machine": machine, "busy": options.busy, "results": found}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
