"""Join the other workers that torchrun started, and leave them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch

from interlace.base.errors import ConfigError, Failure, InterlaceError, first_line
from interlace.base.package import VERSION
from interlace.train.parallel.plan import NAMES, RATES, check_fits, costs, laid_out, stretch
from interlace.train.recipe import Recipe
from interlace.train.workers import Alone

GPU_PATIENCE = timedelta(minutes=30)  # of a collective between GPUs, which waits for no reading of text


def started_workers() -> int:
    """Return how many workers torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: str) -> str:
    """Return the device of this worker, where several share a machine.

    Raises:
        ConfigError: several workers would share a GPU.
    """
    if started_workers() == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise ConfigError(f"--device: {device} is one GPU, and there are {started_workers()} workers; write cuda")
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("--device: LOCAL_RANK is not set, which says whose GPU is whose; start workers by torchrun")
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(recipe: Recipe, device: str = "cpu") -> Iterator[Alone]:
    """Join the workers of a run: one alone, or those that torchrun started.

    Raises:
        ConfigError: sizes do not fit the number of workers, rows or heads do not divide among them, or the workers
            were given different recipes or run different versions.
    """
    workers = started_workers()
    stages = recipe.stages(Path()) or [("", recipe)]
    for name, stage in stages:
        try:
            check_fits(stage, laid_out(stage.parallel, workers))
        except ConfigError as error:
            raise ConfigError(f"stage.{name}: {error}" if name else str(error)) from None
    if workers == 1:
        yield Alone()
        return
    import torch.distributed as dist

    from interlace.train.parallel.alive import Alive
    from interlace.train.parallel.workers import PATIENCE, Grid, Workers

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    if on_gpu:
        dist.group.WORLD._get_backend(torch.device("cuda"))._set_default_timeout(GPU_PATIENCE)  # type: ignore[union-attr]
    rank = dist.get_rank()
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    start = os.environ.get("TORCHELASTIC_RUN_ID", "") + os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    alive = Alive(dist.PrefixStore(f"interlace {start}", store), rank, workers)  # the store outlives a restart
    reason, failed = "", True
    try:
        _agree([stage for _, stage in stages])
        alive.start()
        yield Workers(Grid(**laid_out(stages[0][1].parallel, workers), by_heads=False), device)
        failed = False
    except BaseException as error:
        reason = first_line(error)
        if _lost_another(error):  # its name and reason are known in a moment
            alive.wait()
            reason = str(error).rpartition("Last error:")[2].strip()[:300] or reason  # NCCL's own words
            raise Failure(f"worker {rank}: has lost the connection to the other workers: {reason}") from error
        if isinstance(error, InterlaceError) and error.shared:
            reason = ""  # all workers know it already
        raise
    finally:
        alive.stop(reason)
        if not (failed and on_gpu):  # which would wait for kernels that may never end
            dist.destroy_process_group()


def _lost_another(error: BaseException) -> bool:
    """Return whether a collective failed because another worker has gone; torch has no one class for it."""
    words = ("gloo", "NCCL", "Connection reset", "Connection closed")
    own = ("out of memory", "invalid usage", "invalid argument")  # faults of this worker
    said = str(error)
    return isinstance(error, RuntimeError) and any(w in said for w in words) and not any(w in said for w in own)


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


def _agree(stages: Sequence[Recipe]) -> None:
    """Raise ConfigError unless all workers were given one recipe, and run one version."""
    from interlace.train.parallel.workers import agree

    given = [{**stage.to_dict(), "parallel": stage.parallel.model_dump()} for stage in stages]
    agree("recipe", hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16])
    agree("version of interlace", VERSION)
    agree("version of torch", torch.__version__)
