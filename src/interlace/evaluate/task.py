"""A task as a TOML file over rows of JSONL, and its items: prompts with choices, or with what judges an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from interlace.base.errors import ConfigError, DataError, nearest
from interlace.base.files import sha256, user_path
from interlace.base.schema import Closed, read_toml, validate
from interlace.sandbox.templates import Templates
from interlace.text.rows import is_table, read_rows, table_rows
from interlace.verify.methods import NEEDS, Method
from interlace.verify.numbers import final_number
from interlace.verify.structure import read_schema

NORMALISATIONS = ("none", "characters", "bytes", "tokens", "unconditional")
OF_CHOICES = ("choices", "right", "normalise")
OF_ANSWERS = (
    *("by", "gold", "tests", "schema_", "pattern", "tolerance", "answer", "max_tokens", "stop", "temperature"),
    *("top_p", "samples", "format"),
)


class TaskSettings(Closed):
    """A task. Templates are Jinja over the columns of a row.

    Attributes:
        name: of the task; the file's own if not given.
        kind: "choice": which of some continuations the model finds likeliest; "generate": whether what it writes is
            right.
        data: the rows, a file of JSONL (also .gz and .zst) or Parquet; its path is that from the task's file.
        prompt: template of the prompt.
        limit: how many rows are used at most, from the first; all if not given.
        shots: how many rows with their answers stand before each prompt.
        shots_data: the file that they come from, its first rows; needed where shots is not 0. Where it is that of data,
            these rows are not asked.
        shot: template of the answer in a shot; that of a choice is the right one, and otherwise gold.
        separator: what stands between shots.
        delimiter: what stands between a prompt and an answer, where chat is false.
        chat: whether the chat template of the model writes the prompt as a user's turn, and shots as turns before it.
        system: a system's turn before all, where chat is true.
        group: template of a group; figures of each are shown too.
        long: what happens to a prompt that is too long for the model: "refuse", or "cut" its beginning.
        choices: templates, one for each choice, or the name of a column that holds a list, such as "options" or
            "choices.text".
        right: template of the right choice: its text, or else its letter, or else its number from 0.
        normalise: what a choice's log-likelihood is divided by before they are compared: "none", "characters"
            (acc_norm of lm_eval), "bytes", "tokens"; or "unconditional", which subtracts that without the prompt. It is
            the task's score; figures of the others are shown where they choose otherwise.
        by: how an answer is judged: "exact" (the same text, spaces at the ends aside), "numeric" (both end in the same
            number), "symbolic" (equal expressions), "schema" (JSON that fits), "pattern" (a regular expression is
            found), "python" (the tests pass, locked in).
        gold: template of what is right.
        tests: template of a program that knows what the answer's code defines.
        schema: JSON schema, or a file with one.
        pattern: the regular expression.
        tolerance: the relative tolerance of numbers.
        answer: template of what is judged; besides the columns it knows `answer`, what the model wrote, and `row`, all
            columns.
        seconds: the time for one check.
        memory_mb: the memory for a program, in MiB.
        max_tokens: the most tokens of an answer.
        stop: strings that end an answer.
        temperature, top_p: as answers are drawn; 0 takes the likeliest token.
        samples: how many answers are drawn for each prompt; an item's score is their mean.
        format: a regular expression; the share of answers that hold it is shown too.
    """

    name: str = Field(default="", pattern=r"^[\w.-]*$", max_length=100)
    kind: Literal["choice", "generate"]
    data: str
    prompt: str
    limit: int | None = Field(default=None, gt=0)
    shots: int = Field(default=0, ge=0)
    shots_data: str = ""
    shot: str = ""
    separator: str = "\n\n"
    delimiter: str = " "
    chat: bool = False
    system: str = ""
    group: str = ""
    long: Literal["refuse", "cut"] = "refuse"
    choices: Annotated[tuple[str, ...], Field(strict=False)] | str = ()
    right: str = ""
    normalise: Literal["none", "characters", "bytes", "tokens", "unconditional"] = "none"
    by: Literal["", Method] = ""
    gold: str = ""
    tests: str = ""
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")
    pattern: str = ""
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    answer: str = "{{ answer }}"
    seconds: float = Field(default=5.0, gt=0)
    memory_mb: int = Field(default=512, ge=64)
    max_tokens: int = Field(default=256, gt=0)
    stop: tuple[str, ...] = Field(default=(), strict=False)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    samples: int = Field(default=1, gt=0)
    format: str = ""

    @model_validator(mode="after")
    def _whole(self) -> TaskSettings:
        if self.shots and not self.shots_data:
            raise ValueError("shots_data: is needed where shots is not 0")
        if self.system and not self.chat:
            raise ValueError("system: is a turn of a conversation; set chat = true, or leave it out")
        others = OF_ANSWERS if self.kind == "choice" else OF_CHOICES
        if wrong := next((name for name in others if name in self.model_fields_set), None):
            other = "generate" if self.kind == "choice" else "choice"
            raise ValueError(f'{wrong.rstrip("_")}: is of kind = "{other}"; leave it out')
        if self.kind == "choice":
            if not self.choices:
                raise ValueError('choices: is needed for kind = "choice": a list of templates, or a column\'s name')
            if not self.right:
                raise ValueError('right: is needed for kind = "choice": it says which choice is right')
            return self
        if not self.by:
            raise ValueError(f'by: is needed for kind = "generate": one of {", ".join(NEEDS)}')
        need = NEEDS[self.by]
        if not (self.schema_ if need == "schema" else getattr(self, need)):
            raise ValueError(f"{need}: is needed to judge by {self.by!r}")
        for name in ("pattern", "format"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{name}: is no regular expression: {error}") from None
        if "" in self.stop:
            raise ValueError("stop: an empty string would end every answer at once; leave it out")
        if self.samples > 1 and not self.temperature:
            raise ValueError("samples: answers at temperature 0 are all the same; set temperature")
        return self


@dataclass(frozen=True)
class Item:
    """One prompt of a task.

    Attributes:
        number: its place in the task, from 0.
        turns: before the prompt, as (prompt, answer) of each shot.
        prompt: its own.
        choices: the continuations that are compared; none for an answer that is written.
        right: places of the right ones.
        gold, tests: what an answer is judged by.
        group: whose figures it counts for.
        row: the columns it was made of.
    """

    number: int
    prompt: str
    turns: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    gold: str = ""
    tests: str = ""
    group: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Items, and how they are put and judged.

    Attributes:
        name: under which figures are shown.
        settings: of the task.
        items: in order.
        known: what the items depend on, as one hash or word.
        schema: that answers must fit, or None.
    """

    name: str
    settings: TaskSettings
    items: tuple[Item, ...]
    known: str
    schema: dict[str, Any] | None = None


