"""Slots of common parts: where their tensors lie under published names."""

from __future__ import annotations

from collections.abc import Mapping

from interlace.checkpoint.family import Slot, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig


def whole(names: Mapping[str, str]) -> Slots:
    """Map published names whose tensors are our parameters as they are."""
    return {published: (Slot(ours),) for published, ours in names.items()}


def stacked(name: str, *sizes: int, first: int = 0) -> list[Slot]:
    """Return slots for consecutive rows of one parameter."""
    slots = []
    for size in sizes:
        slots.append(Slot(name, (first, first + size)))
        first += size
    return slots


def linear_slots(published: str, ours: str, names: Mapping[str, str], bias: bool = False) -> Slots:
    """Map linear layers by their published names under one prefix, with their biases if they have any."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return whole({f"{published}.{p}.{k}": f"{ours}.{o}.{k}" for p, o in names.items() for k in kinds})


ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


def attention_slots(published: str, ours: str, kind: AttentionConfig) -> Slots:
    """Map an attention mixer under the names that nearly all families share."""
    slots = linear_slots(published, ours, ATTENTION, kind.bias)
    if kind.qk_norm != "none":
        names = {"q_norm": "query_norm", "k_norm": "key_norm"}
        slots |= whole({f"{published}.{p}.weight": f"{ours}.{o}.weight" for p, o in names.items()})
    return slots


def convolution_slots(published: str, ours: str, channels: int, taps: int) -> Slots:
    """Map nn.Conv1d's weight; it has an axis of size 1 that ours does not have."""
    return {f"{published}.weight": (Slot(f"{ours}.convolution", shape=(channels, 1, taps)),)}


def mlp_slots(published: str, ours: str, bias: bool = False) -> Slots:
    """Map a SwiGLU layer."""
    return linear_slots(published, ours, {f"{n}_proj": n for n in ("gate", "up", "down")}, bias)


def expert_slots(published: str, ours: str, moe: MoEConfig, width: int, names: tuple[str, ...]) -> Slots:
    """Map experts stored one by one.

    names: those of gate, up and down, or of up and down. width: the model's.
    """
    slots: Slots = {}
    *into, out = names
    outputs = moe.latent or width
    for e in range(moe.experts):
        rows = stacked(f"{ours}.first", *[moe.width] * len(into), first=e * len(into) * moe.width)
        slots |= {f"{published}.{e}.{name}.weight": (slot,) for name, slot in zip(into, rows, strict=True)}
        slots[f"{published}.{e}.{out}.weight"] = tuple(stacked(f"{ours}.second", outputs, first=e * outputs))
    return slots


def trunk_slots(
    config: ModelConfig, embedding: str = "model.embed_tokens.weight", norm: str = "model.norm.weight"
) -> Slots:
    """Map embedding, last norm, and the head unless it is the embedding."""
    slots = whole({embedding: "embedding.weight", norm: "norm.weight"})
    return slots if config.tied_embeddings else slots | whole({"lm_head.weight": "head.weight"})
