"""What comes back from a teacher: an answer, a rate limit or trouble, read from bytes, headers and JSON of any form."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from interlace.base.text import clean
from interlace.data.thoughts import reasoning_of, table, written
from interlace.distill.teachers.rate import Kind
from interlace.distill.teachers.standing import Doubt

if TYPE_CHECKING:
    pass

GOOD = ("", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed")  # ends of an answer
CUT = ("length", "max_tokens", "max_length", "model_length")
FILTERED = ("content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content")
CALLS = ("tool_calls", "function_call", "tool_use")
NO_ERROR = ("0", "200", "ok", "success")  # codes of an error that is none
BROKEN = ("error", "abort", "insufficient_system_resource", "load")  # worth another try
# What says that a question was flagged: a code or type, keys of the metadata, or words that speak of no account.
CODES = re.compile(
    r"content[ _-]?(filter|polic|moderation|safety)|moderation|flagged|safety|guardrail|sensitive|prohibited_?content|"
    r"data_?inspection|responsible_?ai",
    re.I,
)
METADATA = ("reasons", "flagged_input")
WORDS = re.compile(
    r"content[ _-](filter|(management )?polic|moderation|safety)|(?<![\w-])moderation(?![\w-])|safety (system|filter)|"
    r"usage polic|guardrail|flagged|inappropriate content",
    re.I,
)
OTHERS = re.compile(r"context|length|model|key|account|permission|quota|billing|credit|region", re.I)  # in codes
ACCOUNT = re.compile(r"\b(accounts?|keys?|organi[sz]ations?|workspaces?|subscriptions?)\b", re.I)
QUOTED = re.compile(r"""(?<!\w)(["'`]).*?(\1(?!\w)|$)|[“«‘].*?([”»’](?!\w)|$)""", re.DOTALL)
READ = 5000  # characters of an error that are read for why
LONGEST_WAIT = 3600.0  # seconds that Retry-After is obeyed for


@dataclass(frozen=True)
class Reply:
    """An answer: the text that came, and what it holds."""

    raw: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Limited:
    """Sent back for a rate limit; nothing was charged."""

    kind: Kind
    retry_after: float | None
    error: str


@dataclass(frozen=True)
class Trouble:
    """No answer.

    Attributes:
        passing: whether another try may do.
        charged: whether the teacher may have counted it.
        alive: whether the endpoint itself answered.
        raw: what came, if anything.
        refused: whether it was this question that is not welcome.
        doubt: what would end the run, if it is not this question alone.
    """

    error: str
    passing: bool
    charged: bool
    alive: bool = False
    retry_after: float | None = None
    raw: str = ""
    refused: bool = False
    doubt: Doubt | None = None


Outcome = Reply | Limited | Trouble


def decoded(raw: bytes, charset: str | None) -> tuple[str, bool]:
    """(text, whether every byte was): JSON is in UTF-8, whatever is stated; where it is not, `charset` is believed."""
    for name in (json.detect_encoding(raw), charset):
        with contextlib.suppress(ValueError, LookupError):  # other bytes, or no such charset
            if name:
                return raw.decode(name, "surrogatepass" if name.startswith("utf") else "strict").removeprefix(
                    "\ufeff"
                ), True
    return raw.decode("utf-8", "replace"), False


def flags(text: str) -> tuple[bool, bool]:
    """Whether an error's code, type or metadata say that the question was flagged, and whether its words do.

    Words between quotes do not count, for they may be the prompt's; nor do others, where a code says what it is.
    """
    error = _error(text)
    codes = _codes(error)
    if CODES.search(codes) or any(table(error.get("metadata")).get(name) for name in METADATA):
        return True, True
    words = QUOTED.sub(" ", (_message(error) if error else text)[:READ])
    return False, not OTHERS.search(codes) and not ACCOUNT.search(words) and WORDS.search(words) is not None


def _error(text: str) -> dict[str, Any]:
    """The table of an error, with its words as `message`; empty where it is no JSON."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    error = table(body).get("error", body)
    return {"message": error} if isinstance(error, str) else table(error)


def _codes(error: dict[str, Any]) -> str:
    """The code and type of an error, apart from its words, which may repeat a prompt."""
    return " ".join(str(e.get(name)) for e in (error, table(error.get("innererror"))) for name in ("code", "type"))[
        :READ
    ]


def _message(error: Any) -> str:
    """The words of an error."""
    if isinstance(error, str):
        return error
    said = table(error).get("message", table(error).get("detail"))
    return said if isinstance(said, str) else json.dumps(error)


def _broken_off(body: dict[str, Any], choice: dict[str, Any]) -> str | None:
    """Why an answer is not one, though there are choices; None where it is."""
    for error in (body.get("error"), choice.get("error")):
        if error and not _success(error):
            return _message(error)
    finish = finish_of(choice)
    return f"it ended with {finish!r}" if finish in BROKEN else None


def _success(error: Any) -> bool:
    """Whether an error beside an answer says that there is none: by code 0, or by no code and no words."""
    if not isinstance(error, dict):
        return False
    return str(error.get("code")).lower() in NO_ERROR or not any(error.values())


def finish_of(choice: dict[str, Any]) -> str:
    """Why an answer ended, as a lower-case word; "" where nothing says it."""
    finish = choice.get("finish_reason")
    return "" if finish is None else str(finish).strip().lower()


def _strange(raw: str, kind: str, body: Any) -> tuple[str, str]:
    """What a reply is that is no completion, and how it begins."""
    begin = raw.lstrip("\ufeff \t\r\n")
    if begin.startswith(("data:", "event:", "id:", "retry:", ":")) or "event-stream" in kind:
        return "server-sent events", " ".join(begin.split())[:80]
    if begin.startswith("<") or "html" in kind:
        title = re.search(r"<title>(.{0,200}?)</title>", raw[:100_000], re.IGNORECASE | re.DOTALL)
        words = title[1] if title else re.sub(r"<[^<>]{0,1000}>", " ", raw[:10_000])
        return "HTML", " ".join(words.split())[:80]
    return ("JSON without choices" if body is not None else "broken JSON"), " ".join(begin.split())[:80]


def retry_after(headers: dict[str, str]) -> float | None:
    """Seconds that a response asks to wait, or None."""
    found = {k.lower(): v for k, v in headers.items()}
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return bounded(float(found[name]) / unit)
        except (KeyError, ValueError):
            continue
    if "retry-after" in found:  # a date
        with contextlib.suppress(ValueError):
            when = parsedate_to_datetime(found["retry-after"])
            return bounded((when - datetime.datetime.now(when.tzinfo)).total_seconds())
    return None


def bounded(seconds: float) -> float:
    """Between none and LONGEST_WAIT."""
    return min(max(0.0, seconds), LONGEST_WAIT) if seconds == seconds else 0.0


def which_limit(headers: dict[str, str], text: str) -> Kind:
    """Whether a 429 is about tokens or about requests."""
    found = {k.lower(): v for k, v in headers.items()}
    if found.get("x-ratelimit-remaining-tokens") == "0":
        return "tokens"
    if found.get("x-ratelimit-remaining-requests") == "0":
        return "requests"
    return "tokens" if re.search(r"tokens? per|\bTPM\b|\btokens\b", text, re.IGNORECASE) else "requests"


@dataclass(frozen=True)
class Content:
    """What an answer says.

    Attributes:
        text, reasoning, refusal: as text.
        finish: why it ended, a lower-case word.
        calls: whether it calls tools.
        prompt_tokens, answer_tokens, total_tokens, reasoning_tokens: as counted by the teacher; None where missing.
    """

    text: str
    reasoning: str
    finish: str
    refusal: str
    calls: bool
    prompt_tokens: int | None
    answer_tokens: int | None
    total_tokens: int | None
    reasoning_tokens: int | None


def content(body: dict[str, Any]) -> Content:
    """Read a reply of either protocol; what is not in its form counts as not there."""
    choice = table(body["choices"][0])
    message = table(choice.get("message"))
    text = message.get("content") if message else choice.get("text")
    usage = table(body.get("usage"))
    details = [table(usage.get(f"{name}_tokens_details")) for name in ("completion", "output")]
    return Content(
        clean(written(text)),
        clean(reasoning_of(message)),
        finish_of(choice),
        clean(written(message.get("refusal"))),
        bool(message.get("tool_calls")) or isinstance(message.get("function_call"), dict),
        _count(usage.get("prompt_tokens"), usage.get("input_tokens")),
        _count(usage.get("completion_tokens"), usage.get("output_tokens")),
        _count(usage.get("total_tokens")),
        _count(usage.get("reasoning_tokens"), *(d.get("reasoning_tokens") for d in details)),
    )


def _count(*values: Any) -> int | None:
    """The largest of some figures, which may be written as text; None where none of them is one."""
    found = []
    for value in values:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # words, or beyond any number
            if not isinstance(value, bool) and float(value).is_integer():
                found.append(int(float(value)))
    return max(found, default=None)
