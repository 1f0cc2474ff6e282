"""A checkpoint of ours as a teacher in this process: requests that come together are answered in one batch."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from interlace.base.errors import ConfigError, Failure, InterlaceError, PromptTooLong
from interlace.distill.teachers.outcomes import Outcome, Reply, Trouble
from interlace.distill.teachers.teacher import Teacher


class Local:
    """A local teacher; the checkpoint is loaded when the first request comes."""

    def __init__(self, name: str, teacher: Teacher):
        """Store the table; nothing is read yet."""
        self.name, self.teacher = name, teacher
        self._loading = asyncio.Lock()
        self._engine: Any = None

    async def send(self, body: dict[str, Any]) -> Outcome:
        """Answer one request, beside the others that are being answered."""
        async with self._loading:
            if self._engine is None:
                await asyncio.to_thread(self._load)
        try:
            return await self._answer(body)
        except InterlaceError:
            raise
        except Exception as error:
            raise Failure(f"teachers.{self.name}: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """End the engine, and the chat template's process."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
            self._chat.close()

    def _load(self) -> None:
        from interlace.checkpoint.load import load
        from interlace.generation.conversation import end_tokens
        from interlace.generation.engine import Engine

        model = load(self.teacher.checkpoint, device=self.teacher.device)
        if model.tokenizer is None:
            raise ConfigError(f"teachers.{self.name}: {self.teacher.checkpoint} has no tokenizer")
        self._chat = model.tokenizer.chat()
        self._ends = end_tokens(model.tokenizer, self._chat)
        self._engine = Engine(model, memory=None, rows=self.teacher.batch, reuse=False)

    async def _answer(self, body: dict[str, Any]) -> Outcome:
        """Return an answer in OpenAI's form."""
        from interlace.generation.request import Request
        from interlace.generation.sampling import Sampling
        from interlace.generation.stops import checked_stops

        tokenizer = self._engine.model.tokenizer
        if "prompt" in body:
            ids = tokenizer.encode_text(body["prompt"])
        else:
            ids = tokenizer.encode(await asyncio.to_thread(self._chat.render, body["messages"], True))
        most = int(body.get("max_tokens") or 256)
        request = Request(
            tuple(ids),
            most,
            Sampling(float(body.get("temperature", 1.0)), body.get("top_k"), float(body.get("top_p", 1.0))),
            seed=int(body.get("seed", 0)),
            ends=self._ends,
            stop=checked_stops(body.get("stop")),
            afresh="prompt" not in body,
        )
        try:
            answer = None if not ids else await self._engine.generate(request)
        except PromptTooLong:
            answer = None
        if answer is None:
            return Trouble(f"{len(ids)} tokens and {most} to make do not fit the model", False, False, True)
        choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish}
        said = {"text": answer.text} if "prompt" in body else {"message": {"role": "assistant", "content": answer.text}}
        usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": len(answer.tokens)}
        whole = {"model": self.teacher.checkpoint, "choices": [choice | said], "usage": usage}
        return Reply(json.dumps(whole), whole)
