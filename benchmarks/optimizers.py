"""Muon beside AdamW on quickstart's hybrid: rates swept for both, three seeds, tokens to the same held-out score.

    python benchmarks/optimizers.py            # about half an hour on one core

The best rate of a sweep lies inside it: a sweep whose best rate is its first or last one is continued by a factor of
two. Each run has several horizons, at which its rate has fallen: one run tells the score of every number of tokens.
"Tokens to the same score": where Muon's median reaches AdamW's last one, between horizons by a line, as a share of its
tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from interlace.data.batches import Batches
from interlace.data.library import sources
from interlace.data.prepare import prepare
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.model.model import HybridLM
from interlace.study.quickstart.contest import LENGTH, ROWS, configs
from interlace.train.recipe import TrainSettings
from interlace.train.schedule import horizon_steps
from interlace.train.steps import take_steps
from interlace.train.trainer import Trainer

RATES = {"adamw": (8e-3, 16e-3, 32e-3), "muon": (16e-3, 32e-3, 64e-3)}
HORIZONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def run(corpus: Corpus, held: HeldOut, optimizer: str, rate: float, tokens: int, seed: int, horizons=()) -> dict:
    """Train once; return tokens and scores at each horizon, and seconds."""
    batches = Batches(corpus.splits["train"], ROWS, LENGTH, seed)
    steps = tokens // batches.tokens
    torch.manual_seed(seed)
    model = HybridLM(configs(corpus.tokenizer.vocabulary, corpus.tokenizer.eos)["hybrid"])
    settings = TrainSettings(tokens=tokens, optimizer=optimizer, learning_rate=rate, seed=seed, horizons=horizons)
    trainer = Trainer.of(model, settings, steps)
    ends, scores, began = horizon_steps(steps, horizons), [], time.perf_counter()
    spent = 0.0

    def after(one: Trainer, _: object) -> None:
        nonlocal spent, began
        if one.done in ends:
            spent += time.perf_counter() - began
            scores.append([one.done * batches.tokens, held.score(one.model)["held_out_bits_per_byte"]])
            began = time.perf_counter()

    take_steps([trainer], batches.batch, after)
    return {"optimizer": optimizer, "rate": rate, "seed": seed, "scores": scores, "seconds": spent}


def reached(scores: list[list[float]], level: float) -> float:
    """Return the tokens at which a falling curve reaches a level; infinity if it does not."""
    for (t0, s0), (t1, s1) in pairwise(scores):
        if s1 <= level:
            return t0 + (t1 - t0) * max(0.0, min(1.0, (s0 - level) / (s0 - s1))) if s0 > level else t0
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        prepare(sources(None), "train:2048", Path(folder) / "data")
        corpus = Corpus.open(Path(folder) / "data")
        held = HeldOut(corpus, LENGTH, 32_768)
        best: dict[str, float] = {}
        runs: dict[str, list[dict]] = {}

        def one(optimizer: str, rate: float, seed: int) -> dict:
            found = run(corpus, held, optimizer, rate, options.tokens, seed, HORIZONS)
            print(json.dumps(found), flush=True)
            return found

        for optimizer, rates in RATES.items():
            swept = {rate: one(optimizer, rate, 0) for rate in rates}
            while True:
                best[optimizer] = min(swept, key=lambda rate: swept[rate]["scores"][-1][1])
                if best[optimizer] == max(swept):
                    rate = max(swept) * 2
                elif best[optimizer] == min(swept):
                    rate = min(swept) / 2
                else:
                    break
                swept[rate] = one(optimizer, rate, 0)
            runs[optimizer] = [swept[best[optimizer]]]
        for seed in range(1, options.seeds):
            for optimizer, rate in best.items():
                runs[optimizer].append(one(optimizer, rate, seed))
    curves = {
        name: [
            [points[0][0], statistics.median(score for _, score in points)]
            for points in zip(*(r["scores"] for r in some), strict=True)
        ]
        for name, some in runs.items()
    }
    last = curves["adamw"][-1]
    print(f"\n{'tokens':>10} {'AdamW':>8} {'Muon':>8}   held-out bits per byte, medians of {options.seeds} seeds")
    for (tokens, a), (_, m) in zip(curves["adamw"], curves["muon"], strict=True):
        print(f"{tokens:>10,} {a:8.4f} {m:8.4f}")
    seeds = {name: [r["scores"][-1][1] for r in some] for name, some in runs.items()}
    print("last scores by seed:", {name: [round(s, 4) for s in some] for name, some in seeds.items()})
    print("rates:", best)
    share = reached(curves["muon"], last[1]) / last[0]
    print(f"Muon reaches AdamW's last score with {share:.2f} of its tokens")
    times = {name: statistics.median(r["seconds"] for r in some) for name, some in runs.items()}
    print(
        f"seconds of a run: AdamW {times['adamw']:.0f}, Muon {times['muon']:.0f}; torch {torch.__version__}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
