"""Adapters beside all weights: memory, tokens a second and held-out loss of the same tuning, each in its own process.

    python benchmarks/lora.py BASE-TEXT TEXT        # half an hour on two cores without AVX-512

A hybrid of 26 million parameters is trained on BASE-TEXT, then tuned on TEXT: by all weights, and by adapters on all
linear layers of several ranks, with a learning rate for each that is the best of three. All read the same batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODEL = """[model]
width = 384
depth = 8
vocabulary = 4096
pattern = ["gated_delta", "gated_delta", "gated_delta", "attention"]
[model.gated_delta]
heads = 6
key_dim = 48
value_dim = 96
[model.attention]
heads = 6
norm = "output"
[model.mlp]
width = 1024
"""


def trained(folder: Path, name: str, head: str, text: Path, tokens: int, **train: Any) -> dict[str, float]:
    """Train in a process; return the last held-out loss, the peak of memory, and the median rate."""
    lora = train.pop("lora", None)
    lines = [head, f"[data]\nsource = {json.dumps(str(text))}\nlength = 512\nrows = 4"]
    lines += [
        "" if "start" in train else 'tokenizer = "train:4096"',
        "[train]",
        f"tokens = {tokens}",
        "evaluations = 3",
    ]
    lines += [f"{key} = {json.dumps(value)}" for key, value in train.items()]
    lines += [f"[train.lora]\nrank = {lora}" if lora else ""]
    (folder / f"{name}.toml").write_text("\n".join(lines), encoding="utf-8")
    words = [sys.executable, "-m", "interlace", "train", str(folder / f"{name}.toml"), "--out", str(folder / name)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": next(row["held_out_loss"] for row in reversed(rows) if "held_out_loss" in row),
        "memory": max(row["peak_memory_bytes"] for row in rows),
        "rate": statistics.median(row["tokens_per_second"] for row in rows[3:]),
        "bytes": sum(p.stat().st_size for p in (folder / name / f"checkpoints/step-{rows[-1]['step']}").rglob("*")),
    }


def main() -> None:
    """Tune by all weights and by adapters, and print each beside the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--base-tokens", type=int, default=400_000)
    parser.add_argument("--tokens", type=int, default=80_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trained(folder, "base", MODEL, given.base, given.base_tokens, learning_rate=2e-3)
        common = {"start": str(folder / "base"), "precision": given.precision}
        ways: list[tuple[str, int | None, tuple[float, ...]]] = [("all weights", None, (2e-4, 5e-4, 1e-3))]
        ways += [(f"adapters of rank {rank}", rank, (1e-3, 3e-3, 1e-2)) for rank in given.ranks]
        first: dict[str, float] = {}
        print(f"{'':22} {'rate':>7} {'held-out loss':>14} {'memory, MiB':>12} {'tokens/s':>9} {'checkpoint, MiB':>16}")
        for name, rank, rates in ways:
            found = {}
            for number, rate in enumerate(rates):
                label = f"{rank or 'all'}-{number}"
                found[rate] = trained(
                    folder, label, "", given.text, given.tokens, learning_rate=rate, lora=rank, **common
                )
            best = min(found, key=lambda rate: found[rate]["loss"])
            one = found[best] | {"rate": statistics.median(x["rate"] for x in found.values())}
            first = first or one
            print(
                f"{name:22} {best:>7g} {one['loss']:>14.4f} {one['memory'] / 2**20:>12,.0f} {one['rate']:>9,.0f} "
                f"{one['bytes'] / 2**20:>16.1f}   x {one['memory'] / first['memory']:.2f} memory, "
                f"x {one['rate'] / first['rate']:.2f} tokens/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
