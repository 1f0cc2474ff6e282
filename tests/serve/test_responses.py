"""Answers as items: whole, as events, and gone on from, as OpenAI's client asks for them."""

from __future__ import annotations

import json

import openai
import pytest
from live import OTHER

from interlace.serve import store as stores
from interlace.serve.errors import ApiError
from interlace.serve.items import Ask, turns_of
from interlace.serve.schema import parsed
from interlace.serve.store import Store

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
THINKING = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
CALLING = "<think>\nWhere?\n</think>\nI ask.\n<tool_call>"


def test_an_answer_is_a_message(client, says):
    says("the fox")
    found = client.responses.create(model="tiny", input="the quick", instructions="lazy", temperature=0.5)
    assert (found.output_text, found.status, found.output[0].role) == ("the fox", "completed", "assistant")
    assert (found.temperature, found.instructions, found.store) == (0.5, "lazy", True)
    usage = found.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_the_limit_ends_an_answer(client):
    found = client.responses.create(model="tiny", input="the quick", max_output_tokens=3)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (found.output[-1].status, found.usage.output_tokens) == ("incomplete", 3)


def test_thoughts_texts_and_calls_are_items(client, says, live):
    says(CALLING, end=False)
    found = client.responses.create(
        model="tiny", input="the quick", tools=[TOOL], parallel_tool_calls=False, reasoning={"summary": "auto"}
    )
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    thought, message, call = found.output
    assert (thought.content[0].text, thought.summary[0].text) == ("Where?", "Where?")
    assert message.content[0].text == "I ask."
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    thinking = len(live.served["tiny"].tokenizer.encode_text("<think>\nWhere?\n</think>"))
    assert 0 < found.usage.output_tokens_details.reasoning_tokens <= thinking


def test_events_tell_the_same_answer(client, says):
    says(CALLING, end=False)
    how = {"model": "tiny", "input": "the quick", "tools": [TOOL], "parallel_tool_calls": False}
    whole = client.responses.create(**how, reasoning={"summary": "auto"})
    with client.responses.stream(**how, reasoning={"summary": "auto"}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for one, other in zip(final.output, whole.output, strict=True):
        left_out = {"id", "call_id", "parsed_arguments", "parsed"}
        shown = [{k: v for k, v in item.to_dict().items() if k not in left_out} for item in (one, other)]
        for item in shown:
            for part in item.get("content") or ():
                part.pop("parsed", None)
        assert shown[0] == shown[1]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    for kind in (
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.done",
        "response.content_part.added",
        "response.output_text.delta",
        "response.function_call_arguments.done",
    ):
        assert kind in kinds
    opened = {event.item.id for event in events if event.type == "response.output_item.added"}
    closed = {event.item.id for event in events if event.type == "response.output_item.done"}
    assert opened == closed == {item.id for item in final.output}


def test_a_conversation_goes_on_from_an_answer(client, says, live):
    says("the fox")
    first = client.responses.create(model="tiny", input="the quick", instructions="not kept")
    second = client.responses.create(model="tiny", input="brown", previous_response_id=first.id)
    rendered = live.served["tiny"].chat.render(
        [
            {"role": "user", "content": "the quick"},
            {"role": "assistant", "content": "the fox"},
            {"role": "user", "content": "brown"},
        ],
        True,
    )
    assert second.usage.input_tokens == len(live.served["tiny"].tokenizer.encode(rendered))
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == "the fox"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="previous_response_id: there is no answer"):
        client.responses.create(model="tiny", input="brown", previous_response_id=first.id)


def test_answers_of_others_and_answers_that_are_not_stored_are_not_found(client, says, live):
    says("the fox")
    kept = client.responses.create(model="tiny", input="a")
    unkept = client.responses.create(model="tiny", input="a", store=False)
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=OTHER, max_retries=0) as other:
        for who, name in ((other, kept.id), (client, unkept.id), (client, "resp_none")):
            with pytest.raises(openai.NotFoundError):
                who.responses.retrieve(name)


