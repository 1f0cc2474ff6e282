"""A checkpoint of ours as a teacher in this process: requests that come together are answered in one batch."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from interlace.base.errors import ConfigError, Failure, InterlaceError
from interlace.distill.teachers.outcomes import Outcome, Reply, Trouble
from interlace.distill.teachers.teacher import Teacher

GATHER_SECONDS = 0.01  # how long a batch waits for more requests


class Local:
    """A local teacher; the checkpoint is loaded when the first request comes."""

    def __init__(self, name: str, teacher: Teacher):
        """Store the table; nothing is read yet."""
        self.name, self.teacher = name, teacher
        self._waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[Outcome]]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._model: Any = None

    async def send(self, body: dict[str, Any]) -> Outcome:
        """Answer one request, in a batch with others that come within GATHER_SECONDS."""
        if self._waiting is None:
            self._waiting = asyncio.Queue()
            self._task = asyncio.create_task(self._work(self._waiting))
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        await self._waiting.put((body, answer))
        return await answer

    async def close(self) -> None:
        """End the task that answers, and the chat template's process."""
        if self._task is not None:
            self._task.cancel()
        if self._model is not None:
            self._chat.close()

    async def _work(self, waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[Outcome]]]) -> None:
        while True:
            batch = [await waiting.get()]
            await asyncio.sleep(GATHER_SECONDS)
            while len(batch) < self.teacher.batch and not waiting.empty():
                batch.append(waiting.get_nowait())
            try:
                outcomes = await asyncio.to_thread(self._answer, [body for body, _ in batch])
            except Exception as error:
                known = isinstance(error, InterlaceError)
                said = error if known else Failure(f"teachers.{self.name}: {type(error).__name__}: {error}")
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(said)
                continue
            for (_, answer), outcome in zip(batch, outcomes, strict=True):
                if not answer.done():
                    answer.set_result(outcome)

    def _load(self) -> None:
        from interlace.checkpoint.load import load
        from interlace.generation.conversation import end_tokens
        from interlace.generation.pack import pack_for_decoding

        model = load(self.teacher.checkpoint, device=self.teacher.device)
        if model.tokenizer is None:
            raise ConfigError(f"teachers.{self.name}: {self.teacher.checkpoint} has no tokenizer")
        self._model = pack_for_decoding(model)
        self._chat = model.tokenizer.chat()
        self._ends = end_tokens(model.tokenizer, self._chat)

    def _answer(self, bodies: list[dict[str, Any]]) -> list[Outcome]:
        """Return answers in OpenAI's form."""
        from interlace.generation.batch import generate_batch
        from interlace.generation.sampling import Sampling

        if self._model is None:
            self._load()
        model, tokenizer = self._model, self._model.tokenizer
        outcomes: list[Outcome] = []
        rows: list[tuple[int, list[int], int, Sampling, int]] = []
        for place, body in enumerate(bodies):
            text = body["prompt"] if "prompt" in body else self._chat.render(body["messages"], True)
            ids = tokenizer.encode_text(text) if "prompt" in body else tokenizer.encode(text)
            most = int(body.get("max_tokens") or 256)
            limit = model.config.max_positions
            if not ids or (limit is not None and len(ids) + most > limit):
                outcomes.append(
                    Trouble(f"{len(ids)} tokens and {most} to make do not fit the model", False, False, True)
                )
                continue
            outcomes.append(Trouble("", False, False))
            sampling = Sampling(float(body.get("temperature", 1.0)), body.get("top_k"), float(body.get("top_p", 1.0)))
            rows.append((place, ids, most, sampling, int(body.get("seed", 0))))
        if rows:
            _, prompts, most_, samplings, seeds = (list(x) for x in zip(*rows, strict=True))
            made = generate_batch(model, prompts, most_, samplings, seeds, self._ends)
            for (place, ids, *_), found in zip(rows, made, strict=True):
                outcomes[place] = self._reply(bodies[place], ids, found.made, found.ended)
        return outcomes

    def _reply(self, body: dict[str, Any], prompt: list[int], made: list[int], ended: bool) -> Reply:
        from interlace.generation.stops import Stops

        stops = Stops(self._model.tokenizer, body.get("stop"), after=prompt if "prompt" in body else ())
        text = "".join(stops.cut(made))
        finish = "stop" if ended or stops.met else "length"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(made)}
        whole = {"model": self.teacher.checkpoint, "choices": [choice], "usage": usage}
        return Reply(json.dumps(whole), whole)