def read_task(path: Path, limit: int | None = None) -> Task:
    """Read a task's file and its rows.

    limit: how many rows are used at most, in the place of the file's own.

    Raises:
        ConfigError: the file breaks a rule. DataError: a row has no right answer, or no choices.
    """
    path = user_path(path, ConfigError)
    try:
        settings = validate(TaskSettings, read_toml(path, "task"), "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
    name = settings.name or path.stem
    files = [path.parent / user_path(one) for one in (settings.data, settings.shots_data) if one]
    if missing := next((one for one in files if not one.is_file()), None):
        raise DataError(f"{path}: {missing}: no such file; paths are those from the task's file")
    schema = read_schema(settings.schema_, path.parent, f"{path}")
    with closing(Templates()) as templates:
        items = tuple(_items(settings, files, templates, settings.limit if limit is None else limit))
    if not items:
        raise DataError(f"{files[0]}: holds no row")
    known = [sha256(one) for one in (path, *files)]
    if isinstance(settings.schema_, str):
        known.append(sha256(path.parent / settings.schema_))
    return Task(name, settings, items, " ".join(x[:16] for x in known) + f" {len(items)}", schema)


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where it stands, row) of a file of JSONL or Parquet."""
    if is_table(path):
        for number, row in table_rows(path, slice(None)):
            yield f"{path}:{number}", {name: _plain(value) for name, value in row.items()}
        return
    for number, row in enumerate(read_rows(path), start=1):
        yield f"{path}:{number}", row


def _plain(value: Any) -> Any:
    """Return a value of a table as templates know it: a date, a decimal, bytes and the like as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _items(settings: TaskSettings, files: list[Path], templates: Templates, limit: int | None) -> Iterator[Item]:
    shots = (
        tuple(
            _shot(settings, _item(settings, 0, row, templates, where), templates, where)
            for where, row in islice(rows_of(files[1]), settings.shots)
        )
        if settings.shots
        else ()
    )
    if len(shots) < settings.shots:
        raise DataError(f"{files[1]}: holds {len(shots)} rows, but shots = {settings.shots}")
    first = settings.shots if settings.shots and files[0].samefile(files[1]) else 0
    for number, (where, row) in enumerate(islice(rows_of(files[0]), first, None if limit is None else first + limit)):
        made = _item(settings, number, row, templates, where)
        yield Item(**{**made.__dict__, "turns": shots})


