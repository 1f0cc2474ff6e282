"""`interlace evaluate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from interlace.cli.output import Meter, err, print_json, print_table, say
from interlace.cli.values import Named, Place, Whole

Several = Parameter(consume_multiple=True, negative="")


def evaluate(
    checkpoint: Named,
    other: Named = "",
    *,
    tasks: Annotated[list[Path] | None, Several] = None,
    data: Annotated[list[str] | None, Several] = None,
    suites: Annotated[list[str] | None, Several] = None,
    limit: Whole = 0,
    length: Whole = 4096,
    lengths: Annotated[list[int] | None, Several] = None,
    text: Place | None = None,
    field: str = "text",
    out: Place | None = None,
    seed: Whole = 0,
    dtype: str = "auto",
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score a model, or compare two on the same items, with intervals; every prompt and answer is kept.

    Killed at any moment and started again, the same command goes on, and ends with the same figures.

    Examples:

        interlace evaluate runs/mine --data texts/held-out.jsonl

        interlace evaluate runs/mine --tasks tasks/gsm8k.toml tasks/arc.toml --limit 200

        interlace evaluate models/base runs/tuned --tasks tasks/gsm8k.toml --out runs/base-or-tuned

        interlace evaluate runs/mine --suites needles recall formal --lengths 1024 8192

    Parameters
    ----------
    checkpoint: str
        A checkpoint, a run folder (its newest checkpoint), a LoRA adapter or a hub id.
    other: str
        Another one, which is compared with the first item by item.
    tasks: list[Path]
        Tasks as TOML files over rows of JSONL: choices, or answers that are judged; see docs/evaluate.md.
    data: list[str]
        Texts to score in bits per byte: files, folders, globs, or data sets of the hub.
    suites: list[str]
        Tasks that need no file: "needles" (facts hidden in real text), "recall" (lists), "formal" (all formal tasks as
        prompts), or formal tasks by name, such as "parity".
    limit: int
        How many items of each task, and how many texts, are used at most; all if 0. Of suites: of each length.
    length: int
        With --data: tokens that are read at a time; longer texts are read in windows, each from nothing.
    lengths: list[int]
        Of needles: tokens of a text; 1,024 to 65,536 if not given, as far as the model's limit allows.
    text: Path
        Of needles: the text in which facts are hidden; the source of Python's standard library if not given.
    field: str
        With --data: the key that holds the text of a row.
    out: Path
        The run folder; runs/evaluate-NAME if not given.
    seed: int
        The seed of suites, and of answers that are drawn.
    dtype: str
        "auto" (bfloat16 weights are widened where this machine is slow in bfloat16), "float32" or "bfloat16".
    device: str
        "cpu", or "cuda".
    json: bool
        Print one JSON document instead of a table.
    """
    from interlace.base.errors import ConfigError, RunError
    from interlace.base.files import user_path
    from interlace.evaluate.report import rows_of_figures, write_page
    from interlace.evaluate.run import Work
    from interlace.evaluate.run import evaluate as run
    from interlace.evaluate.task import Task, read_task
    from interlace.evaluate.texts import read_texts
    from interlace.model.device import check_device
    from interlace.model.model import HybridLM
    from interlace.runs.folder import RunFolder

    if not (tasks or data or suites):
        raise ConfigError("evaluate: nothing to do; give --tasks, --data or --suites")
    for name, value, least in (("limit", limit, 0), ("length", length, 2), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"--{name}: must be at least {least}, got {value}")
    check_device(device)
    _check_names(suites or [], dtype, text)
    checkpoints = [checkpoint, *([other] if other else [])]
    most = limit or None
    read = [read_task(path, most) for path in tasks or []]
    documents = read_texts(data, field, most, length) if data else None

    def work(model: HybridLM) -> Work:
        found: list[Task] = [*read]
        for suite in suites or []:
            found += _suite(suite, model, seed, lengths, text, most)
        names = [task.name for task in found]
        if "data" in names:
            raise ConfigError("--tasks: a task cannot be called 'data', which texts are; set name in its file")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"--tasks: two tasks are called '{twice}'; set name in one of their files")
        return Work(tuple(found), documents, seed)

    config: dict[str, Any] = {
        "evaluate": {
            "checkpoints": checkpoints,
            "tasks": [str(path) for path in tasks or []],
            "data": data or [],
            "suites": suites or [],
            "limit": limit,
            "length": length,
            "lengths": lengths or [],
            "text": str(text or ""),
            "field": field,
            "seed": seed,
            "dtype": dtype,
        }
    }
    place = user_path(
        out or Path("runs") / f"evaluate-{_name(checkpoint)}{'-' + _name(other) if other else ''}", RunError
    )
    with Meter() as meter:
        found = run(checkpoints, lambda source: _loaded(source, dtype, device), work, place, config, meter.update)
    command = shlex.join(["interlace", "evaluate", *checkpoints, *_words(config["evaluate"]), "--out", str(place)])
    page = write_page(RunFolder(place), found, command)
    if json:
        print_json({"run": str(place), **found})
        return
    columns, rows = rows_of_figures(found)
    print_table("evaluated, with intervals of 95 %", columns, rows, words=2)
    say(f"report: {page}", console=err)


