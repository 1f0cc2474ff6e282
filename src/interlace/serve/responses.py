"""POST /v1/responses: an answer as a list of items, whole or as events.

The events are those of OpenAI's Responses API, and end with `[DONE]` as Open Responses has it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from interlace.generation.request import Answer, Piece
from interlace.serve.answers import DONE, Events, chat_logprobs, named_event
from interlace.serve.dialogue import Made, Plan, Reader, Said, plan_of
from interlace.serve.errors import ApiError
from interlace.serve.flow import merged
from interlace.serve.items import Ask, check_logprobs, checked_input, with_instructions
from interlace.serve.schema import Choice, Strict
from interlace.serve.served import Served
from interlace.serve.store import Store

Event = tuple[str, dict[str, Any]]


async def planned(served: Served, asked: Ask, owner: str, store: Store) -> tuple[Plan, list[dict[str, Any]]]:
    """Return what is asked of the engine, and the turns of the conversation without instructions.

    Raises:
        ApiError: it cannot be served.
    """
    likely, turns = check_logprobs(asked), checked_input(asked)
    if asked.previous_response_id is not None:
        turns = [*store.find(owner, asked.previous_response_id, "previous_response_id").turns, *turns]
    variables = {}
    if asked.reasoning is not None and asked.reasoning.effort is not None:
        variables["reasoning_effort"] = asked.reasoning.effort
    plan = await plan_of(
        served,
        asked,
        with_instructions(asked.instructions, turns),
        owner,
        most=asked.max_output_tokens,
        field="input",
        tools=[tool.nested() for tool in asked.tools or ()],
        choice=Choice.of(asked.tool_choice),
        parallel=asked.parallel_tool_calls is not False,
        form=None if asked.text is None else asked.text.nested(),
        variables=variables,
        logprobs=likely,
    )
    return plan, turns


class Writer:
    """Writes an answer as it comes: its items, and the events that tell of them.

    Attributes:
        response: as it stands.
    """

    def __init__(self, served: Served, asked: Ask, plan: Plan):
        """Begin an answer."""
        self._served, self._asked, self._plan = served, asked, plan
        self._reader, self._answer = Reader(plan), Answer(len(plan.requests[0].prompt))
        self._likely: list[dict[str, Any]] = []
        self.response = _begun(served, asked, plan)

    @property
    def output(self) -> list[dict[str, Any]]:
        """The items so far."""
        items: list[dict[str, Any]] = self.response["output"]
        return items

    def turn(self) -> dict[str, Any]:
        """Return the answer as a turn of a conversation."""
        turn: dict[str, Any] = {"role": "assistant", "content": ""}
        for item in self.output:
            if item["type"] == "message":
                turn["content"] += item["content"][0]["text"]
            elif item["type"] == "reasoning":
                turn["reasoning_content"] = item["content"][0]["text"]
            else:
                function = {"name": item["name"], "arguments": json.loads(item["arguments"])}
                call = {"id": item["call_id"], "type": "function", "function": function}
                turn.setdefault("tool_calls", []).append(call)
        return turn

    def begin(self) -> Iterator[Event]:
        """Yield the events before the first item."""
        for kind in ("response.created", "response.in_progress"):
            yield kind, {"response": self.response}

    def push(self, piece: Piece) -> Iterator[Event]:
        """Take a piece; yield what it brings."""
        self._answer.add(piece)
        if piece.chosen is not None and piece.token is not None:
            self._likely += chat_logprobs(self._served.tokenizer, [piece.token], [piece.chosen])["content"]
        said = self._reader.push(piece)
        yield from self._add(said)
        if piece.finish:
            yield from self._close("completed" if piece.finish == "stop" else "incomplete")
            yield from self._end(piece.finish)

    def _add(self, said: Said) -> Iterator[Event]:
        if said.thought and (said.thought.strip() or self._open("reasoning")):
            yield from self._open_item("reasoning", {"summary": [], "content": []})
            yield from self._grow("response.reasoning_text.delta", "reasoning_text", said.thought)
        if said.text and (said.text.strip() or self._open("message")):
            yield from self._open_item("message", {"role": "assistant", "content": []})
            yield from self._grow("response.output_text.delta", "output_text", said.text)
        for made in said.calls:
            yield from self._call(made)

    def _open(self, kind: str) -> bool:
        """Return whether the last item is of a kind and goes on."""
        return bool(self.output) and self.output[-1]["type"] == kind and self.output[-1]["status"] == "in_progress"

    def _open_item(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        """Begin an item, unless the last one is of its kind."""
        if self._open(kind):
            return
        yield from self._close("completed")
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item = {"type": kind, "id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress", **fields}
        self.output.append(item)
        yield "response.output_item.added", {"output_index": len(self.output) - 1, "item": _copied(item)}

    def _place(self, **more: Any) -> dict[str, Any]:
        """Return where in the answer the last item stands."""
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1, **more}

    def _grow(self, kind: str, part: str, text: str) -> Iterator[Event]:
        """Add text to the one part of the last item."""
        item = self.output[-1]
        if not item["content"]:
            text = text.lstrip("\n") if part == "reasoning_text" else text.lstrip()
            extra: dict[str, Any] = {"annotations": [], "logprobs": []} if part == "output_text" else {}
            item["content"].append({"type": part, "text": "", **extra})
            yield "response.content_part.added", self._place(content_index=0, part=_copied(item["content"][0]))
        item["content"][0]["text"] += text
        more: dict[str, Any] = {}
        if part == "output_text":
            more["logprobs"], self._likely = self._likely, []
            item["content"][0]["logprobs"] += more["logprobs"]
        yield kind, self._place(content_index=0, delta=text, **more)

    def _call(self, made: Made) -> Iterator[Event]:
        arguments = json.dumps(made.call.arguments, ensure_ascii=False)
        fields = {"call_id": made.id, "name": made.call.name, "arguments": ""}
        yield from self._close("completed")
        yield from self._open_item("function_call", fields)
        yield "response.function_call_arguments.delta", self._place(delta=arguments)
        self.output[-1]["arguments"] = arguments
        yield "response.function_call_arguments.done", self._place(name=made.call.name, arguments=arguments)
        yield from self._close("completed")

    def _close(self, status: str) -> Iterator[Event]:
        """End the last item."""
        if not self.output or self.output[-1]["status"] != "in_progress":
            return
        item = self.output[-1]
        if item["type"] != "function_call":
            part = item["content"][0]
            part["text"] = part["text"].rstrip("\n") if item["type"] == "reasoning" else part["text"]
            more = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            kind = "response.reasoning_text.done" if item["type"] == "reasoning" else "response.output_text.done"
            yield kind, self._place(content_index=0, text=part["text"], **more)
            yield "response.content_part.done", self._place(content_index=0, part=_copied(part))
            if item["type"] == "reasoning" and self._asked.reasoning and self._asked.reasoning.summary:
                yield from self._summary(part["text"])
        item["status"] = status
        yield "response.output_item.done", {"output_index": len(self.output) - 1, "item": _copied(item)}

    def _summary(self, text: str) -> Iterator[Event]:
        """Send the thought as its own summary, for clients that show nothing else."""
        part = {"type": "summary_text", "text": text}
        place = self._place(summary_index=0)
        yield "response.reasoning_summary_part.added", {**place, "part": {**part, "text": ""}}
        yield "response.reasoning_summary_text.delta", {**place, "delta": text}
        yield "response.reasoning_summary_text.done", {**place, "text": text}
        yield "response.reasoning_summary_part.done", {**place, "part": part}
        self.output[-1]["summary"].append(part)

    def _end(self, reason: str) -> Iterator[Event]:
        if not self.output:  # clients read an item
            yield from self._open_item("message", {"role": "assistant", "content": []})
            yield from self._grow("response.output_text.delta", "output_text", "")
            yield from self._close("completed" if reason == "stop" else "incomplete")
        read, made = self._answer.prompt_tokens, len(self._answer.tokens)
        self.response["usage"] = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self._answer.reused_tokens},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": self._reader.thought_tokens},
            "total_tokens": read + made,
        }
        if reason == "stop":
            self.response |= {"status": "completed", "completed_at": int(time.time())}
            yield "response.completed", {"response": self.response}
        else:
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            yield "response.incomplete", {"response": self.response}

    def fail(self, error: ApiError) -> Iterator[Event]:
        """Yield the events after an error."""
        yield "error", {"error": error.body()["error"], **error.body()["error"], "type": "error"}
        self.response |= {"status": "failed"}
        self.response["error"] = {"code": error.code or "server_error", "message": error.message}
        yield "response.failed", {"response": self.response}


def _copied(value: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that stays as it is while the item goes on."""
    copy: dict[str, Any] = json.loads(json.dumps(value))
    return copy


