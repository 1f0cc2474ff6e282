"""The server as its clients see it: OpenAI's own client, and requests that are wrong."""

from __future__ import annotations

import json
import stat
import threading

import openai
import pytest
from live import KEY, OTHER, Live, small

from interlace.base.errors import ConfigError
from interlace.data.chat import Thought
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.serve import streamed
from interlace.serve.app import Api
from interlace.serve.guard import MOST_BODY, OPEN, nesting
from interlace.serve.keys import Keys
from interlace.serve.run import is_loopback, listen, serve
from interlace.serve.schema import MOST_CHOICES
from interlace.serve.served import Served

HELLO = [{"role": "user", "content": "the quick"}]


def text_of(live, prompt, most, seed=0, temperature=0.0):
    model = live.served["tiny"].engine.model
    ids = model.tokenizer.encode_text(prompt)
    made = generate_tokens(model, ids, max_tokens=most, sampling=Sampling(temperature), seed=seed)
    return model.tokenizer.decode(list(made))


# OpenAI's client


def test_models_are_listed_and_shown(client):
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "interlace"
    with pytest.raises(openai.NotFoundError, match="'big' is not served here; there is tiny"):
        client.models.retrieve("big")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_is_what_generate_makes_whole_and_streamed(client, live, temperature):
    how = {"model": "tiny", "prompt": "the quick", "max_tokens": 12, "temperature": temperature, "seed": 7}
    want = text_of(live, "the quick", 12, 7, temperature)
    whole = client.completions.create(**how)
    assert whole.choices[0].text == want
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (12, "length")
    chunks = list(client.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks[:-1]) == want
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert all(c.usage is None for c in chunks[:-1])


def test_a_chat_is_whole_and_streamed_alike(client):
    how = {"model": "tiny", "messages": HELLO, "max_tokens": 10, "seed": 3, "temperature": 1.0}
    whole = client.chat.completions.create(**how, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 3
    text = ["", "", ""]
    for chunk in client.chat.completions.create(**how, n=3, stream=True):
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
    assert text == [choice.message.content for choice in whole.choices]
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0


def test_log_probabilities_are_those_of_the_tokens(client, live):
    chat = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 4
    assert all(one.logprob == one.top_logprobs[0].logprob for one in content)  # the likeliest was taken
    plain = client.completions.create(
        model="tiny", prompt="the quick", max_tokens=3, temperature=0, logprobs=1, echo=True
    )
    found = plain.choices[0]
    model = live.served["tiny"].engine.model
    ids = model.tokenizer.encode_text("the quick")
    assert found.text == "the quick" + text_of(live, "the quick", 3)
    assert found.logprobs.token_logprobs[0] is None
    assert len(found.logprobs.token_logprobs) == len(ids) + 3
    assert "".join(found.logprobs.tokens[: len(ids)]) == "the quick"
    scored = client.completions.create(model="tiny", prompt=ids, max_tokens=0, logprobs=1, echo=True)
    assert scored.choices[0].logprobs.token_logprobs == found.logprobs.token_logprobs[: len(ids)]
    assert scored.usage.completion_tokens == 0


def test_prompts_are_texts_lists_and_ids(client, live):
    model = live.served["tiny"].engine.model
    ids = [model.tokenizer.encode_text(text) for text in ("the fox", "a dog")]
    how = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    texts = [c.text for c in client.completions.create(prompt=["the fox", "a dog"], **how).choices]
    assert texts == [c.text for c in client.completions.create(prompt=ids, **how).choices]
    assert texts[0] == client.completions.create(prompt=ids[0], **how).choices[0].text


def test_what_was_read_before_is_reused_but_not_by_others(live):
    how = {"model": "tiny", "prompt": "over the lazy brown dog jumps the fox", "max_tokens": 2}

    def cached(key):
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0) as client:
            return client.completions.create(**how).usage.prompt_tokens_details.cached_tokens

    assert cached(KEY) == 0
    assert cached(KEY) > 0
    assert cached(OTHER) == 0


def test_a_stop_string_ends_an_answer(client, live):
    text = text_of(live, "the quick", 30)
    stop = text[8:11]
    found = client.completions.create(model="tiny", prompt="the quick", max_tokens=30, temperature=0, stop=[stop])
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_tokens_and_back(ask):
    found = ask.post("/tokenize", json={"prompt": "the fox"}).json()
    assert found["count"] == len(found["tokens"])
    assert ask.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "the fox"}


# What is wrong


CHAT = {"model": "tiny", "messages": HELLO}
TEXT = {"model": "tiny", "prompt": "the"}


