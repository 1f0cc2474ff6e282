"""What clients do that mean harm: none of it stops the server, keeps a place, or shows up in a log."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import socket
import time
from pathlib import Path

import pytest
from live import KEY, OTHER, Live, small

import interlace.serve
from interlace.serve import guard, protocol
from interlace.serve.app import build
from interlace.serve.keys import Keys
from interlace.serve.served import Served

BOMB = (
    "{% if messages[0].content == 'boom' %}{% for i in range(999999999) %}{% endfor %}{% endif %}"
    "{% if messages[0].content == 'grow' %}{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
)
TEXT = {"model": "tiny", "prompt": "the quick", "max_tokens": 2}


@pytest.fixture(scope="module")
def plain():
    """A server whose chat template is a trap."""
    model = small(max_positions=20_000)
    model.tokenizer.chat_template = BOMB
    made = Live({"tiny": Served("tiny", model, "2GB", 4, None)}, Keys([KEY, OTHER]), 12)
    yield made
    made.close()


def raw(live, data, *, seconds=5.0):
    """Send bytes; return what comes back before the server ends the connection, or the time is over."""
    host, port = live.socket.getsockname()
    got = b""
    with socket.create_connection((host, port), timeout=seconds) as made:
        try:
            made.sendall(data)
            while part := made.recv(1 << 16):
                got += part
        except (TimeoutError, ConnectionError):
            pass
    return got


def post(length):
    """The head of a request whose body has so many bytes."""
    lines = ("POST /v1/completions HTTP/1.1", "Host: a", f"Authorization: Bearer {KEY}", f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def answers(live):
    """Whether the server still answers."""
    with live.client() as client:
        return client.post("/v1/completions", json=TEXT).status_code == 200


@pytest.mark.parametrize("content", ["boom", "grow"])
def test_a_template_that_does_not_end_ends_one_request(plain, content):
    with plain.client() as client:
        began = time.monotonic()
        found = client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": content}]}
        )
        assert (found.status_code, found.json()["error"]["param"]) == (400, "messages")
        assert time.monotonic() - began < 20
        ok = client.post(
            "/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
        )
        assert ok.status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(50_000)) + b"\r\n",
        b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x00\xff" * 5000,
        b"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["long header", "many headers", "long path", "noise", "two lengths", "negative length"],
)
def test_floods_of_headers_are_refused(plain, head):
    got = raw(plain, head, seconds=1)
    assert got == b"" or got.split(b" ")[1] in (b"400", b"401", b"431"), got[:200]
    assert answers(plain)


def test_headers_that_do_not_come_end_the_connection(plain, monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    assert raw(plain, b"GET /health HTTP/1.1\r\nHost: a\r\nX: ", seconds=20) == b""
    assert raw(plain, b"", seconds=20) == b""


def test_a_body_that_does_not_come_ends_its_request(plain, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    got = raw(plain, post(99) + b"{", seconds=2)
    assert b" 408 " in got.split(b"\r\n")[0]


def test_who_reads_nothing_keeps_no_place(plain, monkeypatch):
    monkeypatch.setattr(guard, "WRITE_SECONDS", 0.5)
    body = json.dumps({**TEXT, "max_tokens": 15_000, "stream": True, "n": 4, "logprobs": 20}).encode()
    engine = plain.served["tiny"].engine
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(plain.socket.getsockname())
    with made:
        made.sendall(post(len(body)) + body)
        until(lambda: engine.counts().live == 4)
        until(lambda: engine.counts().live == 0)
    assert engine.counts().made_tokens < 4 * 15_000
    assert answers(plain)


def until(met, seconds=60):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_client_that_is_killed_leaves_nothing_behind(plain):
    engine = plain.served["tiny"].engine
    until(lambda: engine.counts().live == 0)
    before = engine.counts()
    body = json.dumps({**TEXT, "max_tokens": 15_000, "stream": True, "n": 3}).encode()
    for _ in range(5):
        with socket.create_connection(plain.socket.getsockname()) as made:
            made.sendall(post(len(body)) + body)
            made.recv(1000)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
    until(lambda: engine.counts().live == 0)
    after = engine.counts()
    assert (after.waiting, after.reading, after.sequence_bytes) == (0, 0, before.sequence_bytes)


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "\x1b[31m", "\u202e", "x" * 300_000, "\ufffe"])
@pytest.mark.parametrize("stream", [False, True])
def test_any_text_in_any_field_is_answered_or_refused(plain, text, stream):
    turn = {"role": "user", "content": "a"}
    tool = {"name": "f", "description": text, "parameters": {"properties": {text: {}}}}
    schema = {"type": "json_schema", "json_schema": {"name": text[:64], "schema": {"const": text}}}
    forms = {"regex": text, "choice": [text], "grammar": text}
    bodies = [
        *[("completions", {**TEXT, field: text}) for field in ("model", "prompt", "stop", "user")],
        *[("completions", {**TEXT, "structured_outputs": {kind: form}}) for kind, form in forms.items()],
        ("completions", {**TEXT, text: 1}),
        ("completions", {**TEXT, "logit_bias": {text: 1}}),
        ("chat/completions", {"messages": [{**turn, "content": text}]}),
        ("chat/completions", {"messages": [{**turn, "role": text}]}),
        ("chat/completions", {"messages": [turn], "tools": [{"type": "function", "function": tool}]}),
        ("chat/completions", {"messages": [turn], "response_format": schema}),
        ("chat/completions", {"messages": [turn, {"role": "tool", "tool_call_id": text, "content": text}]}),
        ("responses", {"input": text, "max_output_tokens": 2}),
        ("responses", {"input": "a", "previous_response_id": text}),
        ("tokenize", {"prompt": text}),
    ]
    with plain.client() as client:
        for path, body in bodies:
            more = {} if path == "tokenize" else {"stream": stream}
            more |= {"max_tokens": 2} if path == "chat/completions" else {}
            content = json.dumps({"model": "tiny", **more, **body}).encode()
            found = client.post(f"/{path}" if path == "tokenize" else f"/v1/{path}", content=content)
            assert found.status_code in (200, 400, 404), (path, body, found.text[:200])
            assert len(found.text) < 10 * len(content) + 20_000


def test_nothing_secret_is_in_a_log_or_an_error(plain, caplog):
    secret = "MARKER-of-a-prompt"
    with caplog.at_level(logging.DEBUG), plain.client() as client, plain.client("wrong-key-with-MARKER") as wrong:
        for body in (
            {**TEXT, "prompt": secret},
            {**TEXT, "prompt": secret, "max_tokens": -1},
            {**TEXT, "prompt": secret * 20_000},
            {"model": "tiny", "messages": [{"role": "user", "content": secret}], "max_tokens": 1},
        ):
            path = "chat/completions" if "messages" in body else "completions"
            error = client.post(f"/v1/{path}", json=body).json().get("error") or {}
            assert secret not in error.get("message", "")
        assert "MARKER" not in wrong.get("/v1/models").text
        client.get("/v1/models/line%0d%0aMARKER-in-a-path", headers={"x-request-id": "a\tb"})
    said = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("interlace", "uvicorn"))
    )
    assert '"status": 200' in said
    assert secret not in said
    assert KEY not in said
    assert "wrong-key" not in said
    assert "\r" not in said
    assert all(json.loads(line)["id"] for line in said.splitlines() if line.startswith("{"))


def test_states_of_one_key_serve_no_other(plain):
    """Neither does a later question by another key come faster for what the first has asked."""
    text = "only one key has asked this before " * 20
    body = {"model": "tiny", "prompt": text, "max_tokens": 1}

    def reused(key):
        with plain.client(key) as client:
            return client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert reused(KEY) == 0
    assert reused(OTHER) == 0
    assert reused(KEY) > 0


def test_the_code_that_serves_cannot_do_some_things():
    """It runs no code of others, asks no other server, and no check of it vanishes under `python -O`."""
    files = sorted(Path(interlace.serve.__file__).parent.glob("*.py"))
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found = {name.partition(".")[0] for name in names}
                assert not found & {"pickle", "requests", "httpx", "aiohttp", "urllib", "subprocess", "marshal"}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), file
            if file.stem in ("guard", "keys", "errors", "schema", "items", "protocol"):
                assert not isinstance(node, ast.Assert), file
    source = (files[0].parent / "keys.py").read_text()
    assert "compare_digest" in source
    assert "digest ==" not in source
    assert "key ==" not in source


def test_an_answer_before_the_body_is_read_keeps_no_connection(plain, monkeypatch):
    """The rest of a body that was refused does not come; the connection ends all the same."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    began = time.monotonic()
    with socket.create_connection(plain.socket.getsockname(), timeout=20) as made:
        made.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 401 " in made.recv(4096)
        made.sendall(b"x")
        while made.recv(4096):
            pass
    assert time.monotonic() - began < 15


