"""A model class for `lm_eval` (EleutherAI's harness): all of its tasks, batched raggedly.

Source: EleutherAI/lm-evaluation-harness 0.4.13, lm_eval/api/model.py and models/huggingface.py, whose rules of cutting
contexts and windows are followed, so that numbers agree with `--model hf` on the exported folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import lm_eval.models  # noqa: F401 - registers theirs, which is not done once ours is there
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import interlace
from interlace.base.errors import ConfigError
from interlace.checkpoint.fingerprint import fingerprint
from interlace.evaluate.ask import RESERVED
from interlace.evaluate.likelihood import Likelihood, likelihoods
from interlace.evaluate.write import write_answers
from interlace.generation.pack import pack_for_decoding
from interlace.generation.sampling import Sampling

TOKENS = 16_384  # read together
ROWS = 64  # answers that are written together, unless --batch_size says otherwise
LONGEST = 32_768  # tokens of a window, for models without a limit

Encoded = tuple[Any, list[int], list[int]]
"""(context and continuation, or None; ids of the context; ids of the continuation), as lm_eval hands them over."""


@register_model("interlace")
class InterlaceLM(TemplateLM):
    """A checkpoint of any family of interlace.

    `--model_args`: pretrained (a folder, a run folder or a hub id), dtype ("auto", "float32", "bfloat16"), max_length,
    max_gen_toks.
    """

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        batch_size: int | str = ROWS,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        max_batch_size: int | None = None,
        **others: Any,
    ):
        """Load the model.

        Raises:
            ConfigError: an argument is not known, or the checkpoint has no tokenizer.
        """
        super().__init__()
        if others:
            raise ConfigError(
                f"--model_args: {min(others)}: is not an argument of interlace's; known: pretrained, dtype, "
                "max_length, max_gen_toks"
            )
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"--model_args: dtype: must be auto, float32 or bfloat16, got {dtype!r}")
        on_gpu = device is not None and str(device).startswith("cuda") and torch.cuda.is_available()
        kind = None if dtype == "auto" else getattr(torch, dtype)
        model = interlace.load(pretrained, dtype=kind, device=str(device) if on_gpu else "cpu")
        if model.tokenizer is None:
            raise ConfigError(f"pretrained: {pretrained}: has no tokenizer, so that it cannot be asked")
        self.interlace = pack_for_decoding(model)
        self.pretrained, self.max_gen_toks = pretrained, int(max_gen_toks)
        self.rows = (
            ROWS if batch_size in (1, "auto") else int(str(batch_size).partition(":")[0].replace("auto", str(ROWS)))
        )
        self.batch_size_per_gpu = self.rows
        self._max_length = None if max_length is None else int(max_length)
        self._device = model.device

    @property
    def batch_size(self) -> int:
        """How many answers are written together."""
        return self.rows

    @property
    def max_length(self) -> int:
        """The most tokens of a context with its continuation."""
        return self._max_length or self.interlace.config.max_positions or LONGEST

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = (self.interlace.tokenizer.eos, *self.interlace.config.tokens.eos)
        found = next((end for end in ends if end is not None), None)
        if found is None:
            raise ConfigError(f"pretrained: {self.pretrained}: names no token that ends a text")
        return int(found)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text of which nothing was read: that which begins texts, or else ends them."""
        tokenizer = self.interlace.tokenizer
        begin = tokenizer.fast.token_to_id(tokenizer.bos) if tokenizer.bos else None
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """A name by which answers in a cache are told apart."""
        return str(self.pretrained).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results file says of the model."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.interlace.parameters()),
            "model_dtype": str(self.interlace.dtype),
            "model_fingerprint": fingerprint(self.pretrained),
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, begun as the tokenizer begins texts unless that is not wanted."""
        tokenizer = self.interlace.tokenizer
        found: list[int] = tokenizer.encode(string) if add_special_tokens is False else tokenizer.encode_text(string)
        return found

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that writes conversations; "" if none is wanted."""
        if not chat_template:
            return ""
        with closing(self.interlace.tokenizer.chat()) as chat:
            return str(chat.template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as its template writes it, rendered in the sandbox."""
        with closing(self.interlace.tokenizer.chat()) as chat:
            text = chat.render(chat_history, add_generation_prompt)
            if add_generation_prompt:
                return text
            last = str(chat_history[-1]["content"])
            return text[: text.rindex(last) + len(last)] if last and last in text else text

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether it is the greedy continuation) of each request."""
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="log-likelihoods") as bar:
            for places, scored in self._likelihoods(requests):
                for place, one in zip(places, scored, strict=True):
                    found[place] = (one.nats, one.greedy)
                    if requests[place][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[place][0], found[place])
                bar.update(len(places))
        return [found[i] for i in range(len(requests))]

    def _likelihoods(self, requests: Sequence[Encoded]) -> Iterator[tuple[list[int], list[Likelihood]]]:
        """Yield (places, likelihoods) of some requests at a time; those with the same context read it once."""
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise ConfigError(
                    f"a continuation of {len(continuation):,} tokens passes max_length = {self.max_length:,}"
                )
            room = max(1, self.max_length + 1 - len(continuation))
            groups.setdefault(tuple(context[-room:]), []).append((place, continuation))
        batch: list[tuple[tuple[int, ...], list[tuple[int, list[int]]]]] = []
        size = longest = 0
        for read, some in groups.items():
            tokens = len(read) + sum(len(own) for _, own in some)
            reserved = max(longest, len(read)) * (len(batch) + 1)
            if batch and (size + tokens > TOKENS or reserved > RESERVED or len(batch) >= self.rows):
                yield self._asked(batch)
                batch, size, longest = [], 0, 0
            batch.append((read, some))
            size, longest = size + tokens, max(longest, len(read))
        if batch:
            yield self._asked(batch)

    def _asked(
        self, batch: Sequence[tuple[tuple[int, ...], list[tuple[int, list[int]]]]]
    ) -> tuple[list[int], list[Likelihood]]:
        scored = likelihoods(
            self.interlace, [list(context) for context, _ in batch], [[own for _, own in some] for _, some in batch]
        )
        return [place for _, some in batch for place, _ in some], [one for each in scored for one in each]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as lm_eval cuts them."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                context, continuation = make_disjoint_window(window)
                windows.append((None, context, continuation))
                owners.append(place)
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += nats
        for request, nats in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, nats)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to a stop string."""
        found: list[str] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="answers") as bar:
            for start, some in self._runs([request.args for request in requests]):
                for text, request in zip(self._written(some, start), some, strict=True):
                    found.append(text)
                    self.cache_hook.add_partial("generate_until", request, text)
                bar.update(len(some))
        return found

    def _runs(
        self, requests: Sequence[tuple[str, dict[str, Any]]]
    ) -> Iterator[tuple[int, list[tuple[str, dict[str, Any]]]]]:
        """Yield (place of the first, requests) of neighbours that are drawn alike, at most `rows` at a time."""
        start = 0
        while start < len(requests):
            end = start + 1
            drawn = _sampling(requests[start][1])
            while end < len(requests) and end - start < self.rows and _sampling(requests[end][1]) == drawn:
                end += 1
            yield start, list(requests[start:end])
            start = end

    def _written(self, requests: Sequence[tuple[str, dict[str, Any]]], start: int) -> list[str]:
        prompts, most, stops = [], [], []
        for context, given in requests:
            known = normalize_gen_kwargs(given, self.max_gen_toks)
            count = int(known["max_gen_toks"])
            if count >= self.max_length:
                raise ConfigError(f"max_gen_toks: {count} leaves no room for a context in {self.max_length:,} tokens")
            ids = self.tok_encode(context)[-(self.max_length - count) :]
            prompts.append(ids or [self.prefix_token_id])
            most.append(count)
            stops.append([stop for stop in known.get("until") or [] if stop])
        model = self.interlace
        sampling, seeds = _sampling(requests[0][1]), [start + i for i in range(len(prompts))]
        answers = write_answers(model, prompts, most, sampling, seeds, stops, [self.eot_token_id], begin_afresh=True)
        return [answer.text for answer in answers]


def _sampling(given: dict[str, Any]) -> Sampling:
    """Return how answers are drawn; the likeliest token is taken unless do_sample or a temperature says otherwise."""
    known = normalize_gen_kwargs(given, 1)
    temperature = float(known.get("temperature") or 0.0)
    top_k = known.get("top_k") or None
    top_p, min_p = float(known.get("top_p") or 1.0), float(known.get("min_p") or 0.0)
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
