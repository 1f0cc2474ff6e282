"""The door of the server: every request is weighed before a route sees it.

Who bears no key is refused on every path but those in OPEN; the path is the raw one of the connection. Bodies, their
nesting and the time that they take to come are limited. What goes wrong ends in OpenAI's form of an error.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from interlace.serve.errors import ApiError
from interlace.serve.keys import Keys

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Who watches a server bears no key, and the page asks for one: it holds nothing by itself.
OPEN = ("/health", "/ready", "/", "/page.js", "/page.css")
MOST_BODY, DEEPEST, BODY_SECONDS, WRITE_SECONDS = 8 << 20, 64, 30.0, 60.0
MUCH = 64 << 10  # bytes of a body that is read beside what goes on
FAILED = ApiError(500, "the server failed on this request; it goes on", kind="server_error")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("interlace.serve")


class ClientLeft(Exception):
    """A client neither reads nor hangs up."""


class Guard:
    """Wraps the routes."""

    def __init__(self, app: App, keys: Keys, origins: tuple[str, ...], seen: Callable[[str, int], None]):
        """Wrap an application.

        Args:
            app: what answers.
            keys: who may ask.
            origins: of pages of other servers that may, none as a rule.
            seen: told the path and the status of each request that was answered.
        """
        self.app, self.keys, self.origins, self.seen = app, keys, origins, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        number = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}".encode()
        extra = [(b"x-request-id", number), *self._cross_origin(headers)]
        began, status, whole = time.monotonic(), 0, False

        async def told(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *extra]
            async with asyncio.timeout(WRITE_SECONDS):  # who reads nothing keeps no place
                await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            if scope["method"] == "OPTIONS" and len(extra) > 1:
                await preflight(told)
                return
            self._check_page(headers)
            owner = self.keys.owner(headers.get(b"authorization"))
            if owner is None and scope["path"] not in OPEN:
                raise ApiError(
                    401,
                    "the request bears no key of this server; send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    kind="authentication_error",
                    headers={"www-authenticate": "Bearer"},
                )
            if b"transfer-encoding" in headers and b"content-length" in headers:
                raise ApiError(400, "content-length: must not come with transfer-encoding", code="two_lengths")
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > MOST_BODY:
                raise too_long()
            scope.setdefault("state", {})
            scope["state"]["owner"] = owner or ""
            await self.app(scope, receive, told)
        except ApiError as error:
            await answer(error, told)
        except TimeoutError:
            log.warning("a client read nothing for %.0f s: %s", WRITE_SECONDS, number.decode())
            raise ClientLeft from None
        except Exception:
            log.exception("a request failed: %s", number.decode())
            if not status:
                await answer(FAILED, told)
            elif not whole:
                raise  # the connection is cut, so that nobody takes half an answer for a whole one
        finally:
            self.seen(scope["path"], status)
            line = {"id": number.decode(), "method": scope["method"], "path": scope["path"][:200], "status": status}
            log.info(json.dumps({**line, "seconds": round(time.monotonic() - began, 4)}))

    def _check_page(self, headers: dict[bytes, bytes]) -> None:
        """Refuse what a page of another server asks in a browser, where no key keeps it out.

        Raises:
            ApiError: the page is another server's, or the name that led here is none of this machine.
        """
        if self.keys:
            return
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        name = host.partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if not is_loopback(name):
            raise ApiError(403, "host: names another machine; a server without keys answers to 127.0.0.1 and localhost")
        if origin and origin not in (f"http://{host}", *self.origins):
            raise ApiError(403, "origin: pages of other servers may not ask; name them with --allow-origin")

    def _cross_origin(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin not in self.origins:
            return []
        allowed = (b"access-control-allow-headers", b"authorization, content-type")
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"), allowed]


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def preflight(send: Send) -> None:
    """Tell a browser that a page may ask."""
    headers = [(b"access-control-allow-methods", b"GET, POST, DELETE"), (b"access-control-max-age", b"600")]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def too_long() -> ApiError:
    """Return the answer to a body that is too long."""
    return ApiError(413, f"body: must have at most {MOST_BODY:,} bytes", code="body_too_long")


async def answer(error: ApiError, send: Send) -> None:
    """Send an error."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read_json(receive: Receive) -> Any:
    """Return the body of a request, read as JSON.

    Raises:
        ApiError: it is too long, too slow, nested too deeply, or no JSON.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "body: the connection ended before it was read")
                part = message.get("body", b"")
                size += len(part)
                if size > MOST_BODY:
                    raise too_long()
                parts.append(part)
                if not message.get("more_body"):
                    break
    except TimeoutError:
        raise ApiError(408, f"body: did not come within {BODY_SECONDS:.0f} s", code="timeout") from None
    raw = b"".join(parts)
    return await asyncio.to_thread(_read, raw) if size > MUCH else _read(raw)


def _read(raw: bytes) -> Any:
    """Return the JSON of a body.

    Raises:
        ApiError: as `read_json`.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body: is no UTF-8: {error.reason} at byte {error.start}", code="invalid_utf8") from None
    if (depth := nesting(text)) > DEEPEST:
        raise ApiError(400, f"body: is nested {depth} deep; {DEEPEST} is the most", code="too_deep")
    try:
        value = json.loads(text, parse_constant=_no_number)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError:
        raise ApiError(400, "body: holds half a surrogate pair, which is no character", code="invalid_utf8") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: is no JSON: {str(error)[:120]}", code="invalid_json") from None


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def nesting(text: str) -> int:
    """Return how deeply lists and objects of a JSON text are nested."""
    depth = deepest = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        depth += (first in "[{") - (first in "]}")
        deepest = max(deepest, depth)
    return deepest
