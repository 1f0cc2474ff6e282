"""kill -9 at random moments, half of them while a checkpoint is being written: does the run end with the same bits?

    python benchmarks/kills.py                     # 20 kills of a run of one worker, about ten minutes
    python benchmarks/kills.py --work tuning       # adapters trained by DPO: also while the reference is computed
    python benchmarks/kills.py --work evaluation   # choices and written answers of two models

The run of training has Muon, a moving average and gradient accumulation, and writes a checkpoint at every third step.
It is started again by the same command until the kills are used up, and then ends. Every file of its last checkpoint is
compared with that of a run that was never killed, byte by byte, and every row of `metrics.jsonl`, but for times and
memory. Of tuning, the reference is compared too; of an evaluation, all items and figures.
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
TUNING = """
[data]
source = "{pairs}"
length = 128
rows = 4
[objective]
kind = "dpo"
[train]
start = "{base}"
tokens = {tokens}
learning_rate = 1e-3
checkpoints = {checkpoints}
evaluations = 4
evaluation_tokens = 1024
precision = "float32"
[train.lora]
rank = 8
dropout = 0.1
"""
TASK = """
kind = "generate"
data = "{rows}"
prompt = "{{{{ question }}}}"
by = "pattern"
pattern = "e"
max_tokens = 24
"""
MEASURED = {"seconds", "tokens_per_second", "flops_utilisation", "peak_memory_bytes"}


def begin(words: list[str], out: Path) -> subprocess.Popen:
    """Start the verb."""
    command = [sys.executable, "-m", "interlace", *words, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def written(out: Path) -> int:
    """Return the bytes of what a run has logged so far."""
    found = [out / "metrics.jsonl", *out.glob("reference/*.jsonl"), *out.glob("items/*.jsonl")]
    return sum(file.stat().st_size for file in found if file.exists())


def kill(process: subprocess.Popen, out: Path, chance: random.Random, while_writing: bool) -> str:
    """Kill -9 at a random moment after something new was logged; return what it hit. "" if the run ended before."""
    before = written(out)
    while process.poll() is None and written(out) <= before:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 1.0))
    if while_writing:
        while process.poll() is None and not any(out.glob("checkpoints/*.partial")):
            pass
        time.sleep(chance.uniform(0, 0.02))
    if process.poll() is not None:
        return ""
    process.kill()
    process.wait()
    if (out / "items").is_dir():
        return "a batch of items"
    if any(out.glob("checkpoints/*.partial")):
        return "a checkpoint"
    return "a step" if (out / "metrics.jsonl").is_file() else "the reference"


def rows(out: Path) -> list[dict]:
    """Return the rows of the metrics, without what is measured."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def lines(path: Path, made: list[dict]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def words_of(work: str, home: Path, steps: int) -> list[str]:
    """Return the command that is killed, after what it needs was made."""
    package = Path(json.__file__).parent.parent / "email"
    recipe = home / "recipe.toml"
    short = 24 if work != "training" else steps
    recipe.write_text(
        RECIPE.format(source=package, tokens=short * 1024, checkpoints=max(1, short // 3)), encoding="utf-8"
    )
    if work == "training":
        return ["train", str(recipe)]
    if begin(["train", str(recipe)], home / "base").wait():
        raise SystemExit("the base cannot be trained; start it by hand")
    count = 2000 if work == "evaluation" else 600
    asked = [f"What does def number {i} of the class return, and why?" for i in range(count)]
    if work == "tuning":
        made = [
            {"prompt": q, "chosen": f"It returns {i * 7 % 11}.", "rejected": f"self.{i * 5 % 13}"}
            for i, q in enumerate(asked)
        ]
        plan = home / "tuning.toml"
        plan.write_text(
            TUNING.format(
                pairs=lines(home / "pairs.jsonl", made), base=home / "base", tokens=steps * 512, checkpoints=steps // 3
            ),
            encoding="utf-8",
        )
        return ["train", str(plan)]
    task = home / "task.toml"
    rows_file = lines(home / "rows.jsonl", [{"question": q} for q in asked])
    task.write_text(TASK.format(rows=rows_file), encoding="utf-8")
    last = home / "base/checkpoints/step-24"
    before = home / "base/checkpoints/step-21"
    return ["evaluate", str(before), str(last), "--tasks", str(task), "--suites", "recall"]


def main() -> None:
    """Kill a run again and again, and compare what it ends with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("training", "tuning", "evaluation"), default="training")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        words = words_of(options.work, home, options.steps)
        if begin(words, home / "whole").wait():
            raise SystemExit("the run that is not killed fails; start it by hand")
        hits: Counter[str] = Counter()
        while sum(hits.values()) < options.kills:
            number = sum(hits.values())
            process = begin(words, home / "killed")
            metrics = (home / "killed/metrics.jsonl").is_file()
            hit = kill(process, home / "killed", chance, number % 2 == 1 and options.work != "evaluation" and metrics)
            if not hit:
                raise SystemExit(f"the run ended after {number} kills; give it more --steps, or fewer --kills")
            hits[hit] += 1
            print(f"kill {number + 1}: in {hit}; {written(home / 'killed'):,} bytes are logged", flush=True)
        if begin(words, home / "killed").wait():
            raise SystemExit("the run does not go on; start it by hand")
        kept = ["results.json"] if options.work == "evaluation" else []
        places = (f"checkpoints/step-{options.steps}", "reference", "items")
        files = [p for place in places for p in (home / "whole" / place).rglob("*") if p.is_file()]
        names = sorted({*(p.relative_to(home / "whole") for p in files), *map(Path, kept)})
        other = [p for p in names if (home / "whole" / p).read_bytes() != (home / "killed" / p).read_bytes()]
        same = options.work == "evaluation" or rows(home / "whole") == rows(home / "killed")
        print(f"{sum(hits.values())} kills {dict(hits)}: of {len(names)} files {len(other)} differ")
        if options.work != "evaluation":
            print("rows of metrics.jsonl are", "the same" if same else "NOT the same")
        raise SystemExit(1 if other or not same else 0)


if __name__ == "__main__":
    main()
