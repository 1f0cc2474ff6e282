"""kill -9 at random moments, half of them while a checkpoint is being written: does the run end with the same bits?

    python benchmarks/kills.py                 # 20 kills of a run of one worker, about ten minutes

The run has Muon, a moving average and gradient accumulation, and writes a checkpoint at every third step. It is started
again by the same command until the kills are used up, and then ends. Every file of its last checkpoint is compared with
that of a run that was never killed, byte by byte, and every row of `metrics.jsonl`, but for times and memory.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RECIPE = """
[model]
width = 128
depth = 4
vocabulary = 2048
pattern = ["gated_delta", "kimi_delta", "mamba2", "attention"]
[model.gated_delta]
heads = 4
key_dim = 24
value_dim = 48
[model.kimi_delta]
heads = 4
key_dim = 32
value_dim = 32
[model.mamba2]
heads = 4
head_dim = 64
state_dim = 32
[model.attention]
heads = 4
position = "rope"
[model.mlp]
width = 352
[data]
source = "{source}"
tokenizer = "train:2048"
length = 128
rows = 8
[train]
tokens = {tokens}
optimizer = "muon"
learning_rate = 4e-3
average = 0.9
accumulate = 2
checkpoints = {checkpoints}
evaluations = 4
evaluation_tokens = 4096
precision = "float32"
"""
MEASURED = {"seconds", "tokens_per_second", "flops_utilisation", "peak_memory_bytes"}


def begin(recipe: Path, out: Path) -> subprocess.Popen:
    """Start the verb."""
    command = [sys.executable, "-m", "interlace", "train", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen, out: Path, chance: random.Random, while_writing: bool) -> str:
    """Kill -9 at a random moment after a first new step; return what it hit. "" if the run ended before."""
    metrics = out / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= before):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 1.5))
    if while_writing:
        while process.poll() is None and not any(out.glob("checkpoints/*.partial")):
            pass
        time.sleep(chance.uniform(0, 0.02))
    if process.poll() is not None:
        return ""
    process.kill()
    process.wait()
    return "a checkpoint" if any(out.glob("checkpoints/*.partial")) else "a step"


def rows(out: Path) -> list[dict]:
    """Return the rows of the metrics, without what is measured."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        package = Path(json.__file__).parent.parent / "email"
        recipe = home / "recipe.toml"
        recipe.write_text(
            RECIPE.format(source=package, tokens=options.steps * 1024, checkpoints=options.steps // 3), encoding="utf-8"
        )
        if begin(recipe, home / "whole").wait():
            raise SystemExit("the run that is not killed fails; start it by hand")
        hits: Counter[str] = Counter()
        while sum(hits.values()) < options.kills:
            number = sum(hits.values())
            process = begin(recipe, home / "killed")
            hit = kill(process, home / "killed", chance, number % 2 == 1)
            if not hit:
                raise SystemExit(f"the run ended after {number} kills; give it more --steps")
            hits[hit] += 1
            steps = len(rows(home / "killed"))
            print(f"kill {number + 1}: in {hit}; {steps} of {options.steps} steps are written", flush=True)
        if begin(recipe, home / "killed").wait():
            raise SystemExit("the run does not go on; start it by hand")
        last = f"checkpoints/step-{options.steps}"
        files = sorted(p.relative_to(home / "whole") for p in (home / "whole" / last).rglob("*") if p.is_file())
        other = [p for p in files if (home / "whole" / p).read_bytes() != (home / "killed" / p).read_bytes()]
        same = rows(home / "whole") == rows(home / "killed")
        print(f"{sum(hits.values())} kills {dict(hits)}: of {len(files)} files {len(other)} differ")
        print("rows of metrics.jsonl are", "the same" if same else "NOT the same")
        raise SystemExit(1 if other or not same else 0)


if __name__ == "__main__":
    main()
