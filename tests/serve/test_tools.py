"""Answers of a given form, and calls of tools, as OpenAI's client asks for them."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Literal

import pydantic
import pytest
import torch

from interlace.base.errors import ConfigError
from interlace.data.calls import FORMS
from interlace.serve.schema import Offer
from interlace.serve.tools import structure_of

CITY = {"type": "string", "enum": ["Rome", "Oslo"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
HELLO = [{"role": "user", "content": "the quick"}]


class Place(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    city: Literal["Rome", "Oslo"]
    days: list[Literal[1, 2]] = pydantic.Field(min_length=1, max_length=2)


def test_an_answer_is_parsed_into_a_class(client):
    for seed in range(3):
        found = client.chat.completions.parse(
            model="tiny", messages=HELLO, response_format=Place, temperature=1, seed=seed, max_tokens=300
        )
        assert found.choices[0].message.parsed.city in ("Rome", "Oslo")
        assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        ({"regex": "[a-c]{3}-[0-9]{2}"}, "[a-c]{3}-[0-9]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "<" /[ab]{2}/ ">"'}, "<[ab]{2}>"),
        ({"json": CITY}, '"Rome"|"Oslo"'),
    ],
)
def test_forms_of_vllm(client, how, pattern):
    more = {"temperature": 1, "max_tokens": 60, "extra_body": {"structured_outputs": how}}
    chat = client.chat.completions.create(model="tiny", messages=HELLO, n=4, **more)
    texts = [choice.message.content for choice in chat.choices]
    texts += [choice.text for choice in client.completions.create(model="tiny", prompt="fox", n=4, **more).choices]
    assert all(re.fullmatch(pattern, text) for text in texts), texts


def test_a_form_begins_after_the_thought(client, says):
    says("let me see</think>", end=False)
    how = {"enable_thinking": True}
    found = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": CITY}},
        extra_body={"chat_template_kwargs": how},
    )
    message = found.choices[0].message
    assert message.content in ('"Rome"', '"Oslo"')
    assert (message.reasoning_content, message.reasoning) == ("let me see", "let me see")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_is_made(client, choice, stream):
    how = {"model": "tiny", "messages": HELLO, "tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    how |= {"temperature": 1, "seed": 3, "max_tokens": 300}
    calls, reason = made(client, how, stream)
    assert reason == "tool_calls"
    assert [name for name, _ in calls] == ["weather"]
    assert calls[0][1]["city"] in ("Rome", "Oslo")
    assert set(calls[0][1]) <= {"city", "days"}


def made(client, how, stream):
    """Return the calls of an answer and why it ended."""
    if not stream:
        choice = client.chat.completions.create(**how).choices[0]
        return [
            (c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls
        ], choice.finish_reason
    with client.chat.completions.stream(**how) as events:
        choice = events.get_final_completion().choices[0]
    return [
        (c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls
    ], choice.finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_calls_within_a_text_are_well_formed_and_told_from_it(client, says, stream):
    says("I ask.\n<tool_call>", end=False)
    how = {"model": "tiny", "messages": HELLO, "tools": [WEATHER], "max_tokens": 120, "parallel_tool_calls": False}
    calls, reason = made(client, how, stream)
    assert (reason, calls[0][0]) == ("tool_calls", "weather")
    whole = client.chat.completions.create(**how).choices[0].message
    assert whole.content == "I ask."
    assert whole.tool_calls[0].id.startswith("call_")


def test_a_turn_of_calls_and_results_is_read_back(client, live):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_call_id": "c1", "content": "rain"})
    found = client.chat.completions.create(model="tiny", messages=turns, tools=[WEATHER, NOW], max_tokens=2)
    tokenizer = live.served["tiny"].tokenizer
    plain = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    as_read = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [plain]}, {"role": "tool", "content": "rain"}]
    text = live.served["tiny"].chat.render(as_read, True, [WEATHER, NOW])
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in text
    assert found.usage.prompt_tokens == len(tokenizer.encode(text))


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_all_tools_that_are_written_some_are_allowed(client, says, mode):
    if mode == "auto":
        says("I ask.\n<tool_call>", end=False)
    how = {"model": "tiny", "messages": HELLO, "tools": [NOW, WEATHER], "max_tokens": 300, "temperature": 1}
    some = [{"type": "function", "function": {"name": "weather"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": some}}
    found = client.chat.completions.create(**how, tool_choice=choice, n=8, parallel_tool_calls=False)
    assert [c.message.tool_calls[0].function.name for c in found.choices] == ["weather"] * 8
    tokenless = client.chat.completions.create(**how | {"max_tokens": 1})
    assert found.usage.prompt_tokens == tokenless.usage.prompt_tokens
    flat = [{"type": "function", **tool["function"]} for tool in (NOW, WEATHER)]
    asked = client.responses.create(
        model="tiny",
        input=HELLO,
        tools=flat,
        tool_choice={"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "weather"}]},
        max_output_tokens=300,
        parallel_tool_calls=False,
    )
    assert [item.name for item in asked.output if item.type == "function_call"] == ["weather"]
    assert asked.tool_choice.mode == mode


def test_none_writes_no_tools(client):
    how = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
    plain = client.chat.completions.create(**how).usage.prompt_tokens
    assert client.chat.completions.create(**how, tools=[NOW], tool_choice="none").usage.prompt_tokens == plain
    assert client.chat.completions.create(**how, tools=[NOW]).usage.prompt_tokens > plain


def test_json_or_a_call(client):
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": "no"}}}
    seen = set()
    for seed in range(12):
        message = (
            client.chat.completions.create(
                model="tiny",
                messages=HELLO,
                tools=[NOW],
                response_format=schema,
                temperature=2,
                seed=seed,
                max_tokens=200,
            )
            .choices[0]
            .message
        )
        if message.tool_calls:
            seen.add("call")
        elif message.content.strip() == '"no"':
            seen.add("content")
    assert seen == {"call", "content"}


def test_what_a_form_allows_has_the_models_own_likelihood(client):
    how = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 5}
    free = client.chat.completions.create(**how).choices[0].logprobs.content[0]
    bound = (
        client.chat.completions.create(**how, response_format={"type": "json_object"}).choices[0].logprobs.content[0]
    )
    assert bound.token == "{"
    assert [(t.token, t.logprob) for t in bound.top_logprobs] == [(t.token, t.logprob) for t in free.top_logprobs]
    assert torch.tensor(bound.logprob) < torch.tensor(free.logprob)


TEXTS = [{"const": "celsius"}, {"enum": ["a", ""]}, {"type": "string"}, {"enum": [1, "x"]}]


@pytest.mark.parametrize("schema", TEXTS, ids=json.dumps)
def test_what_a_grammar_writes_is_what_is_read(schema):
    """Texts that stand without quotes on one side do so on the other."""
    offer = Offer(name="f", parameters={"type": "object", "properties": {"a": schema}, "required": ["a"]})
    form = replace(FORMS[2], lead="\n", tail="\n")
    grammar = structure_of(form, [offer], {}, parallel=False, forced=True, after="").grammar
    quoted = "%json" in json.loads(grammar)["grammars"][0]["lark_grammar"]
    body = '\n<function=f>\n<parameter=a>\n"x"\n</parameter>\n</function>\n'
    tools = [{"function": {"name": "f", "parameters": offer.parameters}}]
    assert form.read(body, tools)[0].arguments["a"] == ("x" if quoted else '"x"')


@pytest.mark.parametrize("name", ["get-weather", "class", "a.b-c"])
def test_names_that_python_has_not_are_refused_where_calls_are_pythons(name):
    with pytest.raises(ConfigError, match="is no name"):
        structure_of(FORMS[3], [Offer(name=name)], {}, parallel=True, forced=True, after="")


def test_many_parameters_take_no_time():
    named = {f"p{i}": {"$ref": "#/$defs/n"} for i in range(300)}
    offer = Offer(name="f", parameters={"type": "object", "properties": named, "$defs": {"n": {"type": "integer"}}})
    began = time.monotonic()
    with pytest.raises(ConfigError, match="tools: must be a text"):  # too long for one grammar
        structure_of(replace(FORMS[2], lead="\n"), [offer], {}, parallel=True, forced=True, after="")
    assert time.monotonic() - began < 3


def test_streams_of_completions_are_the_whole_answer(client):
    how = {"model": "tiny", "prompt": ["a b c", "d e f g h"], "max_tokens": 3, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(**how, echo=True)
    chunks = list(client.completions.create(**how, echo=True, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(one.text for one in own) == choice.text
        told = [one.logprobs for one in own if one.logprobs]
        assert [t for one in told for t in one.tokens] == choice.logprobs.tokens
    how["max_tokens"] = 0
    bare = list(client.completions.create(**how, echo=True, stream=True))
    assert "".join(c.choices[0].text for c in bare if c.choices[0].index == 0) == "a b c"


def test_content_beside_calls_is_enforced_as_it_is_alone():
    content = {"type": "array", "uniqueItems": False, "items": {"type": "string", "format": "date"}}
    how = {"parallel": False, "forced": False, "after": ""}
    grammar = structure_of(FORMS[1], [Offer(name="f")], {}, **how, content=content).grammar
    assert "uniqueItems" not in grammar
    assert "02-29" in grammar  # the calendar's days, which the form of dates alone does not know
    with pytest.raises(ConfigError, match="response_format: #/not"):
        structure_of(FORMS[1], [Offer(name="f")], {}, **how, content={"not": {}})
