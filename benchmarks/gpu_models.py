"""A hybrid model on a GPU: training steps and decoding, beside `transformers` with the same weights."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from gpu_clock import MESSAGES, Facts, Timing, Work, beside_floor, device, floor, released, seconds, timed
from gpu_operators import difference
from torch import Tensor

import interlace
from interlace.base.segments import Segments
from interlace.data.batches import Batch
from interlace.generation.batch import answers
from interlace.generation.capture import Decoder
from interlace.generation.pack import pack_for_decoding
from interlace.generation.prefill import read_prompts
from interlace.generation.request import Request
from interlace.generation.sampling import Sampling
from interlace.model.config import ModelConfig
from interlace.model.sizes import sizes
from interlace.train.optimizer import parameter_groups
from interlace.train.recipe import TrainSettings
from interlace.train.trainer import Trainer

TABLE: dict[str, Any] = {
    "width": 1024,
    "depth": 16,
    "vocabulary": 32_000,
    "pattern": ["gated_delta", "gated_delta", "gated_delta", "attention"],
    "gated_delta": {"heads": 8, "key_dim": 96, "value_dim": 192, "norm": "input"},
    "attention": {"heads": 16, "position": "none", "norm": "output"},
    "mlp": {"width": 2752},
}
SMALL: dict[str, Any] = {
    **TABLE,
    "width": 32,
    "depth": 4,
    "vocabulary": 128,
    "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12, "norm": "input"},
    "attention": {"heads": 2, "position": "none", "norm": "output"},
    "mlp": {"width": 48},
}
PROMPT, MADE = 128, 128
STEPS = 10
DIFFERENT = 0.1  # two models that compute the same differ by the rounding of bfloat16 in 16 layers, 1e-2 to 3e-2


def config(facts: Facts) -> ModelConfig:
    """Return the model's config."""
    return ModelConfig.from_dict(SMALL if facts["pretend"] else TABLE)


def built(facts: Facts) -> interlace.HybridLM:
    """Return the model with random weights, the same each time, float32."""
    torch.manual_seed(0)
    return interlace.HybridLM(config(facts), device=device(facts))


def lengths(facts: Facts) -> tuple[int, int]:
    """Return the tokens of a prompt, and how many are made after it."""
    return (6, 4) if facts["pretend"] else (PROMPT, MADE)


def parameters(facts: Facts) -> Iterator[Facts]:
    """Say how large the model is."""
    c = config(facts)
    count = sizes(c, contexts=()).total
    text = f"{count / 1e6:.1f} million: width {c.width}, {c.depth} layers, vocabulary {c.vocabulary:,}"
    yield {"text": text, "parameters": count, "config": c.to_dict()}


