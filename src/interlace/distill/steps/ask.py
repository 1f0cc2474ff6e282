"""Steps that ask a teacher: `generate` and `rewrite`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from interlace.base.text import clean_values, digest
from interlace.distill.desk import Answer, Desk, Question
from interlace.distill.ledger.records import Row
from interlace.distill.steps.base import Out, Step
from interlace.distill.steps.refusals import is_refusal
from interlace.sandbox.worker import OutOfBounds, Refused
from interlace.verify.structure import read_schema

CHECKS = "interlace.verify.child"
CHECK_SECONDS = 5.0
REPAIR = (
    "That answer cannot be used: {error}. Answer again with JSON alone that fits the schema, no other text around it."
)
SHORT = 400  # characters; a refusal in words is short

Weight = Annotated[float, Field(allow_inf_nan=True)]  # infinity and NaN are refused below, with a better message
Teachers = tuple[str, ...] | dict[str, Weight]


class Asking(Step):
    """A step that asks a teacher.

    Attributes:
        teacher: a name of `[teachers]`; several are fall-backs in this order; a table of weights, such as
            {big = 3, small = 1}, chooses one for each row by its key.
        system: template of the system's turn; none if empty.
        temperature: 0 asks for the likeliest token; higher is more random.
        top_p: asks only for the likeliest tokens that together reach this probability; not sent at 1.
        max_tokens: the most tokens of an answer.
        stop: texts that end an answer.
        extra: other keys for the endpoint, such as {reasoning_effort = "low"}; with max_completion_tokens among them,
            max_tokens is not sent.
        omit: keys that the endpoint does not take, such as ["temperature"].
        keep_truncated: whether answers cut off at max_tokens go on.
        refusals: whether short answers that begin like a refusal count as one.
    """

    teacher: Teachers
    system: str = ""
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=1024, gt=0)
    stop: tuple[str, ...] = Field(default=(), strict=False)
    extra: dict[str, Any] = Field(default_factory=dict)
    omit: tuple[str, ...] = Field(default=(), strict=False)
    keep_truncated: bool = False
    refusals: bool = True

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("extra")
    @classmethod
    def _one_answer(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("stream"):
            raise ValueError("stream: answers are read whole; leave it out")
        if value.get("n") not in (None, 1):
            raise ValueError(f"n: one answer is read for each request, got {value['n']!r}; set `samples` instead")
        if value.get("tools") or value.get("functions"):
            raise ValueError("tools: a call of a tool is no answer; leave them out")
        return value

    @model_validator(mode="after")
    def _weights(self) -> Asking:
        if not self.teacher:
            raise ValueError("teacher: names none")
        if isinstance(self.teacher, dict) and not all(0 < w < float("inf") for w in self.teacher.values()):
            raise ValueError(f"teacher: weights must be positive, got {self.teacher}")
        if len(set(self.teacher)) < len(self.teacher):
            raise ValueError("teacher: names one twice")
        return self

    def templates(self) -> dict[str, str]:
        """Return the template of the system's turn."""
        return {"system": self.system}

    def frame_bytes(self, row: Mapping[str, Any]) -> int:
        """Return how many bytes of a prompt come from outside the step's templates, for estimates."""
        return 0

    def draws(self) -> bool:
        """Return True if a teacher is drawn by weight."""
        return isinstance(self.teacher, dict)

    def asks(self) -> tuple[str, ...]:
        """Return the teachers that the step names."""
        return tuple(self.teacher)

    def chosen(self, row: Row) -> tuple[str, ...]:
        """Return the teachers to ask for a row, in this order."""
        if not isinstance(self.teacher, dict):
            return self.teacher
        place = int(digest([self.name, row.key]), 16) / 16**32 * sum(self.teacher.values())
        for name, weight in self.teacher.items():
            place -= weight
            if place < 0:
                return (name,)
        return (name,)

    def sampling(self, **more: Any) -> dict[str, Any]:
        """Return the sampling as the endpoint takes it; `more` overrides it."""
        found: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.top_p < 1:
            found["top_p"] = self.top_p
        if self.stop:
            found["stop"] = list(self.stop)
        if "max_completion_tokens" in self.extra:
            del found["max_tokens"]
        return {k: v for k, v in {**found, **self.extra, **more}.items() if k not in self.omit}

    def messages(self, prompt: str, row: Row, desk: Desk) -> tuple[dict[str, str], ...]:
        """Return the system's turn, if there is one, and the user's."""
        turns = []
        if self.system:
            turns.append({"role": "system", "content": desk.render(self.system, row, "system")})
        return (*turns, {"role": "user", "content": prompt})

    def ended(self, answer: Answer) -> Out | None:
        """Return the row's end if its answer cannot be used, else None."""
        if answer.state == "truncated" and self.keep_truncated and answer.text.strip():
            return None
        if answer.state != "ok":
            return Out({}, answer.state, answer.error)
        if self.refusals and len(answer.text) < SHORT and is_refusal(answer.text):
            return Out({}, "refused", f"the teacher refused: {answer.text[:200]}")
        return None


