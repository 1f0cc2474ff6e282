"""An endpoint that speaks OpenAI's protocol: a request is sent once, and what came back is told apart."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from interlace.base.errors import BackendUnavailable, Failure
from interlace.base.text import canonical, clean
from interlace.base.version import VERSION
from interlace.data.thoughts import reasoning_of, table, written
from interlace.distill.desk import Question
from interlace.distill.teachers.rate import BREAK, Kind
from interlace.distill.teachers.standing import FEW, Doubt
from interlace.distill.teachers.teacher import Teacher

if TYPE_CHECKING:
    import aiohttp

PASSING = {408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # worth another try
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
SHOWN = 300  # characters of an error
READ = 5000  # characters of an error that are read for why
SECRET = 12  # letters from which on a key is one
LONGEST_WAIT = 3600.0  # seconds that Retry-After is obeyed for
CONNECT_SECONDS = 30.0
LONGEST_BYTES = 64 << 20  # of an answer


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


def request_body(teacher: Teacher, question: Question) -> dict[str, Any]:
    """What is sent, without the sample number, which no endpoint knows."""
    body: dict[str, Any] = {"model": teacher.model, **question.sampling}
    if teacher.api == "completions":
        body["prompt"] = as_prompt(question.messages)
        return body
    body["messages"] = list(question.messages)
    if question.schema is not None:
        form = {"name": "answer", "schema": question.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def as_prompt(messages: tuple[dict[str, str], ...]) -> str:
    """Messages for a model that only goes on from a text: a single user's turn is the text itself."""
    if len(messages) == 1:
        return messages[0]["content"]
    turns = [f"{m['role'].capitalize()}: {m['content']}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"])


