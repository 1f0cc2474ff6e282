"""Write conversations as text by a chat template, in parts that are only read and parts that are learnt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import user_path
from interlace.data.thoughts import REASONING, reasoning_of
from interlace.sandbox.templates import Templates, UnsafeTemplate

HEAVIEST = 1e6  # weight of a turn
RARE = "\ue000"  # of private use: no template holds it
ROLES = ("system", "user", "assistant", "tool")
THINK = ("<think>\n", "\n</think>\n")

# For tokenizers that bring none: each turn begins with a line that names its role, an answer ends with the end of text.
DEFAULT = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' }}
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n' }}
{%- endif -%}
{{ message.content }}
{%- if message.role == 'assistant' -%}{{ eos_token }}{%- else -%}{{ '\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"""

Messages = Sequence[Mapping[str, Any]]
TRACES = ("reasoning_content", "reasoning", "thinking")  # names of a thought; templates ask for the first
LONG = 40  # letters of a value that stands nowhere in a text by chance
READ = {"role", "content", "weight"}  # keys of a turn that are not counted where a template ignores them


@dataclass(frozen=True)
class Part:
    """A piece of a conversation's text; `learnt` if an assistant wrote it, with the weight of its turn."""

    text: str
    learnt: bool
    weight: float = 1.0


