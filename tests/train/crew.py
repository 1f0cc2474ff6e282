"""Several workers on one machine, for tests: one process imports everything once, and forks the others.

`python crew.py JOBS RESULT`: JOBS is a JSON list of jobs of one number of workers, RESULT is written by the first.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import interlace
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch
from interlace.layers.low_rank import adapters
from interlace.train import trainer as trainers
from interlace.train.objectives.preference import Preference
from interlace.train.parallel.workers import Grid, Workers
from interlace.train.recipe import ObjectiveSettings, TrainSettings
from interlace.train.trained import set_trained
from interlace.train.trainer import Trainer
from interlace.train.workers import Alone

SIZES = {"width": 32, "depth": 4, "vocabulary": 64, "init_std": 0.1}
# Small models of released kinds: their mixers, norms, multipliers and experts.
MODELS = {
    "olmo": {
        **SIZES,
        "pattern": ["gated_delta", "gated_delta", "attention"],
        "gated_delta": {"heads": 4, "key_dim": 6, "value_dim": 10},
        "attention": {"heads": 4, "kv_heads": 2, "norm": "output", "position": "none"},
        "mlp": {"width": 44},
    },
    "kimi": {
        **SIZES,
        "pattern": ["kimi_delta", "kimi_delta", "latent"],
        "kimi_delta": {"heads": 4, "key_dim": 6, "value_dim": 10},
        "latent": {
            "type": "latent_attention",
            "heads": 4,
            "latent": 12,
            "key_dim": 6,
            "shared_dim": 4,
            "value_dim": 8,
            "mlp": "moe",
        },
        "mlp": {"width": 44},
        "moe": {
            "experts": 6,
            "chosen": 2,
            "width": 12,
            "scores": "sigmoid",
            "correction": True,
            "scale": 2.0,
            "shared_width": 12,
        },
    },
    "nemotron": {
        **SIZES,
        "depth": 5,
        "pattern": ["mamba2", "mlp", "attention", "moe", "mamba2"],
        "mamba2": {"heads": 4, "head_dim": 10, "groups": 2, "state_dim": 6, "mlp": False},
        "attention": {"heads": 4, "kv_heads": 1, "position": "none", "qk_norm": "none", "mlp": False},
        "mlp": {"width": 44, "activation": "relu2"},
        "moe": {
            "experts": 6,
            "chosen": 2,
            "width": 12,
            "activation": "relu2",
            "scores": "sigmoid",
            "correction": True,
            "latent": 16,
            "shared_width": 12,
        },
    },
    "granite": {
        **SIZES,
        "pattern": ["mamba2", "mamba2", "attention"],
        "mamba2": {"heads": 4, "head_dim": 10, "state_dim": 6, "mlp": "moe"},
        "attention": {"heads": 4, "kv_heads": 2, "scale": 0.2, "qk_norm": "none", "mlp": "moe"},
        "moe": {"experts": 6, "chosen": 2, "width": 12, "shared_width": 12},
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.3,
        "logits_divisor": 4.0,
    },
    "others": {
        **SIZES,
        "pattern": ["mamba", "hyena", "lstm", "attention"],
        "mamba": {"inner": 40, "state_dim": 4, "step_rank": 3},
        "hyena": {"channels": 24},
        "lstm": {"hidden": 24},
        "attention": {"heads": 4, "window": 40, "gate": True, "qk_norm": "head"},
        "mlp": {"width": 44},
    },
    "mamba": {
        **SIZES,
        "pattern": ["mamba", "hyena"],
        "mamba": {"inner": 40, "state_dim": 4, "step_rank": 3},
        "hyena": {"channels": 24},
        "mlp": {"width": 44},
    },
}
ROWS = ((24, 40, 64), (100, 28), (7, 121), (128,))  # documents of four rows
# Lengths whose gradients are well conditioned: weights that differ by 6e-8 change no norm by more than 6e-6 in ten
# steps on one worker. With a document of 330 tokens, the norm of "olmo" changes by 8e-3.
CROSSING = ((20, 110, 14), (24, 24))  # one goes over the border of two ranks, and fills the second of four
WIDE = ((24, 70, 2), (50, 46))  # two rows, each with one over its middle
STEPS = 5
ALONE = {}  # what one worker computes, by job


PAIRS = ((9, 5, 3), (1, 14, 17), (26, 8, 12), (3, 30, 2), (11, 6, 6))  # prompts with two answers


def pairs(step):
    """Five pairs of answers, as `interlace.data.batches.Pairs` hands them out."""
    given = batch(step, PAIRS)
    kinds = torch.tensor([False, True, True] * len(PAIRS)).repeat_interleave(torch.tensor(given.segments.lengths))
    return replace(given, targets=torch.where(kinds, given.tokens, IGNORE), pairs=torch.arange(len(PAIRS)))


def batch(step, rows=ROWS):
    lengths = [length for row in rows for length in row]
    tokens = torch.randint(64, (sum(lengths),), generator=torch.Generator().manual_seed(step))
    targets, segments = tokens.roll(-1), Segments.from_lengths(lengths)
    targets[segments.last()] = IGNORE
    return Batch(tokens, targets, segments)


def rows_of(job):
    plain = ROWS if job["grid"].get("context", 1) == 1 else WIDE if job["grid"].get("shard", 1) > 1 else CROSSING
    return job.get("rows", plain)


def trainer_of(job, workers):
    torch.manual_seed(0)
    model = interlace.HybridLM(interlace.ModelConfig.from_dict(MODELS[job["model"]]))
    settings = TrainSettings(tokens=1, learning_rate=3e-4, warmup=0.0, clip=0.5, **job.get("settings", {}))
    set_trained(model, settings)
    for _, adapter in adapters(model):  # B starts at zero, and A would have no gradient
        torch.nn.init.normal_(adapter.B, std=0.1)
    workers.prepare(model)

    def objective(plain):
        if "objective" not in job:
            return plain
        known = -60 * torch.rand(len(PAIRS), 2, dtype=torch.float64)
        settings = ObjectiveSettings(**job["objective"], share_prompt=isinstance(workers, Alone) and workers.count == 1)
        return Preference(settings, known, plain.precision, plain.unevenness)

    return Trainer.of(model, settings, STEPS, workers=workers, objective=objective)


def trained(job, workers):
    """(loss and gradient norm of each step; the first gradients and the last weights, by parameter)."""
    trainer = trainer_of(job, workers)
    parameters = dict(trainer.model.named_parameters())
    numbers, gradients = [], {}
    for step in range(STEPS):
        shares = trainer.shares(pairs(step) if "objective" in job else batch(step, rows_of(job)))
        if not step:
            trainer.gradients(shares)
            gradients = {n: whole(workers, n, p.grad) for n, p in parameters.items() if p.grad is not None}
            trainer.optimizer.zero_grad()
        taken = trainer.step(*shares)
        numbers.append((taken.loss, taken.grad_norm))
    return numbers, gradients, {n: whole(workers, n, p) for n, p in parameters.items()}


def whole(workers, name, x):
    return workers.whole(name, workers.local(x)) if isinstance(workers, Workers) else x.detach().clone()


def compared(job, workers):
    """The largest relative differences from one worker alone."""
    found = trained(job, workers)
    if not workers.first:
        return None
    plain = {key: value for key, value in job.get("settings", {}).items() if key != "compile"}
    known = json.dumps([job["model"], rows_of(job), plain, job.get("objective")])
    if known not in ALONE:
        ALONE[known] = trained({**job, "settings": plain}, Alone())
    (numbers, *tensors), (alone, *others) = found, ALONE[known]
    result = {
        "loss": max(abs(a[0] - b[0]) / abs(b[0]) for a, b in zip(numbers, alone, strict=True)),
        "norm": max(abs(a[1] - b[1]) / b[1] for a, b in zip(numbers, alone, strict=True)),
    }
    for what, mine, theirs in zip(("gradients", "weights"), tensors, others, strict=True):
        assert mine.keys() == theirs.keys()
        scale = max(float(x.norm()) / x.numel() ** 0.5 for x in theirs.values())  # of an element
        differences = {
            name: float((mine[name] - x).norm()) / max(float(x.norm()), 1e-2 * scale * x.numel() ** 0.5)
            for name, x in theirs.items()
        }
        result[f"each of {what}"], result["of"] = max((d, name) for name, d in differences.items())
        apart = sum(float((mine[name] - x).square().sum()) for name, x in theirs.items())
        result[what] = (apart / sum(float(x.square().sum()) for x in theirs.values())) ** 0.5
    return result


@torch.no_grad()
def leaks(job, workers):
    """How much a document's losses change when every other document of the pack is replaced, at most."""
    trainer = trainer_of(job, workers)
    model, given = trainer.model.eval(), batch(0, rows_of(job))
    spans = given.segments.spans()

    def losses(tokens):
        share = trainer.shares(replace(given, tokens=tokens))[0]
        logits = model.logits(model.read(share.tokens, share.segments).hidden)
        workers.reshard(model)
        each = torch.nn.functional.cross_entropy(logits, share.targets, ignore_index=IGNORE, reduction="none")
        parts = [torch.empty_like(each) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, each)
        return torch.cat(parts)

    first, worst = losses(given.tokens), 0.0
    for a, b in spans:
        other = (given.tokens + 1 + torch.arange(given.tokens.numel())) % 64
        other[a:b] = given.tokens[a:b]
        worst = max(worst, float((losses(other)[a:b] - first[a:b]).abs().max()))
    return {"change": worst}


KINDS = {"compared": compared, "leaks": leaks}


def work(rank, jobs, result):
    """Do all jobs as one of their workers."""
    workers = jobs[0]["workers"]
    store = dist.FileStore(f"{result}.store", workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    found, plain = [], trainers.through
    for job in jobs:
        trainers.through = partial(plain, backend=job["backend"]) if "backend" in job else plain
        found.append(KINDS[job.get("kind", "compared")](job, Workers(Grid(**job["grid"]))))
        dist.barrier()
    if rank == 0:
        Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()


def main(jobs_file, result):
    torch.set_num_threads(1)
    jobs = json.loads(Path(jobs_file).read_text())
    rank = next((rank for rank in range(1, jobs[0]["workers"]) if not os.fork()), 0)
    try:
        work(rank, jobs, result)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
