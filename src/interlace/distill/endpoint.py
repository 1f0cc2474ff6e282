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

import interlace
from interlace.base.errors import BackendUnavailable, ConfigError, Failure
from interlace.base.text import clean
from interlace.data.thoughts import reasoning_of, table, written
from interlace.distill.control import Kind
from interlace.distill.desk import Question
from interlace.distill.ledger import canonical, digest
from interlace.distill.teacher import Teacher

if TYPE_CHECKING:
    import aiohttp

PASSING = {408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # worth another try
OF_THE_RUN = {401: "the key is refused", 402: "the account has no credit", 403: "the key may not use this"}
GOOD = ("", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed")  # ends of an answer
CUT = ("length", "max_tokens", "max_length", "model_length")
FILTERED = ("content_filter", "safety", "recitation", "refusal", "blocklist", "prohibited_content")
CALLS = ("tool_calls", "function_call", "tool_use")
BROKEN = ("error", "abort", "insufficient_system_resource", "load")  # worth another try
FLAGGED = re.compile(
    r"content_(filter|policy_violation)|flagged|moderation|content (management )?polic|safety system", re.I
)
SHOWN = 300  # characters of an error
SECRET = 12  # letters from which on a key is one
LONGEST_WAIT = 3600.0  # seconds that Retry-After is obeyed for
CONNECT_SECONDS = 30.0
LONGEST_BYTES = 64 << 20  # of an answer
STRANGE = 3  # replies that no such endpoint would give, after which it is taken for none


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
    """

    error: str
    passing: bool
    charged: bool
    alive: bool = False
    retry_after: float | None = None
    raw: str = ""
    refused: bool = False


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
        self._headers = {"Content-Type": "application/json", "User-Agent": f"interlace/{interlace.__version__}"}
        if self._secret:
            self._headers["Authorization"] = f"Bearer {self._secret}"
        self._session: aiohttp.ClientSession | None = None
        self.strange = 0  # replies in a row that no such endpoint would give, while none was right
        self.right = False
        self._unwelcome: set[str] = set()  # questions that were refused since the last answer

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()

    def _connections(self) -> aiohttp.ClientSession:
        """As many as the pace asks for; proxies are the environment's."""
        if self._session is None:
            from interlace.distill.heads import LIMITS, connector

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
            ConfigError: the endpoint refuses the key, or is not what its table says.
            Failure: the account has no credit.
        """
        http, url = self._http, self._base + ("/chat/completions" if "messages" in body else "/completions")
        asked = canonical(body)
        sent = io.BytesIO(asked.encode())
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
        text = raw.decode(json.detect_encoding(raw), "replace").removeprefix("\ufeff")
        if reply.status >= 300:
            return self._status(reply.status, dict(reply.headers), text, digest(asked))
        return self._read(text, reply.headers.get("Content-Type", ""))

    def _status(self, status: int, headers: dict[str, str], text: str, asked: str) -> Outcome:
        said = self.hide(" ".join(text.split()))[:SHOWN]
        after = retry_after(headers)
        if status == 429:
            if "insufficient_quota" in _codes(text):
                raise Failure(f"teachers.{self.name}: the account's quota is used up (429: {said})")
            return Limited(which_limit(headers, text), after, said)
        flagged = status in (400, 403, 451) and FLAGGED.search(f"{_codes(text)} {said}") is not None
        if flagged:
            return Trouble(f"status {status}: {said}", False, False, True, None, self.hide(text), refused=True)
        if status in (*OF_THE_RUN, 404) or status < 400:
            self._unwelcome.add(asked)
            if (status == 401 and not self.right) or len(self._unwelcome) >= STRANGE:
                raise self._of_the_run(status, headers, said)
            return Trouble(f"status {status}: {said}", not self.right, False, True, after, self.hide(text))
        passing = status in PASSING
        return Trouble(f"status {status}: {said}", passing, False, not passing, after, self.hide(text))

    def _of_the_run(self, status: int, headers: dict[str, str], said: str) -> ConfigError:
        """Why nothing is answered, whatever is asked."""
        if status in OF_THE_RUN:
            several = "" if status == 401 else f" for {STRANGE} different questions in a row"
            return ConfigError(f"teachers.{self.name}: {OF_THE_RUN[status]}{several} ({status}: {said})")
        if status == 404:
            return ConfigError(
                f"teachers.{self.name}: nothing is at {self.teacher.base_url} for model {self.teacher.model!r} (404: "
                f"{said}); base_url usually ends in /v1"
            )
        to = {k.lower(): v for k, v in headers.items()}.get("location", "elsewhere")
        return ConfigError(
            f"teachers.{self.name}.base_url: {self.teacher.base_url} sends on to {self.hide(to)} ({status}); name "
            "the address it means"
        )

    def _read(self, raw: str, kind: str) -> Outcome:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and isinstance(body.get("choices"), list) and body["choices"]:
            choice = body["choices"][0]
            if isinstance(choice, dict) and ("text" in choice or isinstance(choice.get("message"), dict)):
                self.right = True
                self._unwelcome.clear()
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
        self.strange += 1
        base = self.teacher.base_url
        if what == "server-sent events":
            remedy = "take `stream` out of extra, or name an address that does not stream"
        else:
            remedy = "base_url usually ends in /v1"
        if not self.right and self.strange >= STRANGE:
            raise ConfigError(
                f"teachers.{self.name}.base_url: {base} answers {what} ({start!r}), so it is no OpenAI-compatible "
                f"endpoint; {remedy}"
            )
        passing = what != "server-sent events" or not self.right
        return Trouble(f"{base} answers {what} with status 200: {start!r}; {remedy}", passing, True, raw=raw)

    def hide(self, text: str) -> str:
        """The text without our key, which some endpoints repeat in their errors."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def _clear(self, raw: str, body: dict[str, Any]) -> Reply:
        """An answer without our key; a short one is a word such as "none", and stays where answers hold it."""
        if not self._secret or len(self._secret) < SECRET or self._secret not in raw:
            return Reply(raw, body)
        hidden = self.hide(raw)
        return Reply(hidden, json.loads(hidden))


def _codes(text: str) -> str:
    """The code and type of an error, apart from its words, which may repeat a prompt."""
    try:
        error = table(json.loads(text)).get("error")
    except (ValueError, RecursionError):
        return ""
    return f"{table(error).get('code')} {table(error).get('type')}"


def _message(error: Any) -> str:
    """The words of an error."""
    if isinstance(error, str):
        return error
    said = table(error).get("message")
    return said if isinstance(said, str) else json.dumps(error)


def _broken_off(body: dict[str, Any], choice: dict[str, Any]) -> str | None:
    """Why an answer is not one, though there are choices; None where it is."""
    error = body.get("error") or choice.get("error")
    if error:
        return _message(error)
    finish = finish_of(choice)
    return f"it ended with {finish!r}" if finish in BROKEN else None


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
    details = table(usage.get("completion_tokens_details"))
    return Content(
        clean(written(text)),
        clean(reasoning_of(message)),
        finish_of(choice),
        clean(written(message.get("refusal"))),
        bool(message.get("tool_calls")) or isinstance(message.get("function_call"), dict),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(usage.get("total_tokens")),
        _count(details.get("reasoning_tokens")),
    )


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