class Endpoint:
    """A connection to one teacher."""

    def __init__(self, name: str, teacher: Teacher):
        """Read the key; nothing is sent yet.

        Raises:
            BackendUnavailable: the client is not installed.
            ConfigError: the key's variable is not set.
        """
        self.name, self.teacher = name, teacher
        self._secret = teacher.secret(name)
        try:
            import aiohttp
        except ImportError:
            raise BackendUnavailable(
                'distill: endpoints need aiohttp; install it with `pip install -e ".[distill]"`'
            ) from None
        self._http = aiohttp
        self._base = teacher.base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "User-Agent": f"interlace/{VERSION}"}
        if self._secret:
            self._headers["Authorization"] = f"Bearer {self._secret}"
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()

    def _connections(self) -> aiohttp.ClientSession:
        """As many as the pace asks for; proxies are the environment's."""
        if self._session is None:
            from interlace.distill.teachers.heads import LIMITS, connector

            self._session = self._http.ClientSession(
                connector=connector(),
                **LIMITS,
                timeout=self._http.ClientTimeout(self.teacher.timeout_seconds, sock_connect=CONNECT_SECONDS),
                headers=self._headers,
                trust_env=bool(getproxies()),
            )
        return self._session

    async def send(self, body: dict[str, Any]) -> Outcome:
        """Send once.

        Raises:
            Failure: the account's quota is used up.
        """
        http, url = self._http, self._base + ("/chat/completions" if "messages" in body else "/completions")
        sent = io.BytesIO(canonical(body).encode())
        try:
            async with self._connections().post(url, data=sent, allow_redirects=False) as reply:
                parts, size = [], 0
                async for part in reply.content.iter_any():
                    parts.append(part)
                    if (size := size + len(part)) > LONGEST_BYTES:
                        return Trouble(f"an answer of more than {LONGEST_BYTES >> 20} MiB", False, True, True)
                raw = b"".join(parts)
        except (http.ClientConnectorError, http.ConnectionTimeoutError) as error:
            return Trouble(f"connection failed: {self.hide(str(error))}", True, False)
        except TimeoutError:
            return Trouble(f"no answer within {self.teacher.timeout_seconds:g} seconds", True, True)
        except http.ServerDisconnectedError as error:
            return Trouble(f"connection failed: {self.hide(str(error))}", True, True)
        except (http.ClientError, OSError) as error:
            return Trouble(f"connection failed: {self.hide(str(error) or type(error).__name__)}", True, True)
        text, whole = decoded(raw, reply.charset)
        if reply.status >= 300:
            return self._status(reply.status, dict(reply.headers), text)
        return self._read(text, reply.headers.get("Content-Type", ""), whole)

    def _status(self, status: int, headers: dict[str, str], text: str) -> Outcome:
        text = self.hide(text)
        what, start = _strange(text, "", None)
        said = (start if what == "HTML" else " ".join(text.split()))[:SHOWN]
        after = retry_after(headers)
        if status == 429:
            if "insufficient_quota" in _codes(_error(text)):
                raise Failure(f"teachers.{self.name}: the account's quota is used up (429: {said})")
            return Limited(which_limit(headers, text), after, said)
        coded, flagged = flags(text) if status in (400, 403, 422, 451) else (False, False)
        doubt = None if coded else self._doubt(status, headers, said)
        passing = status in PASSING
        alive = not passing
        error = f"status {status}: {said}"
        return Trouble(error, passing, False, alive, after, text, coded or flagged, doubt)

    def _doubt(self, status: int, headers: dict[str, str], said: str) -> Doubt | None:
        """What is wrong if whatever is asked ends with this status."""
        base, model, key = self.teacher.base_url, self.teacher.model, self.teacher.key
        if status == 401:
            remedy = (
                f"export the right one as {key}"
                if key
                else f"name the variable that holds one in teachers.{self.name}.key"
            )
            return Doubt(f"refused: the key is refused (401: {said})", remedy, 1, 1)
        if status == 402:
            return Doubt(
                f"refused: the account has no credit (402: {said})", "add some and run the same command", FEW, FEW
            )
        if status in (403, 451):
            return Doubt(f"refused ({status}: {said})", f"see whether the key may use model {model!r} at {base}")
        if status == 404:
            what = f"not answered: nothing is at {base} for model {model!r} (404: {said})"
            return Doubt(what, "base_url usually ends in /v1")
        if status < 400:
            to = self.hide({k.lower(): v for k, v in headers.items()}.get("location", "elsewhere"))
            what = f"not answered: {base} sends on to {to} ({status})"
            return Doubt(what, f"name the address it means in teachers.{self.name}.base_url", FEW, FEW)
        return None

    def _read(self, raw: str, kind: str, whole: bool) -> Outcome:
        """What a reply of status 200 says; `whole` is whether all its bytes were text."""
        try:
            body = json.loads(raw) if whole else None
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and isinstance(body.get("choices"), list) and body["choices"]:
            choice = body["choices"][0]
            if isinstance(choice, dict) and ("text" in choice or isinstance(choice.get("message"), dict)):
                if (error := _broken_off(body, choice)) is not None:
                    return Trouble(
                        f"the answer broke off: {self.hide(error)}"[:SHOWN], True, True, True, raw=self.hide(raw)
                    )
                return self._clear(raw, body)
        raw = self.hide(raw)
        if isinstance(body, dict) and body.get("error"):
            said = _message(body["error"])[:SHOWN]
            return Trouble(f"an error with status 200: {said}", True, False, raw=raw)
        what, start = _strange(raw, kind, body)
        base = self.teacher.base_url
        if what == "server-sent events":
            remedy = "take `stream` out of extra, or name an address that does not stream"
        elif not whole and what == "broken JSON":
            what, remedy = "broken JSON (bytes that are no UTF-8)", "have it state the charset it writes"
        else:
            remedy = "base_url usually ends in /v1"
        said = f"{base} answers {what}"
        no_endpoint = f"not answered: {said} ({start!r}), so it is no OpenAI-compatible endpoint"
        doubt = Doubt(no_endpoint, remedy, FEW, BREAK - 1, free=False)
        passing = what != "server-sent events"
        return Trouble(f"{said} with status 200: {start!r}; {remedy}", passing, True, raw=raw, doubt=doubt)

    def hide(self, text: str) -> str:
        """The text without our key, which some endpoints repeat in their errors."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def _clear(self, raw: str, body: dict[str, Any]) -> Reply:
        """An answer without our key; a short one is a word such as "none", and stays where answers hold it."""
        if not self._secret or len(self._secret) < SECRET or self._secret not in raw:
            return Reply(raw, body)
        hidden = self.hide(raw)
        return Reply(hidden, json.loads(hidden))


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
