"""A chain of three stages on real text: pre-training, conversations, preferences; format and accuracy after each.

    python benchmarks/finetune_chain.py GSM8K-TRAIN.jsonl GSM8K-TEST.jsonl TEXT --out runs/chain    # under 40 minutes

A small hybrid is pre-trained on the training questions with their answers and on TEXT, tuned on the same as
conversations, and asked the first training questions, four times each. Its own answers become pairs: one that the
verifier finds right before a wrong one, or else one that ends in "#### number" before one that does not. On these it is
tuned again by DPO. Each stage is asked test questions that no stage has seen. Everything goes through the commands that
users have; the folder keeps every prompt and answer, and the same call goes on where it was killed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from interlace.evaluate.intervals import mean
from interlace.evaluate.run import kept_rows

FORMAT = r"#### *-?[\d,.]*\d"
MODEL = {
    "width": 192,
    "depth": 6,
    "vocabulary": 2048,
    "pattern": '["gated_delta", "gated_delta", "attention"]',
    "gated_delta.heads": 4,
    "gated_delta.key_dim": 36,
    "gated_delta.value_dim": 72,
    "attention.heads": 4,
    "attention.norm": '"output"',
    "mlp.width": 512,
}
SAMPLED, SAMPLES = 256, 4  # training questions that are asked for pairs, and how often each
STAGES = ("pre-trained", "conversations", "preferences")


def command(*words: str) -> None:
    """Run one command of interlace; its progress is shown."""
    print("interlace", *words, flush=True)
    subprocess.run([sys.executable, "-m", "interlace", *words], check=True, stdout=subprocess.DEVNULL)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSONL."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task(path: Path, data: Path, **more: Any) -> Path:
    """Write a task's file."""
    settings = {
        "kind": "generate",
        "data": str(data.resolve()),
        "prompt": "{{ question }}",
        "chat": True,
        "by": "numeric",
        "gold": "{{ answer }}",
        "max_tokens": 200,
        "format": FORMAT,
        **more,
    }
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()), encoding="utf-8")
    return path


def recipe(path: Path, model: bool = False, **tables: dict[str, Any]) -> Path:
    """Write a recipe."""
    lines = []
    if model:
        lines.append("[model]\n" + "".join(f"{key} = {value}\n" for key, value in MODEL.items()))
    for name, table in tables.items():
        lines.append(f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def pairs_of(answers: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return pairs of a model's own answers, the better one first."""
    found = []
    for row in kept_rows(answers):
        ranked = sorted(row["answers"], key=lambda a: (bool(a["right"]), a["well_formed"] and a["ended"]), reverse=True)
        best, worst = ranked[0], ranked[-1]
        better = (bool(best["right"]), best["well_formed"] and best["ended"])
        if better > (bool(worst["right"]), worst["well_formed"] and worst["ended"]) and best["text"] and worst["text"]:
            prompt = questions[row["item"]]["question"]
            found.append({"prompt": prompt, "chosen": best["text"].strip(), "rejected": worst["text"].strip()})
    return [row for row in found if row["chosen"] != row["rejected"]]


def chain(given: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Run all stages for one seed; return the figures."""
    start = time.perf_counter()
    train = rows_of(given.train)
    texts = [{"text": f"{row['question']}\n{row['answer']}"} for row in train]
    texts += [{"text": part} for part in given.text.read_text(encoding="utf-8").split("\n\n\n")]
    talks = [
        {"messages": [{"role": r, "content": row[k]} for r, k in (("user", "question"), ("assistant", "answer"))]}
        for row in train
    ]
    data = {"length": 512, "rows": 4, "held_out": 0.02}
    common = {"seed": seed, "evaluations": 4, "checkpoints": 4, "evaluation_tokens": 16_384}
    write(folder / "texts.jsonl", texts)
    write(folder / "talks.jsonl", talks)
    base, tuned, preferred = (str(folder / name) for name in ("base", "sft", "dpo"))
    tokens = {name: int(count * given.scale) for name, count in (("base", 1e6), ("sft", 6e5), ("dpo", 1e5))}
    plan = recipe(
        folder / "base.toml",
        True,
        data={**data, "source": str(folder / "texts.jsonl"), "tokenizer": "train:2048"},
        train={**common, "tokens": tokens["base"], "learning_rate": 3e-3},
    )
    command("train", str(plan), "--out", base)
    plan = recipe(
        folder / "sft.toml",
        data={**data, "source": str(folder / "talks.jsonl")},
        train={**common, "tokens": tokens["sft"], "learning_rate": 1.5e-3, "start": base},
    )
    command("train", str(plan), "--out", tuned)
    asked = task(folder / "own.toml", given.train, limit=given.sampled, samples=SAMPLES, temperature=0.8, name="own")
    command("evaluate", tuned, "--tasks", str(asked), "--seed", str(seed), "--out", str(folder / "answers"))
    pairs = pairs_of(folder / "answers/items/own.first.jsonl", train)
    found: dict[str, Any] = {"pairs": len(pairs)}
    write(folder / "pairs.jsonl", pairs)
    if len(pairs) >= 8:
        plan = recipe(
            folder / "dpo.toml",
            data={**data, "source": str(folder / "pairs.jsonl"), "held_out": 0.1},
            objective={"kind": "dpo", "beta": 0.1, "sft": 0.2},
            train={**common, "tokens": tokens["dpo"], "learning_rate": 1e-4, "start": tuned, "warmup": 0.1},
        )
        command("train", str(plan), "--out", preferred)
    test = task(folder / "gsm8k.toml", given.test, limit=given.items, name="gsm8k")
    for name, model in zip(STAGES, (base, tuned, preferred), strict=True):
        if not Path(model).is_dir():
            continue
        out = folder / f"scores-{Path(model).name}"
        command("evaluate", model, "--tasks", str(test), "--out", str(out))
        rows = list(kept_rows(out / "items/gsm8k.first.jsonl"))
        found[name] = [(a["right"], a["well_formed"], a["ended"]) for row in rows for a in row["answers"]]
    found["seconds"] = time.perf_counter() - start
    return found


def main() -> None:
    """Run the chain for each seed, and print the figures of each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=300, help="test questions")
    parser.add_argument("--sampled", type=int, default=SAMPLED, help="training questions that are asked for pairs")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens that each stage is trained on")
    given = parser.parse_args()
    results = [chain(given, seed, given.out / f"seed-{seed}") for seed in range(given.seeds)]
    print(f"\n{'stage':15} {'seed':>4} {'right':>24} {'well-formed':>24} {'ended':>24}")
    for name in STAGES:
        for seed, found in enumerate(results):
            if name not in found:
                print(f"{name:15} {seed:>4}   too few pairs")
                continue
            shown = []
            for column in range(3):
                figure = mean([float(bool(row[column])) for row in found[name]])
                shown.append(f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]")
            print(f"{name:15} {seed:>4} {shown[0]:>24} {shown[1]:>24} {shown[2]:>24}")
    print("pairs:", *(found["pairs"] for found in results))
    print(f"seconds: {sum(found['seconds'] for found in results):,.0f}")


if __name__ == "__main__":
    main()