class ChatTemplate:
    """Renders conversations in the sandbox of `interlace.sandbox.templates`.

    Attributes:
        template: Jinja, as `transformers` renders it.
    """

    def __init__(self, template: str | None = None, eos: str = "", bos: str = ""):
        """template: DEFAULT if None; eos, bos: the texts of these tokens."""
        self.template = DEFAULT if template is None else template
        self._tokens = {"eos_token": eos, "bos_token": bos}
        self._templates = Templates()

    def render(
        self,
        messages: Messages,
        ask: bool,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation; `ask` adds what an answer follows.

        variables: what else the template is told, such as `enable_thinking`; it changes no other value.

        Raises:
            ConfigError: the template fails on it, reaches outside its sandbox or does not end.
        """
        values = {**(variables or {}), **self._values(messages, ask, tools)}
        return self._templates.render(self.template, values, "chat template", chat=True)

    def names(self) -> set[str]:
        """Return the names of values that the template reads.

        Raises:
            ConfigError: it is no template.
        """
        return self._templates.names(self.template, "chat template")

    def _values(self, messages: Messages, ask: bool, tools: Sequence[Any] | None) -> dict[str, Any]:
        turns = [_as_templates_ask(message) for message in messages]
        return {
            "messages": turns,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": ask,
            **self._tokens,
        }

    def parts(self, messages: Messages, turns: str = "all", tools: Sequence[Any] | None = None) -> list[Part]:
        """Return a conversation in parts: what the assistant wrote, its end of turn included, is apart from the rest.

        A template that marks these parts itself (`{% generation %}`) is believed. A turn's `weight` says how much its
        tokens count; a turn whose weight is 0 is not learnt.

        turns: "all", or "last": only the last answer is learnt.

        Raises:
            DataError: the template writes an earlier turn otherwise once another follows, so that a piece has no place.
            ConfigError: as `render`.
        """
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        wanted = [i for i in (answers if turns == "all" else answers[-1:]) if messages[i].get("weight") != 0]
        values = self._values(messages, False, tools)
        whole, spans = self._templates.spans(self.template, values, "chat template")
        weights = [_weight(messages[i]) for i in answers]
        if spans:
            learnt = _learnt_spans(spans, weights, turns)
        else:
            found = self._found(messages, wanted, whole, tools)
            learnt = [(span, _weight(messages[i])) for span, i in zip(found, wanted, strict=True)]
        place, parts = 0, []
        for (start, stop), weight in learnt:
            parts += [Part(whole[place:start], False), Part(whole[start:stop], True, weight)]
            place = stop
        parts.append(Part(whole[place:], False))
        return _joined(p for p in parts if p.text)

    def _found(
        self, messages: Messages, answers: Sequence[int], whole: str, tools: Sequence[Any] | None
    ) -> list[tuple[int, int]]:
        """Return where these answers stand, found by rendering fewer turns."""
        spans, place = [], 0
        for i in answers:
            before = self.render(messages[:i], True, tools)
            after = whole if i == len(messages) - 1 else self.render(messages[: i + 1], False, tools)
            if whole.startswith(after) and not after.startswith(before):
                shared = next((k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
                raise DataError(
                    f"chat template: asks for an answer with {before[shared:]!r}, and writes turn {i + 1} otherwise; "
                    "set data.template to a file in which the two agree"
                )
            if not (whole.startswith(after) and len(before) >= place):
                raise DataError(
                    f"chat template: writes turn {i + 1} differently once later turns follow, so its tokens in "
                    "training would differ from those in use; set data.turns = 'last'"
                )
            spans.append((len(before), len(after)))
            place = len(after)
        return spans

    def ignored(self, messages: Messages, text: str, tools: Sequence[Any] | None = None) -> Counter[str]:
        """Count the values of a conversation that its template does not write, by key; a turn's trace is one value.

        text: what the template writes of the whole conversation.
        """
        found: Counter[str] = Counter()
        if tools and self.render(messages, False, None) == text:
            found["tools"] += 1
        for i, turn in enumerate(messages):
            traces = [key for key in REASONING if turn.get(key)]
            others = [[key] for key in turn if key not in (*READ, *REASONING) and turn[key]]
            for keys in [traces, *others] if traces else others:
                value = reasoning_of(turn) if keys is traces else turn[keys[0]]
                if isinstance(value, str) and len(value.strip()) >= LONG and value.strip() in text:
                    continue
                without = [*messages[:i], {k: v for k, v in turn.items() if k not in keys}, *messages[i + 1 :]]
                if self.render(without, False, tools) == text:
                    found[keys[0]] += 1
        return found

    def end_of_turn(self) -> str:
        """Return the text that the template ends an answer with, without spaces around it.

        If the template refuses to write turns without a system's turn, one is added.
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": RARE}]
        try:
            text = self.render(turns, False)
        except UnsafeTemplate:
            raise
        except ConfigError:
            text = self.render([{"role": "system", "content": "a"}, *turns], False)
        return text.rpartition(RARE)[2].strip() if RARE in text else ""

    def close(self) -> None:
        """End the process that renders."""
        self._templates.close()


def _as_templates_ask(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn without null values, with its thought under each of the names that templates use."""
    turn = {k: v for k, v in message.items() if v is not None}
    trace = reasoning_of(turn)
    return {**turn, **{name: turn.get(name) or trace for name in TRACES}} if trace else turn


def _weight(turn: Mapping[str, Any]) -> float:
    weight = turn.get("weight")
    return 1.0 if weight is None else float(weight)


def _learnt_spans(
    spans: list[tuple[int, int]], weights: list[float], turns: str
) -> list[tuple[tuple[int, int], float]]:
    """Return those of the spans that a template marks which are learnt, with their weights."""
    if turns == "all" and all(weight == 1 for weight in weights):
        return [(span, 1.0) for span in spans]
    if len(spans) != len(weights):
        raise DataError(
            f"chat template: marks {len(spans)} parts of {len(weights)} answers by generation, so that the answers of "
            "turns = 'last' or of other weights cannot be told apart; set data.template to a file that marks each once"
        )
    wanted = weights if turns == "all" else [0.0] * (len(weights) - 1) + weights[-1:]
    return [(span, weight) for span, weight in zip(spans, wanted, strict=True) if weight]


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Join neighbours that are learnt alike, or both not."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1].learnt == part.learnt and joined[-1].weight == part.weight:
            joined[-1] = replace(part, text=joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


class Thought:
    """Tells a thought at the beginning of an answer from what follows, as the text comes.

    Attributes:
        inside: whether the text is in the thought.
    """

    BEGIN, END = "<think>", "</think>"

    def __init__(self, opened: bool):
        """opened: whether the prompt has opened a thought already."""
        self.inside, self._begun, self._held = opened, opened, ""
        self._fresh = opened  # whether a thought, or the answer after one, has shown nothing yet

    def push(self, text: str) -> tuple[str, str]:
        """Take text; return (what belongs to the answer, what to the thought) and can be shown."""
        self._held += text
        if not self._begun:
            start = self._held.lstrip()
            if start.startswith(self.BEGIN):
                self.inside, self._begun, self._held, self._fresh = True, True, start[len(self.BEGIN) :], True
            elif self.BEGIN.startswith(start):
                return "", ""
            else:
                self._begun = True
        if not self.inside:
            answer, self._held = self._held, ""
            return self._without_lines(answer), ""
        thought, closed, rest = self._held.partition(self.END)
        if closed:
            thought = self._without_lines(thought.rstrip("\n"))
            self.inside, self._held, self._fresh = False, "", True
            return self._without_lines(rest), thought
        keep = next((k for k in range(len(self.END) - 1, 0, -1) if thought.endswith(self.END[:k])), 0)
        shown = thought[: len(thought) - keep].rstrip("\n")
        self._held = thought[len(shown) :]
        return "", self._without_lines(shown)

    def _without_lines(self, text: str) -> str:
        """Return text without empty lines where a thought, or the answer after one, begins."""
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        return text

    def end(self) -> tuple[str, str]:
        """Return what is left."""
        held, self._held = self._without_lines(self._held), ""
        return ("", held) if self.inside else (held, "")


def check_messages(messages: Any, where: str) -> Messages:
    """Return a conversation that can be learnt from, or raise DataError."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages must be a list of turns")
    for turn in messages:
        _check_turn(turn, where)
    answers = [t for t in messages if t["role"] == "assistant"]
    if not any((t.get("content") or t.get("tool_calls")) and t.get("weight") != 0 for t in answers):
        raise DataError(f"{where}: no turn of the assistant has content and a weight; there is nothing to learn")
    return messages


def _check_turn(turn: Any, where: str) -> None:
    calls = turn.get("tool_calls") if isinstance(turn, dict) else None
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise DataError(f"{where}: tool_calls must be a list of tables, got {json.dumps(calls)[:100]}")
    content = turn.get("content") if isinstance(turn, dict) else None
    written = isinstance(content, str) or (content is None and bool(calls))
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or not written:
        raise DataError(
            f"{where}: a turn needs a role ({', '.join(ROLES)}) and content that is text, got {json.dumps(turn)[:100]}"
        )
    for name in TRACES:
        if not isinstance(turn.get(name) or "", str):
            raise DataError(f"{where}: {name} must be text, got {turn[name]!r:.100}")
    weight = turn.get("weight")
    if weight is not None and not (
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= HEAVIEST
    ):
        raise DataError(
            f"{where}: weight must be a number from 0 (read, not learnt) to {HEAVIEST:g}, got {weight!r:.100}"
        )


def read_template(path: str) -> str:
    """The text of a template file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return user_path(path, ConfigError).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template: {path}: cannot be read: {error}") from None
