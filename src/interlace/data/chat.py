"""Conversations as text: a chat template cuts them into what is read and what is learnt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, DataError
from interlace.base.templates import Templates

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


@dataclass(frozen=True)
class Part:
    """A piece of a conversation's text; `learnt` if an assistant wrote it."""

    text: str
    learnt: bool


class ChatTemplate:
    """Renders conversations in the sandbox of `interlace.base.templates`.

    Attributes:
        template: Jinja, as `transformers` renders it.
    """

    def __init__(self, template: str | None = None, eos: str = "", bos: str = ""):
        """template: DEFAULT if None; eos, bos: the texts of these tokens."""
        self.template = DEFAULT if template is None else template
        self._tokens = {"eos_token": eos, "bos_token": bos}
        self._templates = Templates()

    def render(self, messages: Messages, ask: bool) -> str:
        """The text of a conversation; `ask` adds what an answer follows.

        Raises:
            ConfigError: the template fails on it, reaches outside its sandbox or does not end.
        """
        values = {"messages": [dict(m) for m in messages], "add_generation_prompt": ask, **self._tokens}
        return self._templates.render(self.template, values, "chat template", chat=True)

    def parts(self, messages: Messages, turns: str = "all") -> list[Part]:
        """A conversation in pieces, those of the assistant apart, its end of turn included.

        turns: "all", or "last": only the last answer is learnt.

        Raises:
            DataError: the template writes an earlier turn otherwise once another follows, so that a piece has no place.
            ConfigError: as `render`.
        """
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        whole, parts, place = self.render(messages, False), [], 0
        for i in answers if turns == "all" else answers[-1:]:
            before = self.render(messages[:i], True)
            after = whole if i == len(messages) - 1 else self.render(messages[: i + 1], False)
            if whole.startswith(after) and not after.startswith(before):
                shared = next((k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
                raise DataError(
                    f"chat template: asks for an answer with {before[shared:]!r}, and writes turn {i + 1} otherwise; "
                    "set data.template to a file in which the two agree"
                )
            if not (whole.startswith(after) and len(before) >= place):
                raise DataError(
                    f"chat template: writes turn {i + 1} otherwise when other turns follow, so that what was learnt "
                    "would not be what is asked; set data.turns = 'last'"
                )
            parts += [Part(whole[place : len(before)], False), Part(whole[len(before) : len(after)], True)]
            place = len(after)
        parts.append(Part(whole[place:], False))
        return [p for p in parts if p.text]

    def end_of_turn(self) -> str:
        """What the template ends an answer with, spaces aside."""
        parts = self.parts([{"role": "user", "content": "a"}, {"role": "assistant", "content": RARE}])
        learnt = next((p.text for p in parts if p.learnt), "")
        return learnt.rpartition(RARE)[2].strip()

    def close(self) -> None:
        """End the process that renders."""
        self._templates.close()


def check_messages(messages: Any, where: str) -> Messages:
    """A conversation that can be learnt from, or DataError."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages must be a list of turns")
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise DataError(
                f"{where}: a turn needs a role ({', '.join(ROLES)}) and content that is text, got "
                f"{json.dumps(turn)[:100]}"
            )
        if not isinstance(turn.get("reasoning_content") or "", str):
            raise DataError(f"{where}: reasoning_content must be text, got {turn['reasoning_content']!r:.100}")
    if not any(t["role"] == "assistant" and t["content"] for t in messages):
        raise DataError(f"{where}: no turn of the assistant has content; there is nothing to learn")
    return messages


def read_template(path: str) -> str:
    """The text of a template file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template: {path}: cannot be read: {error}") from None
