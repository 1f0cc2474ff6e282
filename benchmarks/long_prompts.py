"""A long prompt through each family on this CPU: peak memory, beside what a dry run predicts, and tokens per second.

    python benchmarks/long_prompts.py [--tokens 32768] [--only kimi_linear,mamba2] [--json]

Each family in a process of its own: a model as in families.py is made, the prompt is read 4,096 tokens at a time with
carried state, and the highest resident memory since before the model is what is printed, with the C library told to
give freed memory back. The prediction is
`interlace.model.memory.prefill_memory`, which runs the same pass on the meta device and counts what lives.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# glibc keeps freed blocks below a threshold that it raises by itself, which would be measured with what is in use.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def one(name: str, tokens: int) -> dict[str, float]:
    """Read the prompt in this process."""
    import torch
    from families import CONFIGS

    import interlace
    from interlace.checkpoint.families.registry import FAMILIES
    from interlace.generation.prefill import PREFILL
    from interlace.model.memory import prefill_memory

    class Plain:  # families' configs, without importing all that their models need
        def __getattr__(self, kind: str) -> object:
            import transformers

            return getattr(transformers, kind)

    raw = json.loads(CONFIGS[name](Plain()).to_json_string())
    family = next(f for f in FAMILIES if raw["model_type"] in (f.model_type, *f.also))
    config = family.read_config(raw).replace(max_positions=tokens)
    predicted = prefill_memory(config, tokens, PREFILL)
    tiny = torch.randn(64, 64).bfloat16()
    tiny @ tiny
    before = resident_bytes()
    model = interlace.HybridLM(config, device="meta").to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.inference_mode():
        for p in model.parameters():
            p.normal_(std=0.02)
        state = model.empty_state(1, tokens)
        ids = torch.randint(config.vocabulary, (tokens,))
        start = time.perf_counter()
        for part in ids.split(PREFILL):
            _, state = model(part, state=state, last_only=True)
        took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "weights": predicted.weights,
        "state": predicted.state,
        "working": predicted.working,
        "predicted": predicted.total,
        "peak": peak,
        "ratio": peak / predicted.total,
        "tokens_per_second": tokens / took,
    }


def main() -> None:
    """Measure and print."""
    from families import CONFIGS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--only", default=",".join(CONFIGS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.tokens)))
        return
    results = {}
    columns = {"weights": 9, "state": 9, "working": 9, "predicted": 10, "peak": 9}
    heads = " ".join(f"{name:>{width}}" for name, width in columns.items())
    print(f"{'family':18} {heads} {'ratio':>6} {'tok/s':>8}")
    for family in arguments.only.split(","):
        command = [sys.executable, __file__, "--one", family, "--tokens", str(arguments.tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | GIVE_BACK)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        r = results[family] = json.loads(done.stdout.splitlines()[-1])
        cells = " ".join(f"{r[name] / 2**20:{width}.0f}" for name, width in columns.items())
        print(f"{family:18} {cells} {r['ratio']:6.2f} {r['tokens_per_second']:8.0f}", flush=True)
    print("MiB; ratio: peak / predicted", file=sys.stderr)
    if arguments.json:
        json.dump(results, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
