"""What each stage of a recipe does: held-out bits per byte by position, and recall of a passage by distance.

    interlace train recipes/stages-small.toml data.source=TEXT... --out runs/stages     # under 25 minutes on two cores
    python benchmarks/stages.py runs/stages

Bits per byte: of held-out documents joined to texts of eight times the first stage's length, by position in the text.
Recall: a passage of 64 tokens of held-out text, other text after it, and the passage again: by how many nats per token
its second reading is cheaper than the same passage after other text alone, by the distance between both. Intervals are
two standard errors over passages.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import torch

import interlace
from interlace.base.segments import Segments
from interlace.model.model import HybridLM
from interlace.runs.training import TrainingRun
from interlace.train.corpus import again
from interlace.train.recipe import DataSettings

PASSAGE, TIMES = 64, 8


@torch.no_grad()
def nats(model: HybridLM, tokens: torch.Tensor) -> torch.Tensor:
    """Return -log p of each token but the first, given those before it."""
    logits, _ = model(tokens, Segments.from_lengths([tokens.numel()]))
    log_p = logits[:-1].float().log_softmax(-1)
    return -log_p.gather(1, tokens[1:, None]).squeeze(1)


def by_position(model: HybridLM, held: torch.Tensor, size_bytes: torch.Tensor, length: int) -> list[float]:
    """Return bits per byte in each stretch of `length` tokens, over texts of TIMES as many."""
    texts = held.split(TIMES * length)
    sums, counts = torch.zeros(TIMES), torch.zeros(TIMES)
    for text in texts:
        if text.numel() < TIMES * length:
            break
        each = nats(model, text)
        places = torch.arange(1, text.numel()) // length
        sums.index_add_(0, places, each)
        counts.index_add_(0, places, size_bytes[text[1:]].float())
    return (sums / counts / math.log(2)).tolist()


def recall(model: HybridLM, held: torch.Tensor, distance: int, passages: int) -> tuple[float, float]:
    """Return (nats per token that are saved by having read a passage `distance` tokens before, two standard errors)."""
    saved = []
    for number in range(passages):
        start = number * (PASSAGE + distance) % (held.numel() - 2 * PASSAGE - 2 * distance)
        passage, filler = held[start : start + PASSAGE], held[start + PASSAGE : start + PASSAGE + distance - PASSAGE]
        other = held[start + PASSAGE + distance : start + 2 * PASSAGE + distance]
        costs = [
            float(nats(model, torch.cat((first, filler, passage)))[-PASSAGE + 1 :].mean()) for first in (other, passage)
        ]
        saved.append(costs[0] - costs[1])
    return statistics.mean(saved), 2 * statistics.stdev(saved) / math.sqrt(len(saved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--passages", type=int, default=24)
    options = parser.parse_args()
    ended = {p.parent: p.stat().st_mtime for p in options.run.glob("*/metrics.jsonl")}
    stages = sorted(ended, key=lambda folder: ended[folder])
    first = TrainingRun(stages[0])
    data = DataSettings.model_validate(first.config()["data"])
    corpus = again(data, stages[0] / "data")
    split = corpus.splits["held_out"]
    held = torch.from_numpy(split.read(0, split.count))
    sizes = corpus.tokenizer.byte_lengths()
    print(f"held-out bits per byte by position, in stretches of {data.length} tokens")
    found = {}
    for stage in stages:
        model = interlace.load(stage)
        found[stage.name] = {"positions": by_position(model, held, sizes, data.length)}
        print(f"{stage.name:>10} " + " ".join(f"{x:6.3f}" for x in found[stage.name]["positions"]), flush=True)
    print(f"nats per token that are saved on a passage of {PASSAGE} tokens, read so many tokens before")
    distances = [data.length * n // 2 for n in (1, 2, 4, 8, 16)]
    print(" " * 10 + " ".join(f"{d:>13}" for d in distances))
    for stage in stages:
        model = interlace.load(stage)
        row = [recall(model, held, d, options.passages) for d in distances]
        found[stage.name]["recall"] = dict(zip(map(str, distances), row, strict=True))
        print(f"{stage.name:>10} " + " ".join(f"{mean:6.3f} ±{error:5.3f}" for mean, error in row), flush=True)
    seconds = {s.name: sum(m.get("seconds", 0) for m in TrainingRun(s).metrics()) for s in stages}
    print("seconds of training:", {name: round(x) for name, x in seconds.items()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