class Generate(Asking):
    """`kind = "generate"`: an answer of a teacher for every row, or several.

        [[steps]]
        name = "answers"
        kind = "generate"
        teacher = "big"
        prompt = "{{ question }} Reason step by step; end with 'Answer: ' and the number."
        into = "answer"
        samples = 4
        temperature = 0.8

    Attributes:
        prompt: template of the user's turn.
        into: the column of the answer.
        reasoning: the column of the trace, where the teacher gives one.
        samples: answers for a row; each becomes a row.
        schema: JSON schema of the answer, or a file with one; the answer is then an object.
        repairs: how often an answer that does not fit the schema is asked for again, with what is wrong.
    """

    kind: Literal["generate"]
    prompt: str = Field(min_length=1)
    into: str = "answer"
    reasoning: str = "reasoning"
    samples: int = Field(default=1, gt=0, le=1000)
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")
    repairs: int = Field(default=2, ge=0)

    def templates(self) -> dict[str, str]:
        """Return the templates of both turns."""
        return {"system": self.system, "prompt": self.prompt}

    def files(self) -> tuple[str, ...]:
        """Return the file of the schema, if the schema is in a file."""
        return (self.schema_,) if isinstance(self.schema_, str) else ()

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add the columns of the answer, of its reasoning, and of the teacher that gave it.

        The schema is read here once: a wrong one must be found before anything is paid.
        """
        read_schema(self.schema_, folder, f"steps.{self.name}")
        return given | {self.into, self.reasoning, f"{self.into}_teacher"}

    def requests(self, rows: int) -> int:
        """Return one request for each sample."""
        return rows * self.samples

    def fan(self, rows: int) -> int:
        """Return one row for each sample."""
        return rows * self.samples

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Ask for all samples at once."""
        prompt = desk.render(self.prompt, row, "prompt")
        messages = self.messages(prompt, row, desk)
        return await desk.together(self._sample(messages, row, desk, i) for i in range(self.samples))

    async def _sample(self, messages: tuple[dict[str, str], ...], row: Row, desk: Desk, sample: int) -> Out:
        """Make one sample, which stores its own requests."""
        own = desk.for_row()
        out = await self._repaired(messages, row, own, sample)
        desk.used += own.used
        return replace(out, requests=tuple(own.used))

    async def _repaired(self, messages: tuple[dict[str, str], ...], row: Row, desk: Desk, sample: int) -> Out:
        schema = desk.once(f"{self.name} schema", lambda: read_schema(self.schema_, desk.folder, f"steps.{self.name}"))
        question = Question(messages, self.sampling(), schema, sample)
        error = ""
        for repair in range(self.repairs + 1):
            answer = await desk.ask(self.chosen(row), question)
            if (end := self.ended(answer)) is not None:
                return end
            values = {self.reasoning: answer.reasoning, f"{self.into}_teacher": answer.teacher}
            if schema is None:
                return Out({self.into: answer.text, **values})
            value, error = await self._fitting(answer.text, schema, desk)
            if not error:
                more = {f"{self.into}_repairs": repair} if repair else {}
                return Out({self.into: clean_values(value), **values, **more})
            turns = (
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": REPAIR.format(error=error)},
            )
            question = Question((*messages, *turns), self.sampling(), schema, sample)
        return Out({}, "unparsable", f"{self.repairs} repairs did not help: {error}")

    @staticmethod
    async def _fitting(text: str, schema: dict[str, Any], desk: Desk) -> tuple[Any, str]:
        """Return (the value, what is wrong with it); a schema's pattern that does not end in time counts as wrong."""
        try:
            value, error = await desk.work(CHECKS, {"do": "fit", "text": text, "schema": schema}, CHECK_SECONDS)
        except (OutOfBounds, Refused) as error:
            return None, f"holding it against the schema {error}"
        return value, error


class Rewrite(Generate):
    """`kind = "rewrite"`: a text of the row, written anew as asked.

        [[steps]]
        kind = "rewrite"
        teacher = "big"
        column = "text"
        instruction = "Write it as a clear lesson for a beginner. Keep every fact."

    Attributes:
        column: the column that holds the text.
        into: the column of the new text; the same as `column` if not given.
        instruction: what to do with it; a template too.
    """

    kind: Literal["rewrite"]  # type: ignore[assignment]
    column: str
    instruction: str = Field(min_length=1)
    into: str = ""
    prompt: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_generate(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("column"), str):
            if data.get("prompt"):
                raise ValueError("prompt: a rewrite has an instruction; use kind = 'generate' for a prompt of your own")
            text = f"<text>\n{{{{ {data['column']} }}}}\n</text>"
            asked = f"{data.get('instruction', '')}\n\nAnswer with the new text alone.\n\n{text}"
            return {**data, "prompt": asked, "into": data.get("into") or data["column"]}
        return data