def _item(settings: TaskSettings, number: int, row: dict[str, Any], templates: Templates, where: str) -> Item:
    def write(name: str, template: str) -> str:
        try:
            return templates.render(template, row, name)
        except ConfigError as error:
            raise DataError(f"{where}: {error}") from None

    prompt = write("prompt", settings.prompt)
    if not prompt.strip():
        raise DataError(f"{where}: prompt: is empty")
    group = write("group", settings.group) if settings.group else ""
    if settings.kind == "choice":
        if isinstance(settings.choices, str):
            column: Any = row
            for key in settings.choices.split("."):
                if not isinstance(column, dict) or key not in column:
                    raise DataError(
                        f"{where}: choices: there is no column '{settings.choices}'; {nearest(settings.choices, row)}"
                    )
                column = column[key]
            if not isinstance(column, list) or not all(isinstance(x, str | int | float) for x in column):
                raise DataError(f"{where}: choices: the column '{settings.choices}' must be a list, got {column!r:.60}")
            choices = tuple(str(x) for x in column)
        else:
            choices = tuple(write("choices", one) for one in settings.choices)
        if len(choices) < 2 or not all(choice.strip() for choice in choices):
            raise DataError(
                f"{where}: choices: must be at least two texts that are not empty, got {list(choices)!r:.100}"
            )
        return Item(number, prompt, (), choices, (_right(write("right", settings.right), choices, where),), group=group)
    gold, tests = (
        write(name, getattr(settings, name)) if getattr(settings, name) else "" for name in ("gold", "tests")
    )
    for name, text in (("gold", gold), ("tests", tests)):
        if NEEDS[settings.by] == name and not text.strip():
            raise DataError(f"{where}: {name}: is empty, so that no answer can be right")
    if settings.by == "numeric" and final_number(gold) is None and not re.search(r"\d", gold):
        raise DataError(f"{where}: gold: {gold!r:.60} holds no number; set by to another kind")
    return Item(number, prompt, gold=gold, tests=tests, group=group, row=row)


def _right(text: str, choices: tuple[str, ...], where: str) -> int:
    """Return the place of the choice that a row says is right."""
    said = text.strip()
    same = [i for i, choice in enumerate(choices) if choice.strip() == said]
    number = (
        int(said)
        if said.isascii() and said.isdigit() and len(said) < 9
        else ord(said) - ord("A")
        if re.fullmatch("[A-Z]", said)
        else -1
    )
    if len(same) > 1:
        raise DataError(f"{where}: right: {said!r:.60} is the text of several choices; give the number of one, from 0")
    if same and 0 <= number < len(choices) and number != same[0]:
        raise DataError(
            f"{where}: right: {said!r} is the text of one choice and the number of another; write a template that "
            "gives the text"
        )
    if same or 0 <= number < len(choices):
        return same[0] if same else number
    raise DataError(
        f"{where}: right: {said!r:.60} is neither the text, the letter nor the number (from 0) of a choice; choices: "
        f"{list(choices)!r:.120}"
    )


def _shot(settings: TaskSettings, item: Item, templates: Templates, where: str) -> tuple[str, str]:
    if item.choices:
        return item.prompt, item.choices[item.right[0]]
    if settings.shot:
        try:
            return item.prompt, templates.render(settings.shot, dict(item.row), "shot")
        except ConfigError as error:
            raise DataError(f"{where}: {error}") from None
    return item.prompt, item.gold
