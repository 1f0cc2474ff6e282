"""Render templates, in the process that `interlace.sandbox.templates` starts."""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 64 << 20  # characters


def _raise(message: str) -> None:
    raise TemplateError(message)


class Generation(Extension):
    """The tag `{% generation %}`, by which a chat template says that an assistant wrote the text inside.

    The text is the same as without the tag; if marks are asked for, a mark stands on both sides.
    """

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it
    marks: ClassVar[tuple[str, str]] = ("", "")  # of this rendering

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block between the tags; it is called through `_marked`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return self.marks[0] + caller() + self.marks[1]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _tojson_of_columns(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return _tojson(value, ensure_ascii, indent)


def _environment(chat: bool) -> ImmutableSandboxedEnvironment:
    undefined = Undefined if chat else StrictUndefined
    made = ImmutableSandboxedEnvironment(
        undefined=undefined,
        trim_blocks=chat,
        lstrip_blocks=chat,
        keep_trailing_newline=not chat,
        extensions=[loopcontrols, Generation] if chat else [loopcontrols],
    )
    if not chat:
        made.finalize = lambda value: "" if value is None else value  # a column that is null is written as nothing
    made.filters["tojson"] = _tojson if chat else _tojson_of_columns
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


ENVIRONMENTS = {chat: _environment(chat) for chat in (False, True)}


@lru_cache(maxsize=256)
def _compile(template: str, chat: bool) -> Template:
    return ENVIRONMENTS[chat].from_string(template)


def _spans(request: dict[str, Any], text: str) -> list[tuple[int, int]]:
    """Return [start, stop) of the text between the tags of `Generation`, in the text of this request."""
    if "generation" not in request["template"]:
        return []
    begin, end = (f"\ue000{secrets.token_hex(8)}\ue001" for _ in range(2))
    Generation.marks = (begin, end)
    try:
        marked = _compile(request["template"], True).render(request["values"])
    finally:
        Generation.marks = ("", "")
    spans: list[tuple[int, int]] = []
    plain = ""
    for part in marked.split(begin)[1:] if begin in marked else []:
        inside, mark, after = part.partition(end)
        if not mark:
            raise ValueError("the template nests or cuts what stands in {% generation %}")
        plain = plain or marked[: marked.index(begin)]
        spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + after
    if spans and plain != text:
        raise ValueError("the template changes what stands in {% generation %} afterwards, so that it cannot be found")
    return spans


def answer(request: dict[str, Any]) -> Any:
    """Render a template, or list the names that it needs; a ValueError has a message for people."""
    try:
        if request["do"] == "names":
            tree = ENVIRONMENTS[False].parse(request["template"])
            return sorted(meta.find_undeclared_variables(tree) - set(ENVIRONMENTS[False].globals))
        text = _compile(request["template"], request["chat"]).render(request["values"])
        if request["do"] == "spans" and len(text) <= LONGEST:
            return {"text": text, "spans": _spans(request, text)}
    except TemplateSyntaxError as error:
        raise ValueError(f"is not a template: line {error.lineno}: {error.message}") from None
    except SecurityError as error:
        raise ValueError(f"the template reaches outside its sandbox: {error}") from None
    except UndefinedError as error:
        known = ", ".join(sorted(request["values"])) or "none"
        raise ValueError(f"the template uses a name that is not given: {error.message} (given: {known})") from None
    except TemplateError as error:
        raise ValueError(f"the template says: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"the template failed: {type(error).__name__}: {error}") from None
    if len(text) > LONGEST:
        raise ValueError(f"the template made {len(text):,} characters; the most is {LONGEST:,}")
    return text
