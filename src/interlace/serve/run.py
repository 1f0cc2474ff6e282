"""Listen: load models, open the port, and end in order."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from interlace.base.errors import ConfigError, Failure
from interlace.model.model import HybridLM
from interlace.ops.core import kernels
from interlace.serve.app import build
from interlace.serve.guard import App, is_loopback
from interlace.serve.keys import Keys
from interlace.serve.protocol import HEADER_BYTES, Protocol
from interlace.serve.served import Served

BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: the port is in use, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host.strip("[]"), port))
    except OSError as error:
        made.close()
        raise ConfigError(
            f"port: {host}:{port} cannot be listened on: {error.strerror or error}; choose another with --port, or end "
            "what uses it"
        ) from None
    return made


def configured(app: App, most: int, drain_seconds: int) -> uvicorn.Config:
    """Return how the server listens.

    Args:
        app: what answers.
        most: requests that may be on their way at a time; some more connections may be open.
        drain_seconds: how long answers may go on once the server is to end.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        http=Protocol,
        ws="none",
        lifespan="off",
        limit_concurrency=4 * most + 64,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=drain_seconds,
    )


class _Server(uvicorn.Server):
    """Ends in order on SIGTERM and Ctrl-C, and is not killed by them afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the two signals while the server runs."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    models: dict[str, Callable[[], HybridLM]],
    *,
    host: str,
    port: int,
    api_key_file: Path | None,
    memory: str,
    rows: int,
    max_queue: int,
    max_tokens: int | None,
    drain_seconds: int,
    origins: tuple[str, ...] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        models: what loads each, by name.
        rows: the most answers that are made at a time; max_queue: requests that may wait beside them.
        max_tokens: the most of an answer; None for the model's limit.
        drain_seconds: how long answers may go on after SIGTERM.
        origins: of pages of other servers that may ask.
        say: told where the server listens.

    Raises:
        ConfigError: it would listen to others without a key, or an argument is wrong. Failure: it ended by itself.
    """
    if api_key_file is None and not is_loopback(host):
        raise ConfigError(
            f"host: {host} is reached by others, and no key is asked for; give --api-key-file, or --host 127.0.0.1"
        )
    kernels.return_memory()
    keys = Keys([]) if api_key_file is None else Keys.read(api_key_file)
    made = listen(host, port)
    served: dict[str, Served] = {}
    try:
        for name, load in models.items():
            served[name] = Served(name, load(), memory, rows, max_tokens)
        app = build(served, keys, rows + max_queue, origins)
        config = configured(app, rows + max_queue, drain_seconds)
        logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the guard says what went wrong, in a line
        made.listen(BACKLOG)
        place = f"[{host}]" if ":" in host else host
        say(f"serving {', '.join(served)} at http://{place}:{made.getsockname()[1]}/v1")
        server = _Server(config)
        server.run(sockets=[made])
        if not server.started:
            raise Failure("the server could not start; see the lines above")
    finally:
        for one in served.values():
            one.close()
        made.close()
