"""Other people's clients against the live server."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import foreign
import pytest
from live import KEY, Live, small

from interlace.serve.document import document
from interlace.serve.keys import Keys
from interlace.serve.metrics import BOUNDS, GAUGES, Times
from interlace.serve.served import Served

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def apart():
    """Call a function of `foreign` in another process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda function, *given, **more: process.submit(function, *given, **more).result()


@pytest.mark.slow
@pytest.mark.process
def test_litellm(live, says, apart):
    says("the fox")
    content, _, total, _ = apart(foreign.litellm_answer, live.url)
    assert content == "the fox"
    assert apart(foreign.litellm_streamed, live.url) == ("the fox", total)
    says("<think>\nhm\n</think>\nyes")
    assert apart(foreign.litellm_answer, live.url)[:2] == ("yes", "hm")
    assert apart(foreign.litellm_responses, live.url) == "yes"
    says("<tool_call>", end=False)
    assert apart(foreign.litellm_answer, live.url, tools=[TOOL], parallel_tool_calls=False)[3] == {"city": "Rome"}


@pytest.mark.process
def test_langchain(live, says, apart):
    says("the fox")
    assert apart(foreign.langchain_answer, live.url) == "the fox"
    assert apart(foreign.langchain_streamed, live.url) == "the fox"
    assert apart(foreign.langchain_answer, live.url, use_responses_api=True) == "the fox"
    says("<tool_call>", end=False)
    assert apart(foreign.langchain_called, live.url, TOOL) == {"city": "Rome"}
    schema = {"properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    says("", end=False)
    assert apart(foreign.langchain_structured, live.url, {"title": "t", "type": "object", **schema}) == {"a": 1}


@pytest.mark.parametrize(
    ("form", "calling", "passed"), [("openai-chat", "chat-tool-calling", 6), ("open-responses", "tool-calling", 10)]
)
def test_llm_comply(live, says, form, calling, passed):
    """All of its checks but those of images; the one of tools by itself, as the model must call."""
    code = "import sys; from llm_comply.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--format", form, "-u", f"{live.url}/v1", "-m", "tiny", "-k", KEY, "--json"]

    def failed(*more):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, check=False)
        results = json.loads(done.stdout)["results"]
        assert sum(one["status"] == "passed" for one in results) >= (1 if more else passed), results
        return {one["id"]: one["errors"] for one in results if one["status"] == "failed"}

    says("the fox")
    wrong = failed()
    assert {name.removeprefix("chat-") for name in wrong} == {"tool-calling", "image-input"}, wrong
    says('<tool_call>\n{"name": "get_weather", "arguments": {"location": "Rome"}}\n</tool_call>')
    assert failed("-f", calling) == {}


def test_the_document_is_one(ask):
    found = ask.get("/openapi.json").json()
    assert found == json.loads(json.dumps(document(["tiny"])))
    assert found["openapi"].startswith("3.1")
    assert "/v1/responses" in found["paths"]
    for path, methods in found["paths"].items():
        for method in methods:
            asked = ask.request(method, path.replace("{name}", "none"))
            assert asked.status_code != 405, (method, path)


def test_metrics_say_what_was_done(ask):
    def read():
        lines = [line for line in ask.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    before = read()
    ask.post("/v1/completions", json={"model": "tiny", "prompt": "brown dog", "max_tokens": 7})
    ask.get("/nowhere/at/all")
    after = read()
    made = 'interlace_tokens_total{kind="made",model="tiny"}'
    assert after[made] - before[made] == 7
    done = 'interlace_requests_total{path="/v1/completions",status="200"}'
    assert after[done] - before.get(done, 0) == 1
    assert after['interlace_requests_total{path="other",status="404"}'] >= 1
    first = 'interlace_time_to_first_token_seconds_count{model="tiny"}'
    assert after[first] - before[first] == 1
    for name in GAUGES:
        assert f'interlace_{name}{{model="tiny"}}' in after
    assert after['interlace_running_requests{model="tiny"}'] == 0


def test_times_are_counted_by_their_length():
    times = Times()
    for seconds in (0.001, BOUNDS[0], 0.3, 1e9):
        times.add(seconds)
    found = dict(times.buckets())
    assert (found["0.01"], found["0.5"], found["300.0"], found["+Inf"]) == (2, 3, 3, 4)


@pytest.mark.slow
@pytest.mark.process
def test_schemathesis(tmp_path):
    """Requests made from the document, right and wrong: none breaks the server, and wrong ones are refused."""
    live = Live({"tiny": Served("tiny", small(max_positions=600), "2GB", 8, 6)}, Keys([KEY]), 40)
    code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    command = [sys.executable, "-c", code, "run", f"{live.url}/openapi.json", "-H", f"Authorization: Bearer {KEY}"]
    command += ["-n", "20", "--phases", "examples,fuzzing", "--max-time", "20", "--seed", "1"]
    command += ["--exclude-checks", "positive_data_acceptance"]  # such as a schema that no grammar enforces
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-5000:]
        with live.client() as client:
            assert client.get("/v1/models").status_code == 200
    finally:
        live.close()
