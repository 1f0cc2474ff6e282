"""A distillation recipe: teachers, steps that feed each other, limits, and the rows that are exported."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from interlace.base.errors import ConfigError, DataError, nearest
from interlace.base.files import sha256
from interlace.base.schema import Closed, read_toml, validate
from interlace.base.text import digest
from interlace.distill.ledger.records import Limits
from interlace.distill.steps.base import Step
from interlace.distill.steps.registry import KINDS
from interlace.distill.teachers.teacher import Teacher
from interlace.sandbox.templates import Templates

TABLES = ("run", "teachers", "steps", "output")


class RunSettings(Closed):
    """The table `[run]`.

    Attributes:
        seed: the seed of everything that is drawn.
        max_cost: USD; never passed, whatever happens: what was in flight when a process was killed counts in full.
        max_tokens: tokens of prompts and answers together; a hard limit too.
        max_requests: requests sent, without those rejected for a rate limit; a hard limit too.
        ledger: a file that several recipes share; `ledger.sqlite` in the run folder if not given.
        rows_at_once: rows of a step that are worked on at once, at most.
    """

    seed: int = 0
    max_cost: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    max_requests: int | None = Field(default=None, gt=0)
    ledger: str = ""
    rows_at_once: int = Field(default=256, gt=0)


class Output(Closed):
    """The table `[output]`: how a row becomes a conversation.

    Attributes:
        source: `from` in TOML: the step whose rows are written; the last one if not given.
        system, user, assistant: templates of the turns; no system's turn if empty.
        reasoning: template of the trace that goes with the assistant's turn, as `reasoning_content`.
        messages: a column that holds the turns already; instead of the templates.
        keep: columns that are written beside the messages.
        held_out: share of the rows that is held out, chosen by a hash of `split_by`.
        split_by: template; rows with the same text go to the same side. The user's turn if not given.
    """

    source: str = Field(default="", alias="from")
    system: str = ""
    user: str = ""
    assistant: str = ""
    reasoning: str = ""
    messages: str = ""
    keep: tuple[str, ...] = Field(default=(), strict=False)
    held_out: float = Field(default=0.02, ge=0, lt=1)
    split_by: str = ""

    @field_validator("keep")
    @classmethod
    def _free(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted({"id", "messages", "split"} & set(value)):
            raise ValueError(f"{taken[0]!r} is written anyway; bring the column under another name by a template step")
        return value

    def templates(self) -> dict[str, str]:
        """Return the templates that are given, by field."""
        names = ("system", "user", "assistant", "reasoning", "split_by")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True)
class Stage:
    """A step in its place in a recipe.

    Attributes:
        step: the step's table.
        feeds: the names of the steps that it takes rows from.
        columns: the columns of its rows.
        inputs: hashes of the files that it reads, by path.
        id: hash of the step, its inputs and all steps before it. Rows are stored under it, and so an edit of the recipe
            repeats only the work that it changes.
    """

    step: Step
    feeds: tuple[str, ...]
    columns: frozenset[str]
    inputs: dict[str, str]
    id: str


@dataclass(frozen=True)
class DistillRecipe:
    """A recipe that was checked.

    Attributes:
        raw: the file as plain data, with overrides applied.
        folder: the folder of the file; relative paths in the recipe start here.
        stages: the stages by name, each after those that feed it.
    """

    raw: dict[str, Any]
    folder: Path
    run: RunSettings
    teachers: dict[str, Teacher]
    stages: dict[str, Stage]
    output: Output

    @property
    def limits(self) -> Limits:
        """The hard limits of the budget."""
        return Limits(self.run.max_requests, self.run.max_tokens, self.run.max_cost)

    @property
    def last(self) -> Stage:
        """The stage whose rows are exported."""
        return self.stages[self.output.source or next(reversed(self.stages))]


def read_recipe(path: Path, overrides: Sequence[str] = (), templates: Templates | None = None) -> DistillRecipe:
    """Read and check a recipe; input files are read once.

    Args:
        templates: checks the recipe's templates, and stays open; if not given, one is made and closed.

    Raises:
        ConfigError: a key, a value, a name, a template or the order of the steps is wrong.
        DataError: an input file is missing or broken.
    """
    raw = read_toml(path, "recipe", overrides)
    with contextlib.closing(Templates()) as own:  # starts nothing unless it is used
        return build(raw, path.parent, templates or own)


def build(raw: dict[str, Any], folder: Path, templates: Templates) -> DistillRecipe:
    """Check a recipe that is given as plain data; see `read_recipe`."""
    for key in raw:
        if key not in TABLES:
            raise ConfigError(f"{key}: unknown table; {nearest(key, TABLES)}")
    settings = validate(RunSettings, _table(raw, "run"), "run")
    teachers = {}
    for name, table in _table(raw, "teachers").items():
        if not isinstance(table, dict):
            raise ConfigError(f"teachers.{name}: must be a table [teachers.NAME], got {table!r}")
        teachers[name] = validate(Teacher, table, f"teachers.{name}")
    steps = _steps(raw)
    output = validate(Output, _table(raw, "output"), "output")
    _check_teachers(steps, teachers, settings)
    stages = _stages(steps, teachers, folder, settings.seed, templates)
    _check_output(output, stages, templates)
    return DistillRecipe(raw, folder, settings, teachers, stages, output)


def _table(raw: dict[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: must be a table [{name}], got {type(found).__name__}")
    return found


def _steps(raw: dict[str, Any]) -> dict[str, Step]:
    """Return the steps by name, each checked against the schema of its kind."""
    tables = raw.get("steps")
    if not isinstance(tables, list) or not tables:
        raise ConfigError("steps: a recipe needs at least one table [[steps]]")
    steps: dict[str, Step] = {}
    for number, table in enumerate(tables, start=1):
        where = f"steps.{table.get('name') or table.get('kind') or number}" if isinstance(table, dict) else "steps"
        if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
            raise ConfigError(f"{where}: has no kind; known: {', '.join(sorted(KINDS))}")
        if table["kind"] not in KINDS:
            raise ConfigError(f"{where}.kind: no step is called {table['kind']!r}; {nearest(table['kind'], KINDS)}")
        step = validate(KINDS[table["kind"]], {"name": table["kind"], **table}, where)
        if step.name in steps:
            raise ConfigError(f"{where}: two steps are called {step.name!r}; give one of them another name")
        steps[step.name] = step
    return steps


def _check_teachers(steps: dict[str, Step], teachers: dict[str, Teacher], settings: RunSettings) -> None:
    """Check that every named teacher exists, allows training by its terms, and has a price if cost is limited."""
    for step in steps.values():
        for name in step.asks():
            if name not in teachers:
                raise ConfigError(
                    f"steps.{step.name}.teacher: {name!r} is not in [teachers]; {nearest(name, teachers)}"
                )
            teachers[name].check_terms(name)
            table = teachers[name]
            if settings.max_cost is not None and table.kind == "endpoint" and None in (table.price_in, table.price_out):
                raise ConfigError(
                    f"teachers.{name}: run.max_cost needs price_in and price_out, USD for a million tokens (0 if free)"
                )


def _stages(
    steps: dict[str, Step], teachers: dict[str, Teacher], folder: Path, seed: int, templates: Templates
) -> dict[str, Stage]:
    """Return the stages, each after those that feed it, with their columns checked."""
    feeds = _feeds(steps)
    stages: dict[str, Stage] = {}
    for name in _order(feeds):
        step, before = steps[name], [stages[f] for f in feeds[name]]
        given = frozenset.intersection(*(s.columns for s in before)) if before else frozenset()
        _check_columns(step, given, templates)
        columns = step.makes(given, folder)
        said = step.model_dump(mode="json", by_alias=True, exclude={"name", "source"})
        asked = {t: teachers[t].identity() for t in step.asks()}
        inputs = {f: _hash(folder / f, f"steps.{name}") for f in step.files()}
        parts = {"step": said, "asks": asked, "inputs": list(inputs.values()), "from": [s.id for s in before]}
        if step.draws():
            parts["name"] = name
        stages[name] = Stage(step, feeds[name], columns, inputs, digest({**parts, "seed": seed}))
    return stages


def _feeds(steps: dict[str, Step]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    before = ""
    for name, step in steps.items():
        for source in step.source:
            if source not in steps:
                raise ConfigError(f"steps.{name}.from: no step is called {source!r}; {nearest(source, steps)}")
        if step.FEEDS and step.source:
            raise ConfigError(f"steps.{name}.from: a step of kind {step.kind!r} makes rows of its own and takes none")
        if not step.FEEDS and not step.source and not before:
            raise ConfigError(
                f"steps.{name}: nobody feeds it; put a source before it, or name the step whose rows it takes with from"
            )
        found[name] = step.source if step.source or step.FEEDS else (before,)
        before = name
    return found


def _order(feeds: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the names in an order in which each comes after its sources.

    Raises:
        ConfigError: steps feed each other in a circle, which the message names.
    """
    ordered: list[str] = []
    way: list[str] = []

    def visit(name: str) -> None:
        if name in way:
            raise ConfigError(
                f"steps: {' -> '.join([*way[way.index(name) :], name])} take rows from each other in a circle"
            )
        if name in ordered:
            return
        way.append(name)
        for source in feeds[name]:
            visit(source)
        way.pop()
        ordered.append(name)

    for name in feeds:
        visit(name)
    return ordered


