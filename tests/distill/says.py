"""A teacher whose replies are bytes that a test writes."""

from __future__ import annotations

import json
import socketserver
import threading

import pytest


def whole(body, *headers, kind="application/json", status="200 OK"):
    """A reply as it goes over the wire; `body` is bytes, or what becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(raw)}", *headers, "", ""]
    return "\r\n".join(head).encode() + raw


def completion(text="It is 7.", finish="stop", usage=(20, 8, 28), **more):
    """A chat completion; `usage` is prompt, answer and total, a table of its own, or None for none."""
    made = {"id": "r", "object": "chat.completion"}
    made["choices"] = [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]
    if usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        made["usage"] = dict(zip(names, usage, strict=True)) if isinstance(usage, tuple) else usage
    return made | more


class Says:
    """Answers each request with the bytes that `reply(body, number)` returns; `asked` holds the bodies."""

    def __init__(self, reply):
        asked = self.asked = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while line := self.rfile.readline():
                    size = 0
                    while line.strip():
                        name, _, value = line.partition(b":")
                        size = int(value) if name.lower() == b"content-length" else size
                        line = self.rfile.readline()
                    body = json.loads(self.rfile.read(size))
                    asked.append(body)
                    self.wfile.write(reply(body, len(asked)))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_):
                pass  # the client went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def says():
    """Starts teachers that say bytes for every request, or what a function of the body and the number gives."""
    running = []

    def start(reply):
        running.append(Says(reply if callable(reply) else lambda *_: reply))
        return running[-1]

    yield start
    for one in running:
        one.server.shutdown()
        one.server.server_close()
