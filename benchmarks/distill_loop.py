"""The loop closed: a teacher trained here answers, its answers are checked, and smaller students learn from them.

    python benchmarks/distill_loop.py [--seeds 3] [--out runs/loop]

recipes/distill-loop/ holds every step. For each seed: a teacher is trained on gold conversations; it answers problems
it has not seen; students of one size are trained on the same number of rows, of one of three sorts: answers that were
verified, answers as they came, and gold; all are asked the same held-out problems. Prints shares of them solved.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from interlace.cli.main import run as interlace
from interlace.distill.export import export
from interlace.distill.run import generate

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "distill-loop"
SORTS = ("verified", "unverified", "gold")


def train(recipe: Path, out: Path, source: Path, *more: str) -> None:
    """As a user would, without the tables."""
    with contextlib.redirect_stdout(sys.stderr):
        code = interlace(["train", str(recipe), f"data.source={source}", *more, "--out", str(out)])
    if code:
        raise SystemExit(code)


def solved(checkpoint: Path, problems: Path, work: Path, name: str) -> float:
    """Share of held-out problems that a model solves."""
    folder = work / "evaluate"
    folder.mkdir(exist_ok=True)
    shutil.copy(FOLDER / "evaluate.toml", folder)
    (folder / "work").mkdir(exist_ok=True)
    shutil.copy(problems, folder / "work" / "held_out.jsonl")
    found = generate(folder / "evaluate.toml", work / f"evaluate-{name}", [f"teachers.own.checkpoint={checkpoint}"])
    rows = found["steps"][-1]["rows"]
    return rows.get("ok", 0) / sum(found["steps"][0]["rows"].values())


def first_rows(source: Path, out: Path, count: int) -> Path:
    """The first rows of a file."""
    with open(source, encoding="utf-8") as read, open(out, "w", encoding="utf-8") as write:
        for _, line in zip(range(count), read, strict=False):
            write.write(line)
    return out


def one(seed: int, out: Path, tokens: list[str]) -> dict[str, float]:
    """A teacher and its students."""
    work = out / f"seed{seed}"
    spec = importlib.util.spec_from_file_location("make_problems", FOLDER / "make_problems.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    sys.argv[1:] = [str(work), str(seed)]
    maker.main()
    train(FOLDER / "teacher.toml", work / "teacher", work / "gold.jsonl", f"train.seed={seed}", *tokens)
    teacher = f"teachers.own.checkpoint={work / 'teacher'}"
    for name in ("recipe", "unverified"):
        folder = work / "distill"
        (folder / "work").mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / f"{name}.toml", folder)
        shutil.copy(work / "asked.jsonl", folder / "work" / "asked.jsonl")
        made = generate(folder / f"{name}.toml", work / "run", [teacher])
        export(work / "run", work / f"data-{name}", parquet=False)
    asked = made["spent"]["requests"]
    rows = len((work / "data-recipe" / "train.jsonl").read_text(encoding="utf-8").splitlines())
    sources = {
        "verified": work / "data-recipe" / "train.jsonl",
        "unverified": work / "data-unverified" / "train.jsonl",
        "gold": work / "gold.jsonl",
    }
    found = {"seed": seed, "rows": rows, "answers": asked}
    found["teacher"] = solved(work / "teacher", work / "held_out.jsonl", work, "teacher")
    found["right at temperature 1"] = round(rows / asked, 3)
    for sort in SORTS:
        data = first_rows(sources[sort], work / f"rows-{sort}.jsonl", rows)
        train(FOLDER / "student.toml", work / sort, data, f"train.seed={seed}", *tokens)
        found[sort] = solved(work / sort, work / "held_out.jsonl", work, sort)
    return found


def main() -> None:
    """Print a line for each seed, and medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/loop"))
    parser.add_argument("--tokens", type=int, default=0, help="to train on, for a quick look")
    given = parser.parse_args()
    tokens = [f"train.tokens={given.tokens}"] if given.tokens else []
    began = time.monotonic()
    results = []
    for seed in range(given.seeds):
        results.append(one(seed, given.out, tokens))
        print(json.dumps(results[-1]), flush=True)
    names = ("teacher", *SORTS)
    medians = {name: round(median(r[name] for r in results), 3) for name in names}
    print(json.dumps({"medians": medians, "minutes": round((time.monotonic() - began) / 60, 1)}))


if __name__ == "__main__":
    main()