def _begun(served: Served, asked: Ask, plan: Plan) -> dict[str, Any]:
    """Return the answer before its first item, with everything that it was asked with."""
    sampling, penalties = plan.requests[0].sampling, plan.requests[0].penalties
    choice = asked.tool_choice
    tools = [
        {
            "type": "function",
            "name": t.name,
            "description": t.description,
            "parameters": t.parameters,
            "strict": t.strict,
        }
        for t in asked.tools or ()
    ]
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "model": served.name,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {
            "effort": None if asked.reasoning is None else asked.reasoning.effort,
            "summary": None if asked.reasoning is None else asked.reasoning.summary,
        },
        "store": asked.store is not False,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": penalties.presence,
        "frequency_penalty": penalties.frequency,
        "text": {"format": _format(asked)},
        "tool_choice": choice.model_dump() if isinstance(choice, Strict) else choice or "auto",
        "tools": tools,
        "top_logprobs": asked.top_logprobs or 0,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
        "metadata": asked.metadata or {},
        "service_tier": "default",
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
    }


def _format(asked: Ask) -> dict[str, Any]:
    form = None if asked.text is None else asked.text.format
    if form is None:
        return {"type": "text"}
    return form.model_dump(by_alias=True)


class Keeping:
    """Keeps an answer for later requests once it has ended."""

    def __init__(self, store: Store, owner: str, asked: Ask, turns: list[dict[str, Any]]):
        """turns: of the conversation that is answered."""
        self._store, self._owner, self._asked, self._turns = store, owner, asked, turns

    def keep(self, writer: Writer) -> None:
        """Keep it, unless it must not be."""
        if self._asked.store is not False:
            self._store.keep(self._owner, [*self._turns, writer.turn()], writer.response)


async def whole(served: Served, asked: Ask, plan: Plan, keeping: Keeping) -> dict[str, Any]:
    """Return a whole answer."""
    writer = Writer(served, asked, plan)
    async for _, piece in merged(served, plan.requests):
        for _event in writer.push(piece):
            pass
    keeping.keep(writer)
    return writer.response


async def stream(served: Served, asked: Ask, plan: Plan, keeping: Keeping) -> Events:
    """Yield events until the answer has ended."""
    writer, number = Writer(served, asked, plan), 0

    def written(events: Iterator[Event]) -> bytes:
        nonlocal number
        parts = []
        for kind, fields in events:
            parts.append(named_event(kind, {"type": kind, "sequence_number": number, **fields}))
            number += 1
        return b"".join(parts)

    yield written(writer.begin())
    try:
        async for _, piece in merged(served, plan.requests):
            if came := written(writer.push(piece)):
                yield came
    except ApiError as error:
        yield written(writer.fail(error))
    else:
        keeping.keep(writer)
    yield DONE
