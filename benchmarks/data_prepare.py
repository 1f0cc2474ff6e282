"""`interlace data prepare` beside `datasets.map`: the same text, tokenizer and number of workers, in one run.

    pip install datasets
    python benchmarks/data_prepare.py TEXT... --megabytes 100          # speed, and the ratio to datasets
    python benchmarks/data_prepare.py TEXT... --megabytes 2000 --alone # memory over 2 GB

The script makes JSONL of the given size from the given texts: their paragraphs, drawn and numbered, so that no two rows
are equal. Ours reads, hashes, drops duplicates, encodes and writes checksummed shards. Theirs is `map` alone, and `map`
with the loading of the rows before it. Memory is the most of this process and its workers together, twice a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer

OURS = """
import sys
from pathlib import Path
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
prepare(Sources([Path(sys.argv[1])], aside=[]), sys.argv[2], Path(sys.argv[3]), workers=int(sys.argv[4]),
        drop_duplicates=True)
"""
THEIRS = """
import sys, time
import datasets
from tokenizers import Tokenizer
datasets.disable_progress_bars()
began = time.perf_counter()
rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
tokenizer = Tokenizer.from_file(sys.argv[2])
def encode(batch):
    return {"ids": [e.ids for e in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}
loaded = time.perf_counter()
found = rows.map(encode, batched=True, num_proc=int(sys.argv[4]), remove_columns=rows.column_names)
print(loaded - began, time.perf_counter() - loaded, sum(map(len, found["ids"][:1000])))
"""


def make(texts: list[Path], path: Path, size: int) -> None:
    """Write JSONL of about so many bytes."""
    paragraphs = [p for t in texts for p in t.read_text(errors="replace").split("\n\n") if len(p) > 40]
    draw, written, number = random.Random(0), 0, 0
    with open(path, "w") as file:
        while written < size:
            text = f"{number}. " + "\n\n".join(draw.choices(paragraphs, k=draw.choice((1, 2, 4, 8, 32))))
            line = json.dumps({"id": number, "text": text}) + "\n"
            file.write(line)
            written += len(line)
            number += 1


def tree_bytes(pid: int) -> int:
    """Return the resident memory of a process and all below it, shared pages counted once for each."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) << 10
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    return total + sum(tree_bytes(int(child)) for child in children)


def timed(code: str, *arguments: str) -> tuple[float, int, str]:
    """Run a script; return (seconds, most bytes, what it printed)."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.5):
            most = max(most, tree_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - began, most, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave datasets out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        make(options.texts, here / "sample.jsonl", 8 << 20)
        prepare(Sources([here / "sample.jsonl"]), f"train:{options.vocabulary}", here / "sample")
        tokenizer = here / "sample/tokenizer.json"
        assert Tokenizer.from_file(tokenizer).vocabulary <= options.vocabulary
        make(options.texts, here / "rows.jsonl", options.megabytes * 1_000_000)
        size = (here / "rows.jsonl").stat().st_size
        ours, theirs, loaded = [], [], []
        for _ in range(1 if options.alone else options.rounds):
            shutil.rmtree(here / "out", ignore_errors=True)
            arguments = (str(here / "rows.jsonl"), str(tokenizer), str(here / "out"), str(options.workers))
            seconds, most, _ = timed(OURS, *arguments)
            ours.append(seconds)
            print(
                f"ours: {seconds:.1f} s, {size / seconds / 1e6:.2f} MB/s, most memory {most / 2**20:,.0f} MiB",
                flush=True,
            )
            if options.alone:
                continue
            shutil.rmtree(here / "cache", ignore_errors=True)
            _, most, out = timed(THEIRS, *arguments[:2], str(here / "cache"), arguments[3])
            load, mapped = map(float, out.split()[:2])
            theirs.append(mapped)
            loaded.append(load + mapped)
            print(f"datasets: load {load:.1f} s, map {mapped:.1f} s, most memory {most / 2**20:,.0f} MiB", flush=True)
    if not options.alone:
        mine, alone, both = (statistics.median(times) for times in (ours, theirs, loaded))
        print(f"{size / 1e6:.0f} MB, {options.workers} workers, medians of {options.rounds}: ours {mine:.1f} s")
        print(f"map takes {alone / mine:.2f} times that, load and map {both / mine:.2f} times")


if __name__ == "__main__":
    main()
