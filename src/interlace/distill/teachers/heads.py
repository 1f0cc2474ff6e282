"""Read the heads of HTTP replies as tolerantly as other clients do, before aiohttp's parser sees them.

That parser refuses a length that stands twice, and a length beside chunks. Python's other clients accept both. An
endpoint that sends them works with those, and would charge for answers that we throw away.
"""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

LONGEST = 1 << 20  # bytes of a head, and of one line of it
MOST = 10_000  # lines of a head
LIMITS: dict[str, Any] = {"max_line_size": LONGEST, "max_field_size": LONGEST, "max_headers": MOST}
KEPT_SECONDS = 4.0  # how long an idle connection is kept; some servers close it after five
_END = re.compile(rb"\r?\n\r?\n")


def connector() -> aiohttp.TCPConnector:
    """Make a connector with any number of connections, which reads heads tolerantly."""
    made = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS)
    if hasattr(made, "_factory"):  # without it, heads are read as strictly as aiohttp does
        factory: Any = functools.partial(_Tolerant, loop=asyncio.get_running_loop())
        made._factory = factory
    return made


class _Tolerant(ResponseHandler):
    """Collects a reply's head until it is whole, and passes it on with one length."""

    _head: bytes | None = None

    def set_response_params(self, **settings: Any) -> None:
        super().set_response_params(**settings)
        self._head = b""

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            data = self._gathered(data)
        if data:
            super().data_received(data)

    def _gathered(self, data: bytes) -> bytes:
        """Add new bytes to the head; return the bytes that may be passed on."""
        assert self._head is not None
        head, ready = self._head + data, b""
        while found := _END.search(head):
            part, head = head[: found.end()], head[found.end() :]
            ready += one_length(part, found.start())
            if not re.match(rb"HTTP/\S+ 1\d\d", part):  # 100 and its like announce another head
                self._head = None
                return ready + head
        if len(head) > LONGEST:
            self._head = None
            self.set_exception(aiohttp.ClientPayloadError(f"a reply's head of more than {LONGEST >> 20} MiB"))
            self.close()
            return b""
        self._head = head
        return ready

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head:
            data, self._head = self._head, None
            super().data_received(data)
        super().connection_lost(exc)


def one_length(raw: bytes, end: int) -> bytes:
    """Return a head, which ends at `end`, with one content-length if several agree, and with none beside chunks."""
    low = raw[:end].lower()
    lengths = re.findall(rb"^content-length:[ \t]*([^\r\n]*)", low, re.MULTILINE)
    chunked = re.search(rb"^transfer-encoding:[^\r\n]*chunked", low, re.MULTILINE) is not None
    values = {value.strip() for line in lengths for value in line.split(b",")}
    if (
        not lengths
        or (len(lengths) == 1 and b"," not in lengths[0] and not chunked)
        or (len(values) > 1 and not chunked)
    ):
        return raw
    lines = [line.rstrip(b"\r") for line in raw[:end].split(b"\n")]
    kept = [line for line in lines if not line.lower().startswith(b"content-length:")]
    return b"\r\n".join(kept if chunked else [*kept, b"Content-Length: " + values.pop()]) + raw[end:]
