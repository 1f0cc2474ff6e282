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
from interlace.distill.control import Kind
from interlace.distill.desk import Question
from interlace.distill.ledger import canonical
from interlace.distill.teacher import Teacher

if TYPE_CHECKING:
    import aiohttp

PASSING = {408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # worth another try
OF_THE_RUN = {401: "the key is refused", 402: "the account has no credit", 403: "the key may not use this"}
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
    """

    error: str
    passing: bool
    charged: bool
    alive: bool = False
    retry_after: float | None = None
    raw: str = ""


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
                "distill: endpoints need aiohttp; install it with `pip install 'interlace[distill]'`"
            ) from None
        self._http = aiohttp
        self._base = teacher.base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "User-Agent": f"interlace/{interlace.__version__}"}
        if self._secret:
            self._headers["Authorization"] = f"Bearer {self._secret}"
        self._session: aiohttp.ClientSession | None = None
        self.strange = 0  # replies in a row that no such endpoint would give, while none was right
        self.right = False

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()

    def _connections(self) -> aiohttp.ClientSession:
        """As many as the pace asks for; proxies are the environment's."""
        if self._session is None:
            self._session = self._http.ClientSession(
                connector=self._http.TCPConnector(limit=0),
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
        sent = io.BytesIO(canonical(body).encode())
        try:
            async with self._connections().post(url, data=sent, allow_redirects=False) as reply:
                parts, size = [], 0
                async for part in reply.content.iter_any():
                    parts.append(part)
                    if (size := size + len(part)) > LONGEST_BYTES:
                        return Trouble(f"an answer of more than {LONGEST_BYTES >> 20} MiB", False, True, True)
                raw = b"".join(parts).decode("utf-8", "replace")
        except (http.ClientConnectorError, http.ConnectionTimeoutError) as error:
            return Trouble(f"connection failed: {self.hide(str(error))}", True, False)
        except TimeoutError:
            return Trouble(f"no answer within {self.teacher.timeout_seconds:g} seconds", True, True)
        except (http.ClientError, OSError) as error:
            return Trouble(f"connection failed: {self.hide(str(error) or type(error).__name__)}", True, True)
        if reply.status >= 300:
            return self._status(reply.status, dict(reply.headers), raw)
        return self._read(raw)

    def _status(self, status: int, headers: dict[str, str], text: str) -> Outcome:
        said = self.hide(" ".join(text.split()))[:SHOWN]
        after = retry_after(headers)
        if status == 429:
            if "insufficient_quota" in text:
                raise Failure(f"teachers.{self.name}: the account's quota is used up (429: {said})")
            return Limited(which_limit(headers, text), after, said)
        if status in OF_THE_RUN:
            raise ConfigError(f"teachers.{self.name}: {OF_THE_RUN[status]} ({status}: {said})")
        if status == 404 and not self.right:
            raise ConfigError(
                f"teachers.{self.name}: nothing is at {self.teacher.base_url} for model {self.teacher.model!r} (404: "
                f"{said}); base_url usually ends in /v1"
            )
        if status < 400 and not self.right:
            to = {k.lower(): v for k, v in headers.items()}.get("location", "elsewhere")
            raise ConfigError(
                f"teachers.{self.name}.base_url: {self.teacher.base_url} sends on to {self.hide(to)} ({status}); name "
                "the address it means"
            )
        passing = status in PASSING
        return Trouble(f"status {status}: {said}", passing, False, not passing, after, self.hide(text))

    def _read(self, raw: str) -> Outcome:
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and isinstance(body.get("choices"), list) and body["choices"]:
            choice = body["choices"][0]
            if isinstance(choice, dict) and ("text" in choice or isinstance(choice.get("message"), dict)):
                self.right = True
                return self._clear(raw, body)
        raw = self.hide(raw)
        start = " ".join(raw.split())[:80]
        what = "HTML" if raw.lstrip()[:1] == "<" else "JSON without choices" if body is not None else "broken JSON"
        if isinstance(body, dict) and "error" in body:
            return Trouble(f"an error with status 200: {json.dumps(body['error'])[:SHOWN]}", True, False, raw=raw)
        self.strange += 1
        if not self.right and self.strange >= STRANGE:
            raise ConfigError(
                f"teachers.{self.name}.base_url: {self.teacher.base_url} answers {what} ({start!r}), so it is no "
                "OpenAI-compatible endpoint; base_url usually ends in /v1"
            )
        return Trouble(f"{what} with status 200: {start!r}", True, True, raw=raw)

    def hide(self, text: str) -> str:
        """The text without our key, which some endpoints repeat in their errors."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def _clear(self, raw: str, body: dict[str, Any]) -> Reply:
        """An answer without our key; a short one is a word such as "none", and stays where answers hold it."""
        if not self._secret or len(self._secret) < SECRET or self._secret not in raw:
            return Reply(raw, body)
        hidden = self.hide(raw)
        return Reply(hidden, json.loads(hidden))


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
    """What an answer says: text, reasoning, why it ended, tokens as counted by the teacher (None where missing)."""

    text: str
    reasoning: str
    finish: str
    refusal: str
    prompt_tokens: int | None
    answer_tokens: int | None


def content(body: dict[str, Any]) -> Content:
    """Read a reply of either protocol; what is not in its form counts as not there."""
    choice = table(body["choices"][0])
    message = table(choice.get("message"))
    text = message.get("content") if message else choice.get("text")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    usage = table(body.get("usage"))
    return Content(
        clean(written(text)),
        clean(written(reasoning)),
        str(choice.get("finish_reason") or ""),
        clean(str(message.get("refusal") or "")),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def table(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def written(value: Any) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(value, list):
        return "".join(written(table(part).get("text")) for part in value)
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