def test_pages_of_other_servers_are_kept_out_where_no_key_does():
    open_server = Live({"tiny": Served("tiny", small(), "1GB", 2, None)}, Keys([]), 4)
    try:
        with open_server.client(None) as client:
            own = {"origin": open_server.url}
            assert client.get("/v1/models", headers=own).status_code == 200
            for wrong in ({"origin": "https://evil.example"}, {"host": "evil.example:8000"}, {"origin": "null"}):
                found = client.post("/v1/completions", content=json.dumps(TEXT), headers=wrong)
                assert (found.status_code, found.json()["error"]["type"]) == (403, "invalid_request_error")
            found = client.post("/v1/completions", json={**TEXT, "n": 5})
            assert (found.status_code, found.json()["error"]["param"]) == (400, "n")  # more than there is room for
    finally:
        open_server.close()


def test_a_page_that_is_named_may_ask(plain):
    wrapped = build(plain.served, Keys([KEY]), 4, ("https://page.example",))

    async def ask(method, origin):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b""}

        async def send(message):
            sent.append(message)

        headers = [(b"origin", origin), (b"host", b"a")]
        scope = {"type": "http", "method": method, "path": "/v1/models", "headers": headers, "query_string": b""}
        await wrapped(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    status, headers = asyncio.run(ask("OPTIONS", b"https://page.example"))
    assert (status, headers[b"access-control-allow-origin"]) == (204, b"https://page.example")
    assert b"POST" in headers[b"access-control-allow-methods"]
    status, headers = asyncio.run(ask("OPTIONS", b"https://evil.example"))
    assert status == 401
    assert b"access-control-allow-origin" not in headers


def calling(arguments):
    """A turn whose call has these arguments."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "logit_bias": {"9" * 5000: 1}},
        {"messages": [calling('{"x": "\\ud800"}')]},
        {"messages": [calling('{"x": 1e999}')]},
    ],
    ids=["long id", "half a pair", "no number"],
)
def test_mistakes_of_a_client_are_its_own(plain, body):
    path = "chat/completions" if "messages" in body else "completions"
    with plain.client() as client:
        assert client.post(f"/v1/{path}", json={"model": "tiny", "max_tokens": 1, **body}).status_code == 400
