"""A mixture of experts: a router sends each token to a few feed-forward layers; no token is ever dropped.

How published models route differs in a handful of choices, which are data here: see `MoEConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from interlace.base.errors import ConfigError
from interlace.layers.base import FeedForwardConfig
from interlace.layers.low_rank import with_adapter
from interlace.layers.mlp import MLP, Activation, MLPConfig
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Cut, Division, Parts, check_divides, check_no_bias
from interlace.layers.projection import ROUNDED, Packed, Projections, compute_dtype, without_autocast
from interlace.ops.core.quantised import Quantised, Rounding, quantise
from interlace.ops.experts.dispatch import experts


class MoEConfig(FeedForwardConfig):
    """A router over equal experts, and a shared expert that every token passes.

    Attributes:
        experts: how many there are (E).
        chosen: how many each token is sent to (k).
        width: the hidden size of an expert.
        activation: "swiglu" or "relu2", of all experts.
        scores: "softmax" over all experts, or a "sigmoid" for each (DeepSeek-V3, Kimi, Nemotron 3).
        normalise: whether the chosen scores are divided by their sum.
        scale: multiplies the weights.
        correction: whether a bias that no gradient moves is added to the scores for the choice only.
        groups, chosen_groups: experts lie in equal groups, and only those of the best few groups (by the sum of their
            two best scores) can be chosen.
        wide_router: whether logits are computed in float32, and not in the dtype of the model.
        shared_width: hidden size of the shared expert; 0 for none.
        shared_gate: whether a sigmoid opens the shared expert's output for each token (Qwen).
        latent: size that tokens are projected to before the experts, and back from after; None for the model's width.
        bias: whether the shared expert and the latent projections have biases.
    """

    experts: int = Field(gt=0)
    chosen: int = Field(gt=0)
    width: int = Field(gt=0)
    activation: Activation = "swiglu"
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    correction: bool = False
    groups: int = Field(default=1, gt=0)
    chosen_groups: int = Field(default=1, gt=0)
    wide_router: bool = True
    shared_width: int = Field(default=0, ge=0)
    shared_gate: bool = False
    latent: int | None = Field(default=None, gt=0)
    bias: bool = False

    @property
    def shared(self) -> MLPConfig:
        """The shared expert's config, or None."""
        return MLPConfig(width=self.shared_width, activation=self.activation, bias=self.bias)

    def check(self, width: int) -> None:
        """Check that tokens can choose so many experts and groups."""
        if self.chosen > self.experts:
            raise ValueError(f"chosen: {self.chosen} is more than experts = {self.experts}")
        if self.experts % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide experts = {self.experts}")
        if self.chosen_groups > self.groups:
            raise ValueError(f"chosen_groups: {self.chosen_groups} is more than groups = {self.groups}")
        if self.chosen > self.experts // self.groups * self.chosen_groups:
            raise ValueError(f"chosen: {self.chosen} is more than the experts in chosen_groups = {self.chosen_groups}")
        if self.shared_gate and not self.shared_width:
            raise ValueError("shared_gate: there is no shared expert to open; set shared_width")

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("width", self.width, workers)
        check_no_bias(self.bias and (self.shared_width > 0 or self.latent is not None), workers)
        sizes = (self.width,) * (2 if self.activation == "swiglu" else 1)
        cuts = {"first": Cut(1, sizes), "second": Cut(2, (self.width,))}
        own = {"width": self.width // workers}
        if self.shared_width:
            check_divides("shared_width", self.shared_width, workers)
            cuts |= {f"shared.{name}": cut for name, cut in self.shared.divided(width, workers).cuts.items()}
            own["shared_width"] = self.shared_width // workers
        return Division(self.model_copy(update=own), cuts)

    def build(self, width: int, style: NormStyle) -> MoE:
        """Return the module."""
        return MoE(width, self)

    def expert_parameters(self, width: int) -> int:
        """Count parameters of one expert."""
        return (3 if self.activation == "swiglu" else 2) * (self.latent or width) * self.width

    def parameters(self, width: int) -> int:
        """Count router, experts, shared expert and latent projections."""
        shared = self.shared.parameters(width) + self.shared_gate * width if self.shared_width else 0
        latent = 0 if self.latent is None else 2 * width * self.latent + self.bias * (self.latent + width)
        router = self.experts * (width + self.correction)
        return router + self.experts * self.expert_parameters(width) + shared + latent

    def idle_parameters(self, width: int) -> int:
        """Return the parameters of the experts that a token does not choose."""
        return (self.experts - self.chosen) * self.expert_parameters(width)

    def flops_per_token(self, width: int, context: float) -> float:
        """Count router, chosen experts, shared expert and latent projections."""
        flops = 2.0 * (self.experts * width + self.chosen * self.expert_parameters(width))
        if self.shared_width:
            flops += self.shared.flops_per_token(width, context) + 2.0 * self.shared_gate * width
        return flops if self.latent is None else flops + 4.0 * width * self.latent


@dataclass(frozen=True)
class Load:
    """The load of the experts in a training pass.

    Attributes:
        counts: int64 [E], (token, choice) pairs that each expert got.
        scores: float32 [E], the mean over tokens of each expert's share of the scores; differentiable.
    """

    counts: Tensor
    scores: Tensor

    @property
    def balance(self) -> Tensor:
        """E sum_e (share of pairs) (share of scores): 1 when even, up to E / k; the usual auxiliary loss.

        Source: Fedus et al., "Switch Transformers", arXiv 2101.03961, equation 4.
        """
        shares = self.counts / self.counts.sum()
        return self.counts.shape[0] * (shares * self.scores).sum()

    @property
    def most(self) -> Tensor:
        """How many times its even share the busiest expert got, on the device."""
        return self.counts.max() * self.counts.shape[0] / self.counts.sum()

    @property
    def busiest(self) -> float:
        """The same as a number, for which the host waits."""
        return float(self.most)


class MoE(Projections):
    """A mixture of experts.

    Source: arXiv 1701.06538; sigmoid scores, groups and correction: DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
    """

    FLOAT32 = ("correction",)
    READ_WHOLE = ("router",)
    MATRICES = ("first", "second")  # as nn.Linear's weights: drawn with init_std, decayed

    def __init__(self, width: int, config: MoEConfig):
        """width: the width of the model."""
        super().__init__()
        self.config = config
        inner = config.latent or width
        doubled = 2 if config.activation == "swiglu" else 1
        self.router = nn.Linear(width, config.experts, bias=False)
        self.correction = nn.Parameter(torch.zeros(config.experts), requires_grad=False) if config.correction else None
        self.first = nn.Parameter(torch.empty(config.experts, doubled * config.width, inner))
        self.second = nn.Parameter(torch.empty(config.experts, inner, config.width))
        groups: list[tuple[str, ...]] = []
        if config.shared_width:
            self.shared = MLP(width, config.shared)
        if config.shared_gate:
            self.shared_gate = nn.Linear(width, 1, bias=False)
            groups.append(("shared_gate",))
        if config.latent is not None:
            self.compress = nn.Linear(width, config.latent, bias=config.bias)
            self.expand = nn.Linear(config.latent, width, bias=config.bias)
            groups += [("compress",), ("expand",)]
        self.GROUPS = tuple(groups)

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        return {"first": Parts((self.config.width,) * 2)} if self.config.activation == "swiglu" else {}

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [rows, D] to chosen experts int64 [rows, k], their weights [rows, k], and all scores [rows, E]."""
        c = self.config
        wide = torch.promote_types(x.dtype, torch.float32)
        dtype = wide if c.wide_router else compute_dtype(x)
        with without_autocast(x):
            logits = nn.functional.linear(x.to(dtype), with_adapter(self.router).to(dtype)).to(wide)
        scores = logits.softmax(-1) if c.scores == "softmax" else logits.sigmoid()
        ranking = scores if self.correction is None else scores + self.correction
        if c.groups > 1:
            best = ranking.unflatten(-1, (c.groups, -1)).topk(min(2, c.experts // c.groups), dim=-1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool)
            kept.scatter_(-1, best.topk(c.chosen_groups, dim=-1).indices, True)
            ranking = ranking.masked_fill(~kept.repeat_interleave(c.experts // c.groups, dim=-1), -torch.inf)
        chosen = ranking.topk(c.chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if c.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * c.scale, scores

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Load | None]:
        """Map [total, D] to [total, D], residual added; in training mode, also return the load of the experts."""
        c, load = self.config, None
        chosen, weights, scores = self.route(x)
        if self.training:
            shares = scores / scores.sum(-1, keepdim=True)
            flat = chosen.flatten()
            counts = torch.zeros(c.experts, dtype=torch.int64, device=x.device).scatter_add_(
                0, flat, torch.ones_like(flat)
            )
            load = Load(counts, shares.mean(0))
        x = x.to(compute_dtype(x))
        inner = x if c.latent is None else self.project("compress", x)
        first, second = self._experts()
        out = experts(inner, chosen, weights, first, second, activation=c.activation)
        out = out if c.latent is None else self.project("expand", out)
        if c.shared_width:
            shared, _ = self.shared(x)
            out = out + (self.project("shared_gate", x).sigmoid() * shared if c.shared_gate else shared)
        return out if residual is None else residual + out, load

    def _experts(self) -> tuple[Tensor | Quantised, Tensor | Quantised]:
        """Return the matrices of all experts."""
        if self.MATRICES[0] not in self.packed:
            return with_adapter(self, "first"), with_adapter(self, "second")
        if self.first.shape[0] or self.second.shape[0]:
            raise ConfigError(f"model: the weights of its experts changed after they were {ROUNDED}; load it again")
        if torch.is_grad_enabled():
            raise ConfigError(f"model: its weights were {ROUNDED}; load the one they were rounded from to train it")
        return self.packed["first"].weight, self.packed["second"].weight

    def pack(self, rounding: Rounding | None = None) -> None:
        """Pack the weights for decoding; with a rounding the experts' own weights are dropped."""
        super().pack(rounding)
        if rounding is not None and self.MATRICES[0] not in self.packed:
            for name in self.MATRICES:
                weight = getattr(self, name)
                self.hold(name, quantise(weight, rounding))
                weight.data = weight.new_empty(0, *weight.shape[1:])

    def hold(self, group: str, weight: Tensor | Quantised) -> None:
        """Take a group's weight, or a matrix of all experts that was rounded."""
        if group in self.MATRICES:
            self.packed[group] = Packed(weight)
        else:
            super().hold(group, weight)

    @torch.no_grad()
    def rebalance(self, load: Load, rate: float | Tensor) -> None:
        """Move the correction of each expert by `rate` towards an even load, given that of a training pass.

        Source: Wang et al., "Auxiliary-Loss-Free Load Balancing", arXiv 2408.15664.
        """
        assert self.correction is not None, "the config has no correction"
        counts = load.counts.to(self.correction.dtype)
        self.correction.add_(rate * torch.sign(counts.mean() - counts))
