"""What renders templates, in the process that `interlace.base.templates` starts."""

from __future__ import annotations

import datetime
import json
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, UndefinedError, meta
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 64 << 20  # characters


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(chat: bool) -> ImmutableSandboxedEnvironment:
    undefined = Undefined if chat else StrictUndefined
    made = ImmutableSandboxedEnvironment(
        undefined=undefined, trim_blocks=chat, lstrip_blocks=chat, keep_trailing_newline=True, extensions=[loopcontrols]
    )
    if not chat:
        made.finalize = lambda value: "" if value is None else value  # a column that is null is written as nothing
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


ENVIRONMENTS = {chat: _environment(chat) for chat in (False, True)}


@lru_cache(maxsize=256)
def _compile(template: str, chat: bool) -> Template:
    return ENVIRONMENTS[chat].from_string(template)


def answer(request: dict[str, Any]) -> Any:
    """Render, or list the names that a template needs; raises ValueError in words for people."""
    try:
        if request["do"] == "names":
            tree = ENVIRONMENTS[False].parse(request["template"])
            return sorted(meta.find_undeclared_variables(tree) - set(ENVIRONMENTS[False].globals))
        text = _compile(request["template"], request["chat"]).render(request["values"])
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
