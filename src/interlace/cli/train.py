"""`interlace train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from interlace.cli.output import Meter, count, duration, err, print_json, print_table, quantity, say, size
from interlace.cli.values import Place, Whole


def train(
    recipe: Place,
    *overrides: str,
    out: Place | None = None,
    device: str = "cpu",
    log: str = "",
    allow_changes: str = "",
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    devices: Whole = 0,
    device_kind: str = "h100",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train one model on your own text, or on a folder that `interlace data prepare` wrote.

    Killed at any moment and started again, the same command goes on, and ends with the same weights.

    Examples:

        interlace train recipes/hybrid-small.toml data.source=docs/ --dry-run

        interlace train recipes/hybrid-small.toml data.source=texts/ train.learning_rate=1e-3 --out runs/mine

        interlace train recipes/hybrid-small.toml --dry-run --devices 8 --device-kind h100

        torchrun --nproc-per-node 2 -m interlace train recipes/hybrid-small.toml data.source=texts/ parallel.shard=2

    Parameters
    ----------
    recipe: Path
        A TOML file with tables `[model]`, `[data]` and `[train]`.
    overrides: str
        Values laid over the recipe, as dotted.key=value.
    out: Path
        The run folder; runs/RECIPE if not given.
    device: str
        "cpu", or "cuda".
    log: str
        A logger that is installed, "wandb", "tensorboard" or "trackio", which is given the rows of metrics.jsonl too.
    allow_changes: str
        Keys of the recipe, with commas between, that may differ from those that the run was started with.
    dry_run: bool
        Print parameters, FLOPs, memory and estimated time, and run nothing.
    devices: int
        With --dry-run: print how so many devices are best laid out, their memory, communication and rate, on paper.
    device_kind: str
        Of which kind they are: "a100", "h100", "h200" or "b200".
    json: bool
        Print one JSON document instead of tables.
    """
    import math
    from contextlib import nullcontext

    from interlace.base.errors import ConfigError, RunError, nearest
    from interlace.base.files import user_path
    from interlace.evaluate.training import check_stages, check_watched, train_in_stages
    from interlace.model.device import check_device
    from interlace.ops.core import kernels
    from interlace.runs.loggers import Logger
    from interlace.runs.progress import Progress
    from interlace.runs.training import TrainingRun
    from interlace.train.corpus import check_inputs
    from interlace.train.estimate import estimate
    from interlace.train.parallel.join import context_estimate, joined, own_device
    from interlace.train.parallel.machines import device_kind as device_kind_of
    from interlace.train.parallel.paper import plans
    from interlace.train.recipe import FIXED, filled, known_keys, read_recipe

    device = own_device(device)
    check_device(device)
    plan = read_recipe(recipe, overrides)
    out = user_path(out or Path("runs") / recipe.stem, RunError)
    changes = [key.strip() for key in allow_changes.split(",") if key.strip()]
    keys = known_keys(plan)
    if wrong := next((key for key in changes if key not in keys), None):
        raise ConfigError(f"--allow-changes: there is no key '{wrong}' in the recipe; {nearest(wrong, keys)}")
    stages = plan.stages(out) or [("", plan)]
    if devices < 0:
        raise ConfigError(f"--devices: must be at least 1, got {devices}")
    if devices and not dry_run:
        raise ConfigError("--devices: is for --dry-run; torchrun starts workers, and [parallel] lays them out")
    if devices:
        kind = device_kind_of(device_kind)
        found = {name: plans(stage, devices, kind) for name, stage in stages}
        _print_plans(found, devices, kind.name, json)
        return
    if dry_run:
        estimates = {}
        if plan.stage:
            check_stages(stages, out, changes)
        else:
            check_inputs(plan)
            TrainingRun(out, filled, FIXED).belongs_to(plan.to_dict(), changes)
        for name, stage in stages:
            check_watched(stage)
            estimates[name] = estimate(stage, device).to_dict()
            if context := context_estimate(stage, device):
                estimates[name]["context_seconds"] = context
        _print_estimates(estimates, json)
        return
    logger = Logger(log) if log else None
    meter = Meter()
    last: dict[str, Any] = {}

    def watch(now: Progress) -> None:
        if now.label == "starting":
            if logger:  # of the first worker, one for each stage
                path = now.detail["run"]
                logger.begin(path, path.relative_to(out.parent).as_posix(), TrainingRun(path).config())
            if now.done:
                say(f"going on from step {now.done:.0f} of {now.total:.0f}", console=err)
        elif now.label == "training":
            last.update(row := now.detail)
            if logger:
                logger.log(row)
            score = last.get("held_out_bits_per_byte")
            if "skipped" in row:
                say(f"step {row['step']} changed no weight: {row['skipped']}", console=err)
            note = f"loss {last.get('loss', math.nan):.3f}  {count(row['tokens_per_second'])} tokens/s"
            meter.update(now, note + (f"  held out {score:.3f} bits/byte" if score else ""))
        else:
            meter.update(now)

    kernels.keep_memory()  # of this process, which trains and then ends
    with joined(plan, device) as workers, meter if workers.first else nullcontext():
        try:
            run = train_in_stages(plan, out, watch, device, lambda text: say(text, console=err), workers, changes)
        finally:
            if logger:
                logger.end()
    if not workers.first:
        return
    scored = [m for m in run.metrics() if "held_out_bits_per_byte" in m]
    document = {"run": str(run.path), "checkpoint": str(run.checkpoints()[-1]), **(scored[-1] if scored else {})}
    if "peak_memory_bytes" in document and (predicted := run.tables()["machine"].get("predicted_memory_bytes")):
        document["predicted_memory_bytes"] = predicted
    if json:
        print_json(document)
        return
    rows = [
        [k, f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v] for k, v in document.items()
    ]
    print_table("trained", ["", ""], rows, words=2)
    say(f"report: {run.path / 'report.html'}", console=err)