def schema_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def tool(name="f", **more):
    return {"type": "function", "function": {"name": name, **more}}


def allowed(*names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}


def called(arguments):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        ("completions", {**TEXT, "model": "x" * 200}, 404, "model", "is not served here; there is tiny"),
        ("completions", {"prompt": "a"}, 400, "model", "model: is missing"),
        ("completions", {**TEXT, "prompt": ""}, 200, None, ""),
        ("completions", {**TEXT, "prompt": []}, 400, "prompt", "must hold 1 to 64 prompts"),
        ("completions", {**TEXT, "prompt": [[]]}, 400, "prompt", "is empty"),
        ("completions", {**TEXT, "prompt": None}, 400, "prompt", "prompt"),
        ("completions", {**TEXT, "prompt": [1, 2, 999]}, 400, "prompt", "ids must lie in [0, 300), got 999"),
        ("completions", {**TEXT, "prompt": [1.5]}, 400, "prompt", "must be text or token ids"),
        ("completions", {**TEXT, "prompt": "fox " * 2000}, 400, "prompt", "the model's limit is 2000"),
        ("completions", {**TEXT, "max_tokens": 5000}, 400, "max_tokens", "tokens can be made, got 5000"),
        ("completions", {**TEXT, "max_tokens": -1}, 400, "max_tokens", "max_tokens: "),
        ("completions", {**TEXT, "max_tokens": 1 << 63}, 400, "max_tokens", "max_tokens: "),
        ("completions", {**TEXT, "max_tokens": "7"}, 400, "max_tokens", "max_tokens: "),
        ("completions", {**TEXT, "n": MOST_CHOICES + 1}, 400, "n", "n: "),
        ("completions", {**TEXT, "n": 0}, 400, "n", "n: "),
        ("completions", {**TEXT, "logprobs": 300}, 400, "logprobs", "logprobs: "),
        ("completions", {**TEXT, "temperature": 2.5}, 400, "temperature", "temperature: "),
        ("completions", {**TEXT, "presence_penalty": -3}, 400, "presence_penalty", "presence_penalty: "),
        ("completions", {**TEXT, "repetition_penalty": 0}, 400, "repetition_penalty", "repetition_penalty: "),
        ("completions", {**TEXT, "logit_bias": {"x": 1}}, 400, "logit_bias", "must name token ids"),
        ("completions", {**TEXT, "logit_bias": {"5000": 1}}, 400, "logit_bias", "outside"),
        ("completions", {**TEXT, "stop": [""]}, 400, "stop", "empty string"),
        ("completions", {**TEXT, "stop": ["a"] * 40}, 400, "stop", "stop"),
        ("completions", {**TEXT, "suffix": "x"}, 400, "suffix", "suffix"),
        ("completions", {**TEXT, "guided_regex": "(a+)+$"}, 400, "guided_regex", "is not served here"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages", "messages"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "king", "content": "a"}]},
            400,
            "messages",
            "messages.0.role",
        ),
        ("chat/completions", {**CHAT, "chat_template": "{{ 1 }}"}, 400, "chat_template", "is not served here"),
        (
            "chat/completions",
            {**CHAT, "chat_template_kwargs": {"messages": []}},
            400,
            "chat_template_kwargs",
            "chat_template_kwargs.messages: is not served here",
        ),
        ("chat/completions", {**CHAT, "reasoning_effort": "low"}, 400, "reasoning_effort", "template does not read it"),
        ("chat/completions", {**CHAT, "tools": [{}]}, 400, "tools", "tools"),
        *[
            ("chat/completions", {**CHAT, **body}, 400, next(iter(body)), says)
            for body, says in [
                ({"response_format": {"type": "xml"}}, "response_format: "),
                ({"response_format": schema_of({"items": {"not": {}}})}, "response_format: #/items/not: 'not' would"),
                ({"response_format": schema_of({"pattern": "(?=a)"})}, "response_format: #: "),
                ({"structured_outputs": {"regex": "a{1000000}"}}, "structured_outputs: regex: "),
                ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "must have one of json, regex"),
                ({"structured_outputs": {}}, "must have one of json, regex"),
                ({"structured_outputs": {"grammar": "start: ("}}, "structured_outputs: grammar: "),
                ({"tool_choice": "required"}, "tool_choice: needs tools"),
                ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [tool()]}, "there is f"),
                ({"tool_choice": allowed("g"), "tools": [tool()]}, "tool_choice: there is no function 'g'; there is f"),
                ({"tool_choice": allowed(), "tools": [tool()]}, "tool_choice.allowed_tools.tools: "),
                ({"tool_choice": {"type": "maybe"}, "tools": [tool()]}, "tool_choice.type: "),
                ({"tools": [tool(), tool()]}, "two functions are named 'f'"),
                ({"tools": [tool("a b")]}, "tools.0.function.name"),
                ({"tools": [tool(parameters={"not": {}}, strict=True)]}, "tools: f: parameters: #/not"),
                ({"structured_outputs": {"regex": "a"}, "tools": [tool()]}, "not together with tools"),
                ({"messages": [called("[1]")]}, "the arguments of the call 'c' must be a JSON object"),
            ]
        ],
        ("completions", {**TEXT, "structured_outputs": {"choice": []}}, 400, "structured_outputs", "list of 1 to 1000"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages",
            "messages.0",
        ),
        ("chat/completions", [], 400, None, "must be a JSON object"),
    ],
)
def test_what_is_wrong_names_its_field(ask, path, body, status, param, says):
    found = ask.post(f"/v1/{path}", json=body)
    assert found.status_code == status, found.text
    if status != 200:
        error = found.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error")
        assert says in error["message"]
        assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"a": "\xff"}', 400, "invalid_utf8"),
        (b'{"a": NaN}', 400, "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b"[" * 100_000, 400, "too_deep"),
        (b'{"a":' * 5000, 400, "too_deep"),
        (b'{"a": "' + b"[" * 5000 + b'"}', 400, "missing_required_parameter"),
        (b" " * (MOST_BODY + 1), 413, "body_too_long"),
    ],
    ids=["half", "latin", "nan", "digits", "lists", "objects", "brackets in text", "long"],
)
def test_bodies_that_are_wrong(ask, body, status, code):
    found = ask.post("/v1/completions", content=body)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