def _tokens(facts: Facts, rows: int, length: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(config(facts).vocabulary, (rows, length), generator=draw)


def _steps(facts: Facts, work: Work) -> Timing:
    """Time whole steps by the host's clock: the host's part belongs to them."""
    first = seconds(work)
    if not facts["pretend"]:
        seconds(work)
    took = [seconds(work) for _ in range(2 if facts["pretend"] else STEPS)]
    return Timing(statistics.median(took), first, 0.0, len(took))


def _peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _trained(facts: Facts, rows: int, length: int, t: Timing) -> Facts:
    rate = rows * length / t.seconds
    flops = sizes(config(facts), contexts=(length,)).training_flops_per_token[length] * rate
    most = facts.get("matmul_flops_per_second")
    row = {**t.to_dict(), "tokens_per_second": rate, "flops_per_second": flops, "peak_gib": _peak()}
    text = f"{row['ms']:.2f} ms, {rate:,.0f} tokens/s, peak {row['peak_gib']:.1f} GiB, {flops / 1e12:.3g} TFLOP/s"
    if most:
        row["utilisation"] = flops / most
        text += f", {flops / most:.1%} of the ceiling"
    return {"part": f"training {rows} x {length}", "text": text, **row}


def _batch(facts: Facts, rows: int, length: int) -> Batch:
    tokens = _tokens(facts, rows, length + 1)
    return Batch(tokens[:, :-1].flatten(), tokens[:, 1:].flatten(), Segments.equal(rows, length))


def first_training(facts: Facts) -> Iterator[Facts]:
    """Take a small step, so that the model's kernels are compiled."""
    trainer = Trainer.of(built(facts), TrainSettings(tokens=1), 10_000, "bfloat16")
    batch = _batch(facts, 2, 8 if facts["pretend"] else 128)
    yield _first(lambda: trainer.step(batch))


def first_decoding(facts: Facts) -> Iterator[Facts]:
    """Make a few tokens, as above."""
    model = pack_for_decoding(built(facts).bfloat16().eval())
    ids, greedy = _tokens(facts, 2, lengths(facts)[0]).tolist(), Sampling(temperature=0)
    yield _first(lambda: [answers(model, [Request(tuple(one), 3, greedy) for one in ids[:n]]) for n in (1, 2)])


def _first(work: Work) -> Facts:
    took = seconds(work)
    notes = list(dict.fromkeys(MESSAGES.found))
    return {"text": "; ".join([f"{took:.1f} s", *notes]), "notes": notes, "first_seconds": took}


def training(facts: Facts, rows: int, length: int) -> Iterator[Facts]:
    """Take AdamW steps on float32 master weights, matrix products in bfloat16."""
    trainer = Trainer.of(built(facts), TrainSettings(tokens=1), 10_000, "bfloat16")
    batch = _batch(facts, rows, length)
    yield _trained(facts, rows, length, _steps(facts, lambda: trainer.step(batch)))


def _decoded(facts: Facts, rows: int, t: Timing) -> Facts:
    rate = rows * lengths(facts)[1] / t.seconds
    row = {**t.to_dict(), "tokens_per_second": rate, "peak_gib": _peak()}
    text = f"{row['ms']:.1f} ms, {rate:,.0f} tokens/s, {row['ms'] / lengths(facts)[1]:.2f} ms for a token of each row"
    return {"part": f"generate, {rows} rows", "text": text, **row}


def _runs(facts: Facts, work: Work) -> Timing:
    first = seconds(work)
    took = [seconds(work) for _ in range(1 if facts["pretend"] else 3)]
    return Timing(statistics.median(took), first, 0.0, len(took))


def decoding(facts: Facts, rows: int) -> Iterator[Facts]:
    """Generate greedily after prompts: the whole call, and one step of the decoder without drawing."""
    model = pack_for_decoding(built(facts).bfloat16().eval())
    length, made = lengths(facts)
    prompts, greedy = _tokens(facts, rows, length), Sampling(temperature=0)
    ids = prompts.tolist()

    def generate() -> None:
        answers(model, [Request(tuple(one), made, greedy) for one in ids])

    yield _decoded(facts, rows, _runs(facts, generate))
    with torch.inference_mode():
        _, state = read_prompts(model, list(prompts.to(device(facts))), length + made + 64)
        weights = sum(p.nbytes for n, p in model.named_parameters() if n != "embedding.weight")
        decoder = Decoder(model, state)
        carried = 2 * sum(x.nbytes for s in state.layers if s is not None for x in s.tensors())
        tokens = torch.zeros(rows, dtype=torch.int64, device=device(facts))
        t = timed(facts, [lambda: decoder.step(tokens)])
    row = {**t.to_dict(), **floor(facts, weights + carried, 0)}
    text = f"{row['ms']:.3f} ms{beside_floor(row)}; {'not ' * bool(decoder.reason)}replayed"
    yield {"part": f"step, {rows} rows", "text": text, "reason": decoder.reason, **row}


def _theirs(facts: Facts, folder: str) -> tuple[Any, str]:
    """Return their model with our weights, float32, and which kernels it will run."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    interlace.save(built(facts), folder + "/m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder + "/m", dtype=torch.float32).to(device(facts))
    kernels = "FLA's kernels" if "fla" in facts.get("found", ()) and not facts["pretend"] else "torch's operations"
    return theirs, f"transformers {transformers.__version__} with {kernels}"


def _agree(facts: Facts, theirs: Any, name: str) -> Facts:
    """Compare logits on a few tokens, matrix products in bfloat16: FLA takes nothing wider."""
    tokens = _tokens(facts, 2, 8 if facts["pretend"] else 128).to(device(facts))
    ours = built(facts).eval()
    with torch.no_grad(), torch.autocast(device(facts).type, dtype=torch.bfloat16):
        off = difference(ours(tokens)[0], theirs.eval()(tokens).logits)
    text = f"{name}; logits differ by {off:.1e}"
    return {"part": "the same weights", "text": text, "difference": off, "good": off < DIFFERENT}


def _within_memory(part: str, run: Callable[[], Facts]) -> Facts:
    try:
        return run()
    except torch.OutOfMemoryError as error:
        released()
        return {"part": part, "text": f"does not fit in memory: {str(error).splitlines()[0]:.120}", "refused": True}


def their_training(facts: Facts, shapes: Sequence[tuple[int, int]]) -> Iterator[Facts]:
    """Take the same steps with their model."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, name = _theirs(facts, folder)
    yield _agree(facts, theirs, name)
    optimizer = torch.optim.AdamW(parameter_groups(theirs, 0.1), lr=1e-4, betas=(0.9, 0.95), fused=True)
    theirs.train()
    for rows, length in shapes:
        released()
        tokens = _tokens(facts, rows, length + 1).to(device(facts))

        def step(tokens: Tensor = tokens) -> None:
            with torch.autocast(device(facts).type, dtype=torch.bfloat16):
                logits = theirs(tokens[:, :-1], use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        label = f"training {rows} x {length}"
        row = _within_memory(label, lambda r=rows, n=length, s=step: _trained(facts, r, n, _steps(facts, s)))
        yield {**row, "beside": [label, label]}


def their_decoding(facts: Facts, several: Sequence[int]) -> Iterator[Facts]:
    """Generate greedily with their model."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, _ = _theirs(facts, folder)
    theirs = theirs.bfloat16().eval()
    length, made = lengths(facts)
    settings = {"max_new_tokens": made, "min_new_tokens": made, "do_sample": False, "pad_token_id": 0}
    for rows in several:
        prompts = _tokens(facts, rows, length).to(device(facts))
        work = lambda p=prompts: theirs.generate(p, attention_mask=torch.ones_like(p), **settings)  # noqa: E731
        part = f"generate, {rows} rows"
        row = _within_memory(part, lambda r=rows, w=work: _decoded(facts, r, _runs(facts, w)))
        yield {**row, "beside": [f"decoding {rows} rows", part]}