def test_results_of_calls_are_read_back(client, says):
    says("<tool_call>", end=False)
    how = {"model": "tiny", "tools": [TOOL], "parallel_tool_calls": False}
    asked = client.responses.create(**how, input="the quick")
    call = asked.output[-1]
    says("rain")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    by_id = client.responses.create(**how, input=[result], previous_response_id=asked.id)
    items = [{"role": "user", "content": "the quick"}, *(item.model_dump() for item in asked.output), result]
    by_hand = client.responses.create(**how, input=[{k: v for k, v in item.items() if v is not None} for item in items])
    assert by_id.output_text == by_hand.output_text == "rain"
    assert by_id.usage.input_tokens == by_hand.usage.input_tokens


def test_a_form_and_likelihoods(client):
    schema = {"type": "json_schema", "name": "n", "schema": {"enum": ["Rome", "Oslo"]}, "strict": True}
    found = client.responses.create(
        model="tiny", input="a", text={"format": schema}, include=["message.output_text.logprobs"], top_logprobs=2
    )
    part = found.output[0].content[0]
    assert part.text in ('"Rome"', '"Oslo"')
    assert "".join(one.token for one in part.logprobs) == part.text
    assert len(part.logprobs[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("body", "status", "param", "says_what"),
    [
        ({"input": []}, 400, "input", "input"),
        ({"input": None}, 400, "input", "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, 400, "input", "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input", "input.0"),
        ({"input": "a", "background": True}, 400, "background", "background"),
        ({"input": "a", "truncation": "auto"}, 400, "truncation", "truncation"),
        ({"input": "a", "n": 2}, 400, "n", "n: "),
        ({"input": "a", "conversation": "c"}, 400, "conversation", "is not served here"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, 400, "tools", "tools.0"),
        ({"input": "a", "top_logprobs": 2}, 400, "top_logprobs", "needs include"),
        ({"input": "a", "reasoning": {"effort": "low"}}, 400, "reasoning_effort", "does not read it"),
        ({"input": "fox " * 3000}, 400, "input", "the model's limit is 2000"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
            400,
            "input",
            "must be a JSON object",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_names_its_field(ask, body, status, param, says_what, stream):
    found = ask.post("/v1/responses", json={"model": "tiny", "stream": stream, **body})
    assert found.status_code == status, found.text
    assert found.json()["error"]["param"] == param
    assert says_what in found.json()["error"]["message"]


def test_an_error_in_a_stream_is_an_event(ask):
    grammar = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "string", "pattern": "^a{90000}$"}}}
    found = ask.post("/v1/responses", json={"model": "tiny", "input": "a", "text": grammar, "stream": True})
    if found.status_code == 200:
        assert "event: response.failed" in found.text
        assert found.text.rstrip().endswith("data: [DONE]")
    else:
        assert found.status_code == 400


def test_what_the_assistant_did_together_is_one_turn():
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "r"}]},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d", "phase": "commentary"},
        {"role": "developer", "content": "e"},
    ]
    turns = turns_of(parsed(Ask, {"model": "m", "input": items}).input)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant", "assistant", "system"]
    one = turns[1]
    assert (one["reasoning_content"], one["content"], [c["id"] for c in one["tool_calls"]]) == ("t", "b", ["1", "2"])


def test_the_store_is_bounded(monkeypatch):
    monkeypatch.setattr(stores, "MOST", 3)
    store = Store()
    for i in range(5):
        store.keep("o", [{"role": "user", "content": "x"}], {"id": str(i)})
        if i > 1:
            store.find("o", "1", None)  # used again and again
    assert len(store) == 3
    assert store.find("o", "1", None).turns
    with pytest.raises(ApiError):
        store.find("o", "0", None)
    monkeypatch.setattr(stores, "MOST_BYTES", 400)
    for i in range(9):
        store.keep("o", [{"role": "user", "content": "x" * 50}], {"id": f"l{i}"})
    assert store.bytes <= 400
    store.keep("o", [{"role": "user", "content": "x" * 500}], {"id": "long"})
    with pytest.raises(ApiError):
        store.find("o", "long", None)
