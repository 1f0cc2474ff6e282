"""An endpoint that speaks OpenAI's protocol: a request is sent once, and its result is classified."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from interlace.base.errors import BackendUnavailable, Failure
from interlace.base.package import VERSION
from interlace.base.text import canonical
from interlace.distill.desk import Question
from interlace.distill.teachers.outcomes import (
    Limited,
    Outcome,
    Reply,
    Trouble,
    _broken_off,
    _codes,
    _error,
    _message,
    _strange,
    decoded,
    flags,
    retry_after,
    which_limit,
)
from interlace.distill.teachers.rate import BREAK
from interlace.distill.teachers.standing import FEW, Doubt
from interlace.distill.teachers.teacher import Teacher

if TYPE_CHECKING:
    import aiohttp

PASSING = {408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # worth another try
SHOWN = 300  # characters of an error that are shown
SECRET = 12  # a shorter key may be an ordinary word
CONNECT_SECONDS = 30.0
LONGEST_BYTES = 64 << 20  # of an answer


def request_body(teacher: Teacher, question: Question) -> dict[str, Any]:
    """Return the body of a request; it does not hold the sample number, which no endpoint knows."""
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
    """Return messages as a prompt for a model that only continues text; a single user's turn is the prompt itself."""
    if len(messages) == 1:
        return messages[0]["content"]
    turns = [f"{m['role'].capitalize()}: {m['content']}" for m in messages]
    return "\n\n".join([*turns, "Assistant:"])


class Endpoint:
    """A connection to one teacher."""

    def __init__(self, name: str, teacher: Teacher):
        """Read the key; nothing is sent yet.

        Raises:
            BackendUnavailable: aiohttp is not installed.
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
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _connections(self) -> aiohttp.ClientSession:
        """Return the session; it opens as many connections as needed, through the environment's proxies."""
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
        """Send once and return the outcome.

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
        """Return what would be wrong if every question ended with this status; None if it cannot end a run."""
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
        """Return the outcome of a reply with status 200; `whole` says whether all its bytes were text."""
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
        """Return the text without our key, which some endpoints repeat in their errors."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def _clear(self, raw: str, body: dict[str, Any]) -> Reply:
        """Return an answer without our key; a key shorter than SECRET is left, as it may be a word such as "none"."""
        if not self._secret or len(self._secret) < SECRET or self._secret not in raw:
            return Reply(raw, body)
        hidden = self.hide(raw)
        return Reply(hidden, json.loads(hidden))