def test_a_body_without_a_length_is_counted(ask):
    def parts():
        for _ in range(9):
            yield b" " * (1 << 20)

    assert ask.post("/v1/completions", content=parts()).status_code == 413


def test_nesting_is_that_of_json():
    for text in ("1", "[]", '{"a": [1, {"b": []}]}', '["[", "\\"[", {"]": "["}]', '"[[["'):

        def depth(x):
            inside = x.values() if isinstance(x, dict) else x if isinstance(x, list) else None
            return 0 if inside is None else 1 + max(map(depth, inside), default=0)

        assert nesting(text) == depth(json.loads(text))


# Keys


@pytest.mark.parametrize("host", [None, "evil/?", "a?b=/health", "/health", "x" * 300])
@pytest.mark.parametrize(
    "path",
    [
        *sorted({route.path for route in Api({}, 1).routes()} - set(OPEN)),
        "//v1/models",
        "/V1/models",
        "/v1/models/",
        "/v1/../v1/models",
        "/%2e/v1/models",
        "/v1/models.",
        "/page.js/../metrics",
        "/health/../v1/models",
    ],
)
def test_every_path_but_health_asks_for_a_key(live, path, host):
    headers = {} if host is None else {"host": host}
    for key in (None, "wrong-key-of-sixteen-letters", "x"):
        with live.client(key) as client:
            found = client.get(path, headers=headers)
            assert found.status_code in (400, 401), (path, host, found.status_code)  # 400: a Host that is none
            if found.status_code == 401:
                assert found.json()["error"]["type"] == "authentication_error"
                assert found.headers["www-authenticate"] == "Bearer"


def test_what_needs_no_key_tells_nothing(live):
    assert set(OPEN) == {"/health", "/ready", "/", "/page.js", "/page.css"}
    with live.client(None) as client:
        for path in OPEN:
            found = client.get(path)
            assert found.status_code == 200
            assert "tiny" not in found.text
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_health_needs_no_key_and_other_methods_do(live):
    with live.client(None) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.post("/v1/completions", json=TEXT).status_code == 401
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, "/v1/completions").status_code == 401


def test_unknown_paths_and_methods_answer_in_the_same_form(ask):
    assert ask.get("/v2/models").status_code == 404
    found = ask.get("/v1/completions")
    assert found.status_code == 405
    assert "error" in found.json()


def test_no_page_of_another_server_is_let_in(ask):
    found = ask.get("/v1/models", headers={"origin": "https://example.org"})
    assert not [name for name in found.headers if name.startswith("access-control")]


def test_a_request_keeps_its_number_if_that_is_harmless(ask):
    assert ask.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert ask.get("/health", headers={"x-request-id": "a b{}"}).headers["x-request-id"].startswith("req-")


