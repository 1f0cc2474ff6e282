"""The outcome of a request (an answer, a rate limit or trouble), read from bytes, headers and JSON of any form."""

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

GOOD = ("", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed")  # good ends of an answer
CUT = ("length", "max_tokens", "max_length", "model_length")
FILTERED = ("content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content")
CALLS = ("tool_calls", "function_call", "tool_use")
NO_ERROR = ("0", "200", "ok", "success")  # codes of an "error" that means success
BROKEN = ("error", "abort", "insufficient_system_resource", "load")  # worth another try
# A question was flagged if an error has one of these codes or types, of these keys of its metadata, or of these words
# and none about an account.
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
READ = 5000  # characters of an error that are searched
LONGEST_WAIT = 3600.0  # seconds that Retry-After is obeyed for


@dataclass(frozen=True)
class Reply:
    """An answer: the text of the response, and its JSON."""

    raw: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Limited:
    """A request was rejected for a rate limit; nothing was charged."""

    kind: Kind
    retry_after: float | None
    error: str


@dataclass(frozen=True)
class Trouble:
    """A request got no answer.

    Attributes:
        passing: whether another try may succeed.
        charged: whether the teacher may have charged it.
        alive: whether the endpoint itself answered.
        raw: the response, if there was any.
        refused: whether the endpoint flagged this question.
        doubt: what would end the run if every question met it.
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
    """Return (text, whether every byte could be decoded).

    JSON is read in the Unicode encoding that its first bytes show, whatever is stated; if that fails, in `charset`.
    """
    for name in (json.detect_encoding(raw), charset):
        with contextlib.suppress(ValueError, LookupError):  # the bytes are not of it, or it does not exist
            if name:
                return raw.decode(name, "surrogatepass" if name.startswith("utf") else "strict").removeprefix(
                    "\ufeff"
                ), True
    return raw.decode("utf-8", "replace"), False


def flags(text: str) -> tuple[bool, bool]:
    """Return (whether an error's code, type or metadata say that the question was flagged, whether its words say so).

    Words between quotes do not count, as they may be the prompt's. Words do not count either if a code names another
    reason, or if they speak of an account.
    """
    error = _error(text)
    codes = _codes(error)
    if CODES.search(codes) or any(table(error.get("metadata")).get(name) for name in METADATA):
        return True, True
    words = QUOTED.sub(" ", (_message(error) if error else text)[:READ])
    return False, not OTHERS.search(codes) and not ACCOUNT.search(words) and WORDS.search(words) is not None


def _error(text: str) -> dict[str, Any]:
    """Return the object of an error, with its words as `message`; empty if the text is no JSON."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    error = table(body).get("error", body)
    return {"message": error} if isinstance(error, str) else table(error)


def _codes(error: dict[str, Any]) -> str:
    """Return the code and type of an error, without its words, which may repeat a prompt."""
    return " ".join(str(e.get(name)) for e in (error, table(error.get("innererror"))) for name in ("code", "type"))[
        :READ
    ]


def _message(error: Any) -> str:
    """Return the words of an error."""
    if isinstance(error, str):
        return error
    said = table(error).get("message", table(error).get("detail"))
    return said if isinstance(said, str) else json.dumps(error)


def _broken_off(body: dict[str, Any], choice: dict[str, Any]) -> str | None:
    """Return why a reply with choices is no answer; None if it is one."""
    for error in (body.get("error"), choice.get("error")):
        if error and not _success(error):
            return _message(error)
    finish = finish_of(choice)
    return f"it ended with {finish!r}" if finish in BROKEN else None


def _success(error: Any) -> bool:
    """Return whether an error beside an answer means "none": a code in NO_ERROR, or neither code nor words."""
    if not isinstance(error, dict):
        return False
    return str(error.get("code")).lower() in NO_ERROR or not any(error.values())


def finish_of(choice: dict[str, Any]) -> str:
    """Return why an answer ended, as a lower-case word; "" if nothing says it."""
    finish = choice.get("finish_reason")
    return "" if finish is None else str(finish).strip().lower()


def _strange(raw: str, kind: str, body: Any) -> tuple[str, str]:
    """Return (what a reply is that is no completion, how it begins)."""
    begin = raw.lstrip("\ufeff \t\r\n")
    if begin.startswith(("data:", "event:", "id:", "retry:", ":")) or "event-stream" in kind:
        return "server-sent events", " ".join(begin.split())[:80]
    if begin.startswith("<") or "html" in kind:
        title = re.search(r"<title>(.{0,200}?)</title>", raw[:100_000], re.IGNORECASE | re.DOTALL)
        words = title[1] if title else re.sub(r"<[^<>]{0,1000}>", " ", raw[:10_000])
        return "HTML", " ".join(words.split())[:80]
    return ("JSON without choices" if body is not None else "broken JSON"), " ".join(begin.split())[:80]


def retry_after(headers: dict[str, str]) -> float | None:
    """Return the seconds that a response asks to wait, or None."""
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
    """Return seconds between 0 and LONGEST_WAIT; NaN becomes 0."""
    return min(max(0.0, seconds), LONGEST_WAIT) if seconds == seconds else 0.0


def which_limit(headers: dict[str, str], text: str) -> Kind:
    """Return whether a 429 limits tokens or requests."""
    found = {k.lower(): v for k, v in headers.items()}
    if found.get("x-ratelimit-remaining-tokens") == "0":
        return "tokens"
    if found.get("x-ratelimit-remaining-requests") == "0":
        return "requests"
    return "tokens" if re.search(r"tokens? per|\bTPM\b|\btokens\b", text, re.IGNORECASE) else "requests"


@dataclass(frozen=True)
class Content:
    """The content of an answer.

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
    """Read a reply of either protocol; a field of another form counts as missing."""
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
    """Return the largest of some counts, which may be written as text; None if none of them is a whole number."""
    found = []
    for value in values:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # not a number, or infinite
            if not isinstance(value, bool) and float(value).is_integer():
                found.append(int(float(value)))
    return max(found, default=None)