def _words(config: dict[str, Any]) -> list[str]:
    """Return the options of a command that asks for the same."""
    usual = {"limit": 0, "length": 4096, "field": "text", "seed": 0, "dtype": "auto"}
    words: list[str] = []
    for name, value in config.items():
        if name != "checkpoints" and value and value != usual.get(name):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _check_names(suites: list[str], dtype: str, text: Path | None) -> None:
    """Check what was asked for, before a model is loaded."""
    from interlace.base.errors import ConfigError, nearest
    from interlace.study.tasks.prompts import FORMAL

    known = ("needles", "recall", "formal", *FORMAL)
    if wrong := next((name for name in suites if name not in known), None):
        raise ConfigError(f"--suites: there is no '{wrong}'; {nearest(wrong, known)}")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"--dtype: must be auto, float32 or bfloat16, got {dtype!r}")
    if text is not None and not text.exists():
        raise ConfigError(f"--text: {text}: no such file or folder")


def _name(checkpoint: str) -> str:
    """Return what a checkpoint's run folder is called after."""
    parts = [part for part in Path(checkpoint).parts if part not in ("/", ".", "..", "checkpoints")]
    return parts[-1] if parts else "model"


def _loaded(source: str, dtype: str, device: str) -> Any:
    """Return a model that is ready to be asked."""
    import torch

    import interlace
    from interlace.generation.pack import pack_for_decoding, widened

    model = interlace.load(source, dtype=None if dtype == "auto" else getattr(torch, dtype), device=device)
    return pack_for_decoding(widened(model) if dtype == "auto" else model)


def _suite(
    name: str, model: Any, seed: int, lengths: list[int] | None, text: Path | None, most: int | None
) -> list[Any]:
    """Return the tasks of a suite."""
    from interlace.base.errors import ConfigError
    from interlace.evaluate.suites import EACH, LENGTHS, ROOM, needles, recall
    from interlace.study.tasks.prompts import EACH as EACH_FORMAL
    from interlace.study.tasks.prompts import FORMAL, formal

    room, each = model.config.max_positions, min(EACH, most or EACH)
    if name == "needles":
        wanted = list(dict.fromkeys(lengths or LENGTHS))
        fit = [n for n in wanted if room is None or n + ROOM <= room]
        if not fit or (lengths and len(fit) < len(wanted)):
            raise ConfigError(f"--lengths: the model reads {room:,} tokens; give lengths of at most {room - ROOM:,}")
        if len(fit) < len(wanted):
            say(f"needles: the model reads {room:,} tokens; longer texts are left out", console=err)
        return [needles(model.tokenizer, fit, seed, each, text)]
    if name == "recall":
        return [recall(model.tokenizer, seed, each, limit=room)]
    return list(formal(FORMAL if name == "formal" else [name], seed, min(EACH_FORMAL, most or EACH_FORMAL)))