def test_files_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEY}\n\n{OTHER}\n")
    with pytest.raises(ConfigError, match="others can read it; run `chmod 600"):
        Keys.read(file)
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    keys = Keys.read(file)
    owners = [keys.owner(f"Bearer {key}".encode()) for key in (KEY, OTHER, "x")]
    assert owners[2] is None
    assert owners[0] != owners[1]
    assert KEY not in str(vars(keys))
    assert keys.owner(b"Basic " + KEY.encode()) is None
    for wrong, says in (("", "holds no key"), ("short\n", "at least 16 characters")):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=says):
            Keys.read(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.read(tmp_path / "none")


def options(**more):
    given = {"host": "127.0.0.1", "port": 0, "api_key_file": None, "memory": "1GB", "rows": 2, "max_queue": 1}
    return {**given, "max_tokens": None, "drain_seconds": 1, **more}


def test_what_others_reach_needs_a_key_and_a_port_in_use_is_named():
    with pytest.raises(ConfigError, match=r"host: 0\.0\.0\.0 is reached by others.*--api-key-file"):
        serve({}, **options(host="0.0.0.0"))
    assert [is_loopback(x) for x in ("127.0.0.1", "::1", "[::1]", "localhost", "10.0.0.1", "example.org")] == [
        *(True,) * 4,
        *(False,) * 2,
    ]
    taken = listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(ConfigError, match="port: .* cannot be listened on: .*choose another with --port"):
        serve({}, **options(port=taken.getsockname()[1]))
    taken.close()


# Load


def test_a_full_queue_says_when_to_come_again():
    made = Live({"tiny": Served("tiny", small(), "2GB", 2, None)}, Keys([]), 2)
    try:
        with (
            made.client(None) as client,
            client.stream(
                "POST", "/v1/completions", json={**TEXT, "n": 2, "max_tokens": 100_000, "stream": True}
            ) as going,
        ):
            lines = going.iter_lines()
            next(lines)
            with made.client(None) as other:
                found = other.post("/v1/completions", json=TEXT)
                assert found.status_code == 429
                assert found.headers["retry-after"] == "1"
                assert found.json()["error"]["code"] == "queue_full"
        with made.client(None) as client:  # who left gave both places back
            for _ in range(200):
                found = client.post("/v1/completions", json=TEXT)
                if found.status_code == 200:
                    break
            assert found.status_code == 200
    finally:
        made.close()


@pytest.mark.parametrize("silence", [0.02, 60])
def test_a_silent_stream_says_that_it_goes_on(live, ask, client, says, monkeypatch, silence):
    """In comments, which clients do not read; a call is one event, at its end."""
    monkeypatch.setattr(streamed, "SILENCE", silence)
    says("<tool_call>", end=False)
    body = {**CHAT, "tools": [tool(parameters={"properties": {"a": {"type": "integer"}}})], "max_tokens": 300}
    text = ask.post("/v1/chat/completions", json={**body, "stream": True}).text
    assert (text.count(": the answer is being made\n\n") > 2) == (silence < 1)
    assert all(part.startswith(("data: ", ": ")) for part in text.removesuffix("\n\n").split("\n\n"))
    assert text.endswith("data: [DONE]\n\n")
    with client.chat.completions.stream(**body) as events:
        found = events.get_final_completion().choices[0]
    whole = ask.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (found.finish_reason, found.message.content or None) == (whole["finish_reason"], whole["message"]["content"])


def test_many_clients_get_what_they_would_get_alone(live):
    """Streams and whole answers together, some of which hang up: every other answer is its own."""
    wrong = []

    def one(number):
        prompt = f"the {'quick brown '[: number % 12]} fox {number}"
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 3 + number % 17, "seed": number, "temperature": 1.0}
        try:
            with live.client() as client:
                if number % 5 == 0:
                    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as going:
                        next(going.iter_lines())
                    return
                found = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
                if found != text_of(live, prompt, body["max_tokens"], number, 1.0):
                    wrong.append((number, found))
        except Exception as error:
            wrong.append((number, error))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Thoughts


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "opened", "want"),
    [
        ("<think>\nwhy\n</think>\nso", False, ("so", "why")),
        ("why</think>so", True, ("so", "why")),
        ("so < think", False, ("so < think", "")),
        ("<thin air", False, ("<thin air", "")),
        ("<think>never ends </thi", False, ("", "never ends </thi")),
        ("", False, ("", "")),
    ],
)
def test_a_thought_is_told_from_the_answer_as_it_comes(text, opened, want, size):
    thought, found = Thought(opened), ["", ""]
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    for pair in [*(thought.push(part) for part in parts), thought.end()]:
        found = [found[0] + pair[0], found[1] + pair[1]]
    assert (found[0].strip(), found[1].strip()) == want