def _print_estimates(found: dict[str, dict[str, Any]], json: bool) -> None:
    if json:
        print_json(found.get("", {"stages": found}))
        return
    for number, (name, document) in enumerate(found.items()):
        _print_estimate(document, f"stage {name}: nothing was started" if name else "dry run: nothing was started")
        if not number:
            _print_optimizers(document)


def _print_estimate(document: dict[str, Any], title: str) -> None:
    rows = [
        ["parameters", f"{document['parameters']:,}"],
        ["without embeddings", f"{document['non_embedding_parameters']:,}"],
        ["that are trained", f"{document['trained_parameters']:,}"],
        ["steps", f"{document['steps']:,}"],
        ["tokens", f"{document['tokens']:,}"],
        ["training FLOPs per token", count(document["training_flops_per_token"])],
        ["training FLOPs in all", count(document["training_flops"])],
        ["memory: weights, gradients, optimizer", size(document["weight_bytes"])],
        ["memory: activations of one batch", size(document["activation_bytes"])],
        ["memory: most at once, predicted", size(document["peak_memory_bytes"])],
        ['the same with train.recompute = "block"', size(document["peak_memory_bytes_with_recompute"])],
        [
            "matrix products here",
            f"{quantity(document['matmul_flops_per_second'], 'FLOP/s')} in {document['precision']}",
        ],
        ["estimated time", duration(document["seconds"]) + f" (at {document['utilisation']:.0%} of that rate)"],
    ]
    for way, seconds in document.get("context_seconds", {}).items():
        name = "states handed on" if way == "state" else "heads traded"
        rows.append([f"recurrent layers over the context, {name}", f"{1000 * seconds:.3g} ms a pass"])
    print_table(title, ["", ""], rows)


def _print_optimizers(document: dict[str, Any]) -> None:
    routed = [
        [
            r["name"],
            " x ".join(map(str, r["shape"])),
            str(r["count"]),
            r["optimizer"] + (f", {r['matrices']} matrices" if r["matrices"] > 1 else ""),
            "yes" if r["decays"] else "",
        ]
        for r in document["optimizers"]
    ]
    print_table("optimizers", ["parameter", "shape", "layers", "optimizer", "decays"], routed)


SHOWN = 4  # ways of laying devices out


def _print_plans(found: dict[str, Any], devices: int, kind: str, json: bool) -> None:
    if json:
        shown = {name: [plan.to_dict() for plan in ways[:SHOWN]] for name, ways in found.items()}
        print_json({"devices": devices, "device_kind": kind, "plans": shown.get("", shown)})
        return
    for name, ways in found.items():
        best = ways[0]
        rows = [[f"memory: {part}", size(value)] for part, value in best.part_bytes.items() if value]
        rows.append(
            ["memory of each device, all together", size(best.memory_bytes) + ("" if best.fits else ": too much")]
        )
        rows += [[f"sent by each device for a step: {k}", size(v)] for k, v in best.sent_bytes.items() if v]
        for name_, seconds in best.way_seconds.items():
            rows.append([f"recurrent layers over the context by {name_}", f"{1000 * seconds:.1f} ms of a step"])
        rows += [
            ["a step's computation", f"{best.compute_seconds:.2f} s"],
            ["communication that is waited for", f"{best.waiting_seconds:.2f} s"],
            ["tokens/s of each device", f"{best.tokens_per_second:,.0f}"],
            ["tokens/s of all", count(best.tokens_per_second * devices)],
            ["share of the matrix rate", f"{best.utilisation:.0%}"],
        ]
        stage = f", stage {name}" if name else ""
        print_table(f"{devices} {kind}{stage}, on paper: {_said(best)}", ["", ""], rows)
        others = [
            [_said(way), size(way.memory_bytes), f"{way.tokens_per_second:,.0f}", "" if way.fits else "no"]
            for way in ways[:SHOWN]
        ]
        print_table("ways", ["parallel", "memory", "tokens/s each", "fits"], others)


def _said(way: Any) -> str:
    sizes = " x ".join(f"{name} {n}" for name, n in way.sizes.items() if n > 1) or "one device"
    more = [f"in {way.accumulate} parts"] if way.accumulate > 1 else []
    more += ["recompute"] if way.recompute else []
    more += [f"context by {way.context_by}"] if way.context_by else []
    return ", ".join([sizes, *more])
