"""`interlace train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from interlace.cli.output import Meter, count, duration, err, print_json, print_table, quantity, say, size
from interlace.cli.values import Place

PROMPT_TOKENS, SAMPLE_TOKENS = 12, 64


def train(
    recipe: Place,
    *overrides: str,
    out: Place | None = None,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train one model on your own text, or on a folder that `interlace data prepare` wrote.

    Killed at any moment and started again, the same command goes on, and ends with the same weights.

    Examples:

        interlace train recipes/hybrid-small.toml data.source=docs/ --dry-run

        interlace train recipes/hybrid-small.toml data.source=texts/ train.learning_rate=1e-3 --out runs/mine

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
    dry_run: bool
        Print parameters, FLOPs, memory and estimated time, and run nothing.
    json: bool
        Print one JSON document instead of tables.
    """
    from interlace.base.errors import RunError
    from interlace.base.files import user_path
    from interlace.evaluate.bits_per_byte import HeldOut
    from interlace.model.device import check_device
    from interlace.train.corpus import check_inputs
    from interlace.train.estimate import estimate
    from interlace.train.loop import Hooks
    from interlace.train.loop import train as run_training
    from interlace.train.recipe import read_recipe
    from interlace.train.run import RunFolder

    check_device(device)
    plan = read_recipe(recipe, overrides)
    out = user_path(out or Path("runs") / recipe.stem, RunError)
    if dry_run:
        check_inputs(plan)
        RunFolder(out).belongs_to(plan.to_dict())
        _print_estimate(estimate(plan, device).to_dict(), json)
        return
    meter = Meter()
    state: dict[str, Any] = {"total": 0, "last": {}}

    def on_start(done: int, steps: int, batch_tokens: int) -> None:
        state["total"] = steps
        if done:
            say(f"going on from step {done} of {steps}", console=err)

    def on_step(row: dict[str, Any]) -> None:
        state["last"] |= row
        score = state["last"].get("held_out_bits_per_byte")
        note = f"loss {row['loss']:.3f}  {count(row['tokens_per_second'])} tokens/s"
        note += f"  held out {score:.3f} bits/byte" if score else ""
        left = (state["total"] - row["step"]) * row["tokens"] / row["step"] / row["tokens_per_second"]
        meter.update("training", row["step"], state["total"], f"{note}  {duration(left)} left")

    hooks = Hooks(
        evaluate=lambda corpus: HeldOut(corpus, plan.data.length, plan.train.evaluation_tokens).score,
        on_start=on_start,
        on_step=on_step,
        on_data=meter.update,
    )
    try:
        with meter:
            run = run_training(plan, out, hooks, device)
        _write_samples(run.path, run.checkpoints()[-1])
    except KeyboardInterrupt:
        kept = RunFolder(out).checkpoints() if state["total"] else []
        raise KeyboardInterrupt(f"the same command goes on from {kept[-1].name}" if kept else "") from None
    finally:
        if state["total"]:  # not into a folder that was refused
            _write_page(out)
    scored = [m for m in run.metrics() if "held_out_bits_per_byte" in m]
    document = {"run": str(out), "checkpoint": str(run.checkpoints()[-1]), **(scored[-1] if scored else {})}
    if json:
        print_json(document)
        return
    rows = [
        [k, f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v] for k, v in document.items()
    ]
    print_table("trained", ["", ""], rows, words=2)
    say(f"report: {out / 'report.html'}", console=err)


def _write_page(out: Path) -> None:
    """The page of a run, finished or not; a fault of the page hides nothing else."""
    from interlace.base.errors import InterlaceError
    from interlace.train.report import write_report
    from interlace.train.run import RunFolder

    run = RunFolder(out)
    if not (run.file.is_file() and run.metrics_file.is_file() and run.metrics_file.stat().st_size):
        return
    try:
        write_report(run)
    except InterlaceError as error:
        say(f"report.html was not written: {error}", console=err)


def _write_samples(run: Path, checkpoint: Path) -> None:
    """What the model writes after three beginnings of held-out documents, the same each time."""
    import json as to_json

    import interlace
    from interlace.base.files import write_file
    from interlace.data.tokens import Corpus
    from interlace.generation import text as engine
    from interlace.train.corpus import prepared_folder
    from interlace.train.recipe import DataSettings
    from interlace.train.report import SAMPLES
    from interlace.train.run import RunFolder

    if (run / SAMPLES).is_file():
        return
    data = DataSettings.model_validate(RunFolder(run).config()["data"])
    corpus = Corpus.open(prepared_folder(data) or run / "data")
    split, model = corpus.splits["held_out"], interlace.load(checkpoint)
    room = min(SAMPLE_TOKENS, (model.config.max_positions or 1 << 20) - PROMPT_TOKENS - 1)
    samples = []
    for start, stop in list(zip(split.borders, split.borders[1:], strict=False))[:3] if room > 0 else ():
        ids = split.read(int(start), min(int(stop), int(start) + PROMPT_TOKENS)).tolist()
        prompt = corpus.tokenizer.decode(ids)
        text = "".join(engine.generate(model, prompt, max_tokens=room, temperature=0.7, seed=1))
        samples.append({"prompt": prompt, "text": text})
    write_file(run / SAMPLES, to_json.dumps(samples, indent=2) + "\n")


def _print_estimate(document: dict[str, Any], json: bool) -> None:
    if json:
        print_json(document)
        return
    rows = [
        ["parameters", f"{document['parameters']:,}"],
        ["without embeddings", f"{document['non_embedding_parameters']:,}"],
        ["steps", f"{document['steps']:,}"],
        ["tokens", f"{document['tokens']:,}"],
        ["training FLOPs per token", count(document["training_flops_per_token"])],
        ["training FLOPs in all", count(document["training_flops"])],
        ["memory: weights, gradients, AdamW", size(document["weight_bytes"])],
        ["memory: activations of one batch", size(document["activation_bytes"])],
        [
            "matrix products here",
            f"{quantity(document['matmul_flops_per_second'], 'FLOP/s')} in {document['precision']}",
        ],
        ["estimated time", duration(document["seconds"]) + f" (at {document['utilisation']:.0%} of that rate)"],
    ]
    print_table("dry run: nothing was started", ["", ""], rows)
