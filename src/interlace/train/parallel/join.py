"""Join the other workers that torchrun started, and leave them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from interlace.base.errors import Failure, first_line
from interlace.base.package import VERSION
from interlace.train.parallel.plan import NAMES, check_fits, costs, laid_out, way
from interlace.train.recipe import Recipe
from interlace.train.workers import Alone

PATIENCE = timedelta(days=7)  # of a collective: who has died is known by its signs of life
RATES = {"cpu": (1e9, 5e10), "cuda": (5e10, 2e14)}  # bytes and FLOPs per second, about, of one worker


def started_workers() -> int:
    """Return how many workers torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: str) -> str:
    """Return the device of this worker, where several share a machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and started_workers() > 1 else device


@contextmanager
def joined(recipe: Recipe, device: str = "cpu") -> Iterator[Alone]:
    """Join the workers of a run: one alone, or those that torchrun started.

    Raises:
        ConfigError: sizes do not fit the number of workers, rows or heads do not divide among them, or the workers
            were given different recipes or run different versions.
    """
    workers = started_workers()
    sizes = laid_out(recipe.parallel, workers)
    check_fits(recipe, sizes)
    if workers == 1:
        yield Alone()
        return
    import torch.distributed as dist

    from interlace.train.parallel.alive import Alive
    from interlace.train.parallel.workers import Grid, Workers

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    rank = dist.get_rank()
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    start = os.environ.get("TORCHELASTIC_RUN_ID", "") + os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    alive = Alive(dist.PrefixStore(f"interlace {start}", store), rank, workers)  # the store outlives a restart
    reason = ""
    try:
        _agree(recipe)
        alive.start()
        yield Workers(Grid(**sizes, by_heads=_by_heads(recipe, sizes, device)), device)
    except BaseException as error:
        if _lost_another(error):  # its name and reason are known in a moment
            alive.wait()
            reason = first_line(error)
            raise Failure(f"worker {rank}: has lost the others: {reason}") from error
        reason = "" if getattr(error, "shared", False) else first_line(error)  # of which all workers know already
        raise
    finally:
        alive.stop(reason)
        dist.destroy_process_group()


def _lost_another(error: BaseException) -> bool:
    """Return whether a collective failed because another worker has gone; torch has no one class for it."""
    words = ("gloo", "NCCL", "Connection reset", "Connection closed")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _by_heads(recipe: Recipe, sizes: dict[str, int], device: str) -> bool:
    places, how = sizes["context"], recipe.parallel.context_by
    if places == 1 or how != "auto":
        return how == "heads"
    rates = RATES[torch.device(device).type]
    return way(recipe.model, stretch(recipe, sizes), places, rates, tensor=sizes["tensor"]) == "heads"


def stretch(recipe: Recipe, sizes: dict[str, int]) -> int:
    """Return the tokens that a worker has of a part of a batch."""
    shares = sizes["replicate"] * sizes["shard"] * recipe.train.accumulate
    return recipe.data.rows * recipe.data.length // shares // sizes["context"]


def context_estimate(recipe: Recipe, device: str = "cpu") -> dict[str, float]:
    """Return about how long recurrent layers take to go on over the context in a forward pass, by "state" and "heads".

    Empty without a context; a way that heads do not divide for is left out.
    """
    sizes = {name: 1 if (size := getattr(recipe.parallel, name)) == "auto" else int(size) for name in NAMES}
    if sizes["context"] == 1:
        return {}
    found = costs(recipe.model, stretch(recipe, sizes), sizes["context"], tensor=sizes["tensor"])
    rates = RATES[torch.device(device).type]
    return {name: cost.seconds(*rates) for name, cost in found.items() if cost.possible}


def _agree(recipe: Recipe) -> None:
    """Raise ConfigError unless all workers were given one recipe, and run one version."""
    from interlace.train.parallel.workers import agree

    text = json.dumps({**recipe.to_dict(), "parallel": recipe.parallel.model_dump()}, sort_keys=True)
    agree("recipe", hashlib.sha256(text.encode()).hexdigest()[:16])
    agree("version of interlace", VERSION)
    agree("version of torch", torch.__version__)
