"""A plan on paper: what a recipe takes and how fast it is on many devices, and how they are best laid out.

Bytes are counted as this engine moves them: FSDP gathers float32 weights twice for each part of a batch and sums their
gradients once; a tensor group sums activations four times in each layer; a context hands on states or trades heads, and
gathers keys and values. Communication is hidden behind four fifths of the computation, the rest is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interlace.base.errors import ConfigError
from interlace.layers.attention import AttentionConfig
from interlace.layers.latent_attention import LatentAttentionConfig
from interlace.model.config import ModelConfig
from interlace.model.sizes import sizes
from interlace.train.memory import Footprint, footprint
from interlace.train.objectives.next_token import GPU_ELEMENTS
from interlace.train.optimizer import held_bytes
from interlace.train.parallel.machines import DeviceKind
from interlace.train.parallel.plan import NAMES, check_fits, costs
from interlace.train.recipe import Recipe

HIDDEN = 0.8  # share of the computation behind which communication is hidden
RESERVED = 0.08  # share of the memory that is lost between blocks of the allocator, and to libraries
RECOMPUTED = 1 / 3  # more computation where blocks are run again


@dataclass(frozen=True)
class PaperLayout:
    """One way to lay devices out, and what it comes to.

    Attributes:
        sizes: workers in each direction.
        accumulate: parts of a batch, one after the other.
        recompute: whether blocks are run again in the backward pass.
        context_by: how recurrent layers go on over the context; "" without one.
        way_seconds: of both ways that they may, of a step; an infinite number where heads do not divide.
        part_bytes: of memory on each device, by part.
        sent_bytes: of each device for a step, by direction.
        seconds: of a step: computation, and communication that is waited for.
        tokens_per_second: of one device.
        fits: whether the memory suffices.
    """

    sizes: dict[str, int]
    accumulate: int
    recompute: bool
    context_by: str
    way_seconds: dict[str, float]
    part_bytes: dict[str, float]
    sent_bytes: dict[str, float]
    compute_seconds: float
    waiting_seconds: float
    tokens_per_second: float
    utilisation: float
    fits: bool

    @property
    def memory_bytes(self) -> float:
        """All parts together."""
        return sum(self.part_bytes.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def plans(recipe: Recipe, devices: int, kind: DeviceKind) -> list[PaperLayout]:
    """Return all ways that divide, the fastest that fit first.

    Raises:
        ConfigError: no way divides rows and heads.
    """
    parts = footprint(recipe.model, min(recipe.data.length, 1024), torch.device("meta"), settings=recipe.train)
    held = held_bytes(recipe.model, recipe.train, 2 if devices == 1 else 4)  # several workers keep all in float32
    state_bytes = (held.weights + held.gradients) / sizes(recipe.model, ()).total
    found = [_layout(recipe, kind, parts, state_bytes, *one) for one in _ways(recipe, devices, kind)]
    if not found:
        raise ConfigError(
            f"--devices: {devices} cannot be laid out: data.rows = {recipe.data.rows} must be a multiple of "
            "replicate x shard, and heads of tensor"
        )
    return sorted(found, key=lambda p: (not p.fits, -round(100 * math.log(p.tokens_per_second)), _simple(p)))


def _simple(plan: PaperLayout) -> tuple[int, int, int, float]:
    """Return what decides among plans that are as fast, to a hundredth: whole rows and layers, then few parts."""
    directions = sum(size > 1 for size in plan.sizes.values())
    return plan.sizes["context"] * plan.sizes["tensor"], plan.accumulate, directions, plan.memory_bytes


def _ways(recipe: Recipe, devices: int, kind: DeviceKind) -> Iterator[tuple[dict[str, int], int, bool]]:
    fixed = {name: getattr(recipe.parallel, name) for name in NAMES}
    given = any(size != 1 for size in fixed.values())
    for tensor in _divisors(min(devices, kind.devices_per_machine)):
        for context in _divisors(devices // tensor) if devices % tensor == 0 else ():
            for shard in _divisors(devices // tensor // context):
                sizes_ = dict(zip(NAMES, (devices // tensor // context // shard, shard, context, tensor), strict=True))
                if given and any(fixed[n] not in ("auto", sizes_[n]) for n in NAMES):
                    continue
                if not _fits(recipe, sizes_) or (recipe.data.length // context < 1024 and context > 1):
                    continue
                for accumulate in _divisors(recipe.data.rows // (sizes_["replicate"] * shard)):
                    for again in (False, True):
                        yield sizes_, accumulate, again


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _fits(recipe: Recipe, sizes_: dict[str, int]) -> bool:
    """Return whether training would take this layout, a batch in one part."""
    train = recipe.train.model_copy(update={"accumulate": 1})
    try:
        check_fits(recipe.model_copy(update={"train": train}), sizes_)
    except ConfigError:
        return False
    return True


def _layout(
    recipe: Recipe,
    kind: DeviceKind,
    parts: Footprint,
    state_bytes: float,
    sizes_: dict[str, int],
    accumulate: int,
    again: bool,
) -> PaperLayout:
    """Return what a layout comes to. state_bytes: of a weight, its gradient, its moments and its average."""
    model, length, width = recipe.model, recipe.data.length, recipe.model.width
    replicate, shard, context, tensor = (sizes_[name] for name in NAMES)
    devices, cut = replicate * shard * context * tensor, shard * context
    total = recipe.data.rows * length
    tokens = total // (replicate * shard * context * accumulate)  # of a device, in one part
    known = sizes(model, (length,))
    layers = known.total - known.parameters["embedding"] - known.parameters["head"] - known.parameters["norms"]
    ends = known.total - layers
    own = ends + layers / tensor  # weights of one tensor worker
    block = layers / tensor / model.depth
    memory = {
        "weights, gradients and optimizer state": state_bytes * own / cut,
        "gathered weights of two blocks": 2 * 4 * block if cut > 1 else 0,
        "embedding and head, gathered, and their gradients": 8 * ends if cut > 1 else 0,
        "activations": _activations(parts, tokens, tensor, again),
        "logits": _logits(model, tokens),
    }
    sent, seconds = _communication(recipe, kind, sizes_, accumulate, own, tokens)
    flops = known.training_flops_per_token[length] * total / devices
    way, extra, ways = "", 0.0, dict[str, float]()
    if context > 1:
        both = costs(model, tokens, context, tensor=tensor)
        rates = (_link(kind, tensor, context), kind.flops_per_second * kind.utilisation)
        once = 3 * accumulate
        ways = {n: once * cost.seconds(*rates) if cost.possible else math.inf for n, cost in both.items()}
        way = min(ways, key=lambda n: ways[n])
        way = recipe.parallel.context_by if recipe.parallel.context_by != "auto" else way
        extra = 3 * both[way].extra_flops * accumulate
        sent["context"] += 3 * both[way].received_bytes * accumulate
        seconds += 3 * both[way].received_bytes * accumulate / rates[0]
    head_flops = 6 * (tensor - 1) * model.vocabulary * width * total / devices  # every tensor worker has the whole head
    compute = (flops * (1 + RECOMPUTED * again) + extra + head_flops) / (kind.flops_per_second * kind.utilisation)
    waiting = max(0.0, seconds - HIDDEN * compute)
    whole = compute + waiting
    return PaperLayout(
        sizes_,
        accumulate,
        again,
        way,
        ways,
        memory,
        sent,
        compute,
        waiting,
        total / whole / devices,
        flops / whole / kind.flops_per_second,
        sum(memory.values()) < kind.memory_bytes * (1 - RESERVED),
    )


def _activations(parts: Footprint, tokens: int, tensor: int, again: bool) -> float:
    """Return about what blocks keep in bfloat16: half of what they keep in float32; a tensor group divides it."""
    width = parts.config.width
    kept = [0.5 * block.kept.at(tokens) for block in parts.blocks]
    inside = 0.5 * max(block.working.at(tokens) + (block.kept.at(tokens) if again else 0) for block in parts.blocks)
    stream = 4.0 * width * tokens  # what every worker of a tensor group keeps of a block
    if again:
        return 2 * width * tokens * len(kept) + inside / tensor
    return sum(stream + max(0.0, k - stream) / tensor for k in kept) + inside / tensor


def _logits(model: ModelConfig, tokens: int) -> float:
    rows = min(tokens, max(1, GPU_ELEMENTS // model.vocabulary))
    return 2.0 * rows * model.vocabulary + 6.0 * model.vocabulary * model.width + 4.0 * tokens * model.width


def _link(kind: DeviceKind, inner: int, size: int) -> float:
    """Return the rate of a group of `size` workers that lie `inner` apart: of its slowest link."""
    return kind.inside_bytes_per_second if inner * size <= kind.devices_per_machine else kind.across_bytes_per_second


def _communication(
    recipe: Recipe, kind: DeviceKind, sizes_: dict[str, int], accumulate: int, own: float, tokens: int
) -> tuple[dict[str, float], float]:
    """Return the bytes that a device sends for a step by direction, states and traded heads left out; their seconds."""
    model = recipe.model
    replicate, shard, context, tensor = (sizes_[name] for name in NAMES)
    cut = shard * context
    sent = dict.fromkeys(NAMES, 0.0)
    sent["shard"] = accumulate * 3 * 4 * own * (cut - 1) / cut
    sent["replicate"] = 2 * 4 * own / cut * (replicate - 1) / replicate
    branches = sum(1 + (model.mlp_of(i) is not None) for i in range(model.depth))
    sent["tensor"] = accumulate * branches * 2 * 2 * (2 * tokens * model.width) * (tensor - 1) / tensor
    keys = sum(_kept_size(model.kind(i)) for i in range(model.depth))
    sent["context"] = accumulate * 2 * 2 * tokens * keys / tensor * (context - 1)
    inner = {"tensor": 1, "context": tensor, "shard": tensor, "replicate": tensor * cut}
    group = {"tensor": tensor, "context": context, "shard": cut, "replicate": replicate}
    return sent, sum(sent[name] / _link(kind, inner[name], group[name]) for name in NAMES)


def _kept_size(kind: Any) -> int:
    """Return the elements of keys and values that a token has in a layer."""
    if isinstance(kind, AttentionConfig):
        return 2 * kind.groups * (kind.head_dim or 0)
    if isinstance(kind, LatentAttentionConfig):
        return kind.heads * (kind.query_dim + kind.value_dim)
    return 0
