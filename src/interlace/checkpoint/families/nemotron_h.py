"""Nemotron-H and Nemotron 3 Nano: Mamba-2, attention, experts and plain MLPs, each a layer of its own.

Source: arXiv 2504.03624; huggingface/transformers src/transformers/models/nemotron_h; nvidia/NVIDIA-Nemotron-3-Nano-
30B-A3B-BF16. Attention has no positions. Feed-forward layers are squared ReLU, without a gate; only the routed experts
see the latent, if there is one.

Traps: the pattern has been said as `hybrid_override_pattern` ("M-M*E") and as `layers_block_type` with two sets of
words. Nobody reads `attention_bias` and `mamba_proj_bias`; biases come from `use_bias` and `mlp_bias`. The size of the
mixer is mamba_num_heads x mamba_head_dim, whatever `expand` says. Nobody reads `tie_word_embeddings`; every release has
a head of its own.

transformers 5.23 floors dt at `time_step_min` in a prompt and not in a cached step, and does not read `time_step_limit`
(modeling_nemotron_h.py; its pull request 48989 measures the harm). The weights were trained with `time_step_limit`, so
that is used here; the peers' tests set `time_step_min` so low that it does not bind.

Multi-token-prediction layers (`mtp.*`) are kept and saved back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.mamba2 import EMBEDDING, NORM, mixer_slots, read_steps, write_steps
from interlace.checkpoint.families.slots import ATTENTION, expert_slots, linear_slots, trunk_slots, whole
from interlace.checkpoint.family import Family, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.mamba2 import Mamba2Config
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig

KINDS = {
    "linear_attention": "mamba2",
    "mamba": "mamba2",
    "M": "mamba2",
    "full_attention": "attention",
    "attention": "attention",
    "*": "attention",
    "moe": "moe",
    "E": "moe",
    "mlp": "mlp",
    "-": "mlp",
}
WRITTEN: dict[type, str] = {
    Mamba2Config: "linear_attention",
    AttentionConfig: "full_attention",
    MoEConfig: "moe",
    MLPConfig: "mlp",
}
MLP_NAMES = {"up_proj": "up", "down_proj": "down"}
LATENTS = {"fc1_latent_proj": "compress", "fc2_latent_proj": "expand"}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    parts.refuse_unless(config, "mlp_hidden_act", "relu2")
    parts.refuse_unless(config, "mamba_hidden_act", *parts.SILU)
    parts.refuse_unless(config, "sliding_window", None, 0)
    types = (
        config.get("layers_block_type") or config.get("layer_types") or parts.need(config, "hybrid_override_pattern")
    )
    depth = config.get("num_hidden_layers") or len(types)
    types = parts.layer_names({"layer types": list(types)}, "layer types", depth, KINDS) or []
    trunk = parts.read_trunk({"num_hidden_layers": len(types), **config}, eps=1e-5, eps_key="layer_norm_epsilon")
    trunk |= {"depth": len(types), "tied_embeddings": False}
    pattern = [KINDS[t] for t in types]
    bias = config.get("mlp_bias", False)
    tables = {
        "mamba2": lambda: {
            "heads": parts.need(config, "mamba_num_heads"),
            "head_dim": parts.need(config, "mamba_head_dim"),
            "groups": config.get("n_groups", config.get("mamba_n_groups", 8)),
            "state_dim": parts.need(config, "ssm_state_size"),
            "convolution": config.get("conv_kernel", 4),
            "convolution_bias": config.get("use_conv_bias", True),
            "bias": config.get("use_bias", False),
            "norm_eps": trunk["norm_eps"],
            "mlp": False,
            **read_steps(config),
        },
        "attention": lambda: {
            "heads": parts.need(config, "num_attention_heads"),
            "kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
            "head_dim": config.get("head_dim")
            or config.get("attention_head_dim")
            or trunk["width"] // config["num_attention_heads"],
            "position": "none",
            "qk_norm": "none",
            "mlp": False,
        },
        "mlp": lambda: {"width": parts.need(config, "intermediate_size"), "activation": "relu2", "bias": bias},
        "moe": lambda: {
            "experts": parts.need(config, "n_routed_experts"),
            "chosen": parts.need(config, "num_experts_per_tok"),
            "width": parts.need(config, "moe_intermediate_size"),
            "activation": "relu2",
            "scores": "sigmoid",
            "normalise": config.get("norm_topk_prob", True),
            "scale": float(config.get("routed_scaling_factor", 1.0)),
            "correction": True,
            "groups": config.get("n_group", 1),
            "chosen_groups": config.get("topk_group", 1),
            "shared_width": parts.whole_number(config, "moe_shared_expert_intermediate_size", 1 << 20),
            "latent": config.get("moe_latent_size"),
            "bias": bias,
        },
    }
    return ModelConfig.from_dict(
        {
            **trunk,
            "float32_residual": config.get("residual_in_fp32", False),
            "pattern": pattern,
            **{name: table() for name, table in tables.items() if name in pattern},
        },
        where="config.json",
    )


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, after = parts.used_layers(config)
    mixer, attention = parts.only(used, Mamba2Config), parts.only(used, AttentionConfig)
    mlp, moe = parts.only(used, MLPConfig), parts.only(used, MoEConfig)
    present = [x for x in (mixer, attention, mlp, moe) if x is not None]
    if after or len(present) != len(used):
        return None
    if attention is None:  # of a model without attention
        attention = AttentionConfig(heads=1, kv_heads=1, head_dim=1, position="none", qk_norm="none")
    if any(x.norm != "input" for x in used) or (mixer is not None and mixer.norm_eps != config.norm_eps):
        return None
    bare = attention.position == "none" and attention.qk_norm == "none" and attention.window is None
    if not bare or attention.bias or attention.gate or attention.scale is not None:
        return None
    feeds = [x for x in (mlp, moe) if x is not None]
    if any(x.activation != "relu2" for x in feeds) or len({x.bias for x in feeds}) > 1:
        return None
    if config.tied_embeddings or not parts.plain_trunk(config, float32_residual=config.float32_residual):
        return None
    if moe is not None and not moe.shared_width:
        return None
    if moe is not None and (moe.scores != "sigmoid" or not moe.correction or moe.shared_gate or not moe.wide_router):
        return None
    document = {
        **parts.write_trunk(config, eps_key="layer_norm_epsilon"),
        "layers_block_type": [WRITTEN[type(config.kind(i))] for i in range(config.depth)],
        "residual_in_fp32": config.float32_residual,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.head_dim,
        "mlp_bias": any(x.bias for x in feeds),
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
    }
    if mixer is not None:
        document |= {
            "mamba_num_heads": mixer.heads,
            "mamba_head_dim": mixer.head_dim,
            "n_groups": mixer.groups,
            "ssm_state_size": mixer.state_dim,
            "conv_kernel": mixer.convolution,
            "use_conv_bias": mixer.convolution_bias,
            "use_bias": mixer.bias,
            **write_steps(mixer),
        }
    if mlp is not None:
        document["intermediate_size"] = mlp.width
    if moe is not None:
        document |= {
            "n_routed_experts": moe.experts,
            "num_experts_per_tok": moe.chosen,
            "moe_intermediate_size": moe.width,
            "moe_shared_expert_intermediate_size": moe.shared_width,
            "moe_latent_size": moe.latent,
            "norm_topk_prob": moe.normalise,
            "routed_scaling_factor": moe.scale,
            "n_group": moe.groups,
            "topk_group": moe.chosen_groups,
        }
    return document


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config, EMBEDDING, NORM)
    for i in range(config.depth):
        theirs, block, kind = f"backbone.layers.{i}.mixer", f"blocks.{i}", config.kind(i)
        feed = isinstance(kind, MLPConfig | MoEConfig)
        ours = f"{block}.mlp" if feed else f"{block}.mixer"
        found |= whole({f"backbone.layers.{i}.norm.weight": f"{ours}_norm.weight"})
        if isinstance(kind, Mamba2Config):
            found |= mixer_slots(theirs, ours, kind)
        elif isinstance(kind, AttentionConfig):
            found |= linear_slots(theirs, ours, ATTENTION)
        elif isinstance(kind, MLPConfig):
            found |= linear_slots(theirs, ours, MLP_NAMES, kind.bias)
        else:
            found |= _moe_slots(theirs, ours, kind, config.width)
    return found


def _moe_slots(theirs: str, ours: str, moe: MoEConfig, width: int) -> Slots:
    found = expert_slots(f"{theirs}.experts", ours, moe, width, ("up_proj", "down_proj"))
    found |= linear_slots(theirs, ours, {"gate": "router"})
    found |= whole({f"{theirs}.gate.e_score_correction_bias": f"{ours}.correction"})
    found |= linear_slots(f"{theirs}.shared_experts", f"{ours}.shared", MLP_NAMES, moe.bias)
    return found if moe.latent is None else found | linear_slots(theirs, ours, LATENTS, moe.bias)


def aliases(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Slots:
    """Map the names inside transformers: another prefix, and experts fused."""
    found = slots(config)
    for i in range(config.depth):
        if isinstance(config.kind(i), MoEConfig):
            theirs, ours = f"backbone.layers.{i}.mixer.experts", f"blocks.{i}.mlp"
            found |= whole({f"{theirs}.up_proj": f"{ours}.first", f"{theirs}.down_proj": f"{ours}.second"})
    prefix = "backbone."
    return found | {"model." + n.removeprefix(prefix): s for n, s in found.items() if n.startswith(prefix)}


FAMILY = Family(
    "nemotron_h",
    "NemotronHForCausalLM",
    read_config,
    write_config,
    slots,
    aliases,
    renames=((r"^backbone\.", "model."),),
    experts="model.layers.{}.mixer.experts",
    kept=r"mtp\.",
    kept_keys=("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern"),
)