def _check_columns(step: Step, given: frozenset[str], templates: Templates) -> None:
    for field, template in step.templates().items():
        where = f"steps.{step.name}.{field}"
        for column in sorted(templates.names(template, where) - given):
            raise ConfigError(f"{where}: no column is called {column!r} here; {_known(column, given)}")
    for field, column in step.reads().items():
        if column not in given:
            raise ConfigError(
                f"steps.{step.name}.{field}: no column is called {column!r} here; {_known(column, given)}"
            )


def _known(column: str, given: frozenset[str]) -> str:
    return nearest(column, given) if given else "there are none"


def _check_output(output: Output, stages: dict[str, Stage], templates: Templates) -> None:
    if output.source and output.source not in stages:
        raise ConfigError(f"output.from: no step is called {output.source!r}; {nearest(output.source, stages)}")
    last = stages[output.source or next(reversed(stages))]
    if output.messages:
        if output.user or output.assistant:
            raise ConfigError("output.messages: names a column of turns; leave out user and assistant")
        named = {"messages": output.messages}
    elif not output.user or not output.assistant:
        raise ConfigError("output: needs templates user and assistant, or the name of a column of messages")
    else:
        named = {}
    for field, template in output.templates().items():
        for column in sorted(templates.names(template, f"output.{field}") - last.columns):
            raise ConfigError(f"output.{field}: no column is called {column!r} here; {_known(column, last.columns)}")
    for field, column in (*named.items(), *(("keep", c) for c in output.keep)):
        if column not in last.columns:
            raise ConfigError(f"output.{field}: no column is called {column!r} here; {_known(column, last.columns)}")


def _hash(path: Path, where: str) -> str:
    """Return the hash of an input file, or of all files of a folder."""
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise DataError(f"{where}: {path}: no such file or folder")
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            total.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
    return total.hexdigest()
