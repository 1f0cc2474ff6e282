"""Replies as endpoints and the proxies before them send them; what the usual client reads is read here too."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from says import completion, whole

from interlace.base.errors import ConfigError
from interlace.distill.folder import DistillRun
from interlace.distill.run import generate, status
from interlace.distill.teachers.endpoint import Endpoint
from interlace.distill.teachers.outcomes import Reply, content
from interlace.distill.teachers.teacher import Teacher

BODY = json.dumps(completion()).encode()
SIZE = f"content-length: {len(BODY)}"
CHUNKED = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (BODY[:50], BODY[50:])) + b"0\r\n\r\n"
STREAM = b'data: {"choices": [{"index": 0, "delta": {"content": "It"}}]}\n\ndata: [DONE]\n\n'
PAGE = b"<!doctype html><html><body>Down for maintenance</body></html>"


def raw(*headers, body=BODY, reason="OK"):
    """A reply with exactly these headers."""
    return "\r\n".join([f"HTTP/1.1 200 {reason}", "content-type: application/json", *headers, "", ""]).encode() + body


def outcome(url):
    """What came of one request."""

    async def ask():
        endpoint = Endpoint("t", Teacher(model="m", base_url=url, licence="x", terms="own"))
        try:
            return await endpoint.send({"model": "m", "messages": []})
        finally:
            await endpoint.close()

    return asyncio.run(ask())


GOOD = {
    "a header of 9 KB": whole(BODY, "x-trace: " + "a" * 9000),
    "a header of 60 KB": whole(BODY, "x-trace: " + "a" * 60_000),
    "400 headers": whole(BODY, *(f"x-{i}: v" for i in range(400))),
    "a long reason": raw(SIZE, reason="O" * 9000),
    "a doubled length": whole(BODY, SIZE),
    "a length three times": whole(BODY, SIZE, SIZE),
    "a list of lengths": raw(f"{SIZE}, {len(BODY)}"),
    "a length beside chunks": raw("transfer-encoding: chunked", "content-length: 5", body=CHUNKED),
    "a byte-order mark": whole(b"\xef\xbb\xbf" + BODY),
    "UTF-16": whole(BODY.decode().encode("utf-16")),
    "Latin-1 that says so": whole(
        json.dumps(completion("It is 7.", model="café"), ensure_ascii=False).encode("latin-1"),
        kind="application/json; charset=iso-8859-1",
    ),
    "UTF-8 called Latin-1": whole(BODY, kind="application/json; charset=iso-8859-1"),
    "a charset that is none": whole(BODY, kind="application/json; charset=none"),
    "an error of code 0": whole(completion(error={"code": 0, "message": "success"})),
    "an error without words": whole(completion(error={"code": None, "message": ""})),
    "spaces before": whole(b" \r\n\n" * 1000 + BODY),
    "packed": whole(gzip.compress(BODY), "content-encoding: gzip"),
    "a cookie that is none": whole(BODY, "set-cookie: a b;;; =x"),
    "a hint first": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + whole(BODY),
    "lines that end in a newline alone": raw(SIZE).replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("reply", GOOD.values(), ids=GOOD)
def test_what_the_usual_client_reads_is_read(says, reply):
    found = outcome(says(reply).url)
    assert isinstance(found, Reply), found
    assert content(found.body).text == "It is 7."


@pytest.mark.parametrize(
    "reply",
    [whole(BODY, f"content-length: {len(BODY) + 1}"), raw(f"{SIZE}, {len(BODY) + 1}"), whole(BODY, "no header")],
)
def test_lengths_that_differ_are_no_reply(says, reply):
    assert not isinstance(outcome(says(reply).url), Reply)


def test_letters_are_those_of_the_charset_that_is_stated(says):
    body = json.dumps(completion("café"), ensure_ascii=False)
    for raw_body, charset in ((body.encode(), "iso-8859-1"), (body.encode("latin-1"), "iso-8859-1")):
        found = outcome(says(whole(raw_body, kind=f"application/json; charset={charset}")).url)
        assert content(found.body).text == "café"


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_bytes_that_are_no_text_are_no_answer(says, kind):
    body = json.dumps(completion("café"), ensure_ascii=False).encode("latin-1")
    found = outcome(says(whole(body, kind=kind)).url)
    assert not isinstance(found, Reply)
    assert "broken JSON" in found.error
    assert "UTF-8" in found.error


@pytest.mark.parametrize("error", [{"code": 502, "message": ""}, {"message": "gone"}, "gone", {"code": "0x1"}])
def test_an_error_that_says_something_beside_an_answer_is_one(says, error):
    assert not isinstance(outcome(says(whole(completion(error=error))).url), Reply)


def test_headers_have_an_end(says):
    found = outcome(says(whole(BODY, *(f"x-{i}: " + "a" * 5000 for i in range(2000)))).url)  # 10 MB of them
    assert not isinstance(found, Reply)


def test_connections_are_used_again_after_each_kind_of_head(says, recipe, tmp_path):
    replies = list(GOOD.values())
    sim = says(lambda _, number: replies[number % len(replies)])
    generate(recipe(sim.url, rows=40, teacher="connections = 2"), tmp_path / "run")
    assert status(tmp_path / "run")["steps"][1]["rows"] == {"ok": 40}
    assert len(sim.asked) == 40


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (whole(STREAM, kind="text/event-stream"), "server-sent events"),
        (whole(STREAM), "server-sent events"),
        (whole(b": waiting\n\n" + STREAM), "server-sent events"),
        (whole(PAGE, kind="text/html"), "HTML"),
        (whole(b"\xef\xbb\xbf\n" + PAGE, kind="text/html"), "HTML"),
    ],
)
def test_what_is_no_json_is_named_once_with_its_address(says, recipe, tmp_path, reply, what):
    sim = says(reply)
    with pytest.raises(ConfigError) as error:
        generate(recipe(sim.url, rows=40), tmp_path / "run")
    assert what in str(error.value)
    assert sim.url in str(error.value)
    assert len(sim.asked) < 20


@pytest.mark.parametrize(("reply", "what"), [(whole(STREAM), "server-sent events"), (whole(PAGE), "HTML")])
def test_what_is_no_json_amid_a_run_is_a_row_s_reason_with_its_address(says, recipe, tmp_path, reply, what):
    sim = says(lambda body, _: reply if "What is 3 " in body["messages"][-1]["content"] else whole(completion()))
    generate(recipe(sim.url, rows=6, teacher="tries = 2"), tmp_path / "run")
    folder = DistillRun(tmp_path / "run")
    ledger = folder.open_ledger()
    (row,) = [r for r in ledger.rows.ordered(folder.stages[-1].id, state=None) if r.state != "ok"]
    ledger.close()
    assert what in row.reason
    assert sim.url in row.reason
    assert "<" not in row.reason.replace(sim.url, "")[:40]


@pytest.mark.parametrize("extra", ["{stream = true}", "{n = 4}"])
def test_what_would_be_answered_in_another_form_is_refused_before_paying(says, recipe, tmp_path, extra):
    sim = says(whole(BODY))
    file = recipe(sim.url)
    file.write_text(file.read_text().replace("max_tokens = 64", f"max_tokens = 64\nextra = {extra}"))
    with pytest.raises(ConfigError, match=rf"extra.*{extra.split()[0][1:]}"):
        generate(file, tmp_path / "run")
    assert sim.asked == []
