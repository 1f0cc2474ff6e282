"""Kimi Linear: Kimi Delta Attention with latent attention without positions; experts are chosen by sigmoid scores.

Source: arXiv 2510.26692; moonshotai/Kimi-Linear-48B-A3B-Instruct; huggingface/transformers
src/transformers/models/kimi_linear.

Traps: the lists of layers in `linear_attn_config` count from 1; half the keys of config.json have two spellings; nobody
reads `tie_word_embeddings`; the norms inside latent attention have an eps of 1e-6, whatever `rms_norm_eps` says;
transformers 5.23 saves a dense layer's MLP as `block_sparse_moe.*`, which is read here and not written.

Moonshot's own code weights the chosen experts by their scores with the correction added (an in-place sum through a
view). Transformers and the inference engines use the correction for the choice only, as DeepSeek-V3 does; so do we.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.checkpoint.families import parts
from interlace.checkpoint.families.slots import expert_slots, linear_slots, mlp_slots, stacked, trunk_slots, whole
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.layers.kimi_delta import KimiDeltaConfig
from interlace.layers.latent_attention import LatentAttentionConfig
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig

KINDS = {"linear_attention": "kimi_delta", "full_attention": "latent_attention"}
NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm"}
DELTA = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "b_proj": "beta",
    "f_a_proj": "decay_down",
    "f_b_proj": "decay_up",
    "g_a_proj": "gate_down",
    "g_b_proj": "gate_up",
    "o_proj": "output",
    "o_norm": "norm",
}


def _either(config: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    """Return the value of the first of several spellings that is there."""
    return next((config[key] for key in keys if config.get(key) is not None), default)


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    parts.refuse_unless(config, "moe_router_activation_func", "sigmoid")
    parts.refuse_unless(config, "mla_use_nope", True)
    parts.refuse_unless(config, "hidden_act", *parts.SILU, None)
    parts.refuse_unless(config, "moe_layer_freq", 1)
    trunk = {**parts.read_trunk(config, eps=1e-5), "tied_embeddings": False}
    trunk["max_positions"] = _either(config, "model_max_length", "max_position_embeddings")
    depth, linear = trunk["depth"], config.get("linear_attn_config") or {}
    types = parts.layer_names(config, "layer_types", depth, KINDS) or _listed(linear, depth)
    feeds = parts.layer_names(config, "mlp_layer_types", depth, ("dense", "sparse"))
    if feeds is None:
        feeds = ["dense" if i < config.get("first_k_dense_replace", 1) else "sparse" for i in range(depth)]
    head_dim = linear.get("head_dim", config.get("linear_head_dim", 128))
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "kimi_delta": lambda: {
            "heads": linear.get("num_heads", config.get("linear_num_heads", 32)),
            "key_dim": head_dim,
            "value_dim": head_dim,
            "convolution": linear.get("short_conv_kernel_size", config.get("linear_conv_kernel_dim", 4)),
            "norm_eps": trunk["norm_eps"],
        },
        "latent_attention": lambda: {
            "heads": parts.need(config, "num_attention_heads"),
            "latent": parts.need(config, "kv_lora_rank"),
            "key_dim": parts.need(config, "qk_nope_head_dim"),
            "shared_dim": parts.need(config, "qk_rope_head_dim"),
            "value_dim": parts.need(config, "v_head_dim"),
            "query_latent": config.get("q_lora_rank"),
            "bias": config.get("attention_bias", False),
        },
    }
    tables: dict[str, Any] = {}
    pattern = []
    for kind, feed in zip((KINDS.get(t, t) for t in types), feeds, strict=True):
        name = f"dense_{kind}" if feed == "dense" and "sparse" in feeds else kind
        pattern.append(name)
        if kind in kinds:
            tables[name] = {"type": kind, "mlp": True if feed == "dense" else "moe", **kinds[kind]()}
    if "dense" in feeds:
        tables["mlp"] = parts.read_mlp(config)
    if "sparse" in feeds:
        width = parts.whole_number(config, "moe_intermediate_size", 1 << 20)
        shared = _either(config, "num_shared_experts", "n_shared_experts", default=1)
        if not shared:
            raise CheckpointError("config.json: num_shared_experts = 0 is not supported; every Kimi Linear has one")
        tables["moe"] = {
            "experts": _either(config, "num_experts", "num_local_experts", default=256),
            "chosen": _either(config, "num_experts_per_token", "num_experts_per_tok", default=8),
            "width": width,
            "scores": "sigmoid",
            "normalise": _either(config, "moe_renormalize", "norm_topk_prob", default=True),
            "scale": float(config.get("routed_scaling_factor", 1.0)),
            "correction": True,
            "groups": _either(config, "num_expert_group", "n_group", default=1),
            "chosen_groups": config.get("topk_group") or 1,
            "shared_width": width * shared,
        }
    return ModelConfig.from_dict({**trunk, "pattern": pattern, **tables}, where="config.json")


def _listed(linear: Mapping[str, Any], depth: int) -> list[str]:
    """Return the kinds of layer from lists that count from 1.

    Without lists, layers 4, 8, ... are attention, counted from 0.
    """
    if "full_attn_layers" not in linear:
        return ["full_attention" if i and i % 4 == 0 else "linear_attention" for i in range(depth)]
    return ["full_attention" if i + 1 in linear["full_attn_layers"] else "linear_attention" for i in range(depth)]


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    mixers = {x.model_copy(update={"mlp": True}) for x in used}
    delta, latent = parts.only(mixers, KimiDeltaConfig), parts.only(mixers, LatentAttentionConfig)
    mlp, moe = parts.only(mlps, MLPConfig), parts.only(mlps, MoEConfig)
    if len(mixers) != (delta is not None) + (latent is not None) or None in map(config.mlp_of, range(config.depth)):
        return None
    if len(mlps) != (moe is not None) + (mlp is not None) or (mlp is not None and not parts.is_plain_mlp(mlp)):
        return None
    fits = all(x.norm == "input" for x in mixers) and (delta is None or _is_kimi_delta(delta, config.norm_eps))
    fits = fits and parts.plain_trunk(config) and (moe is None or _is_kimi(moe))
    if not fits or config.tied_embeddings:
        return None
    full = [i for i in range(config.depth) if isinstance(config.kind(i), LatentAttentionConfig)]
    dense = [i for i in range(config.depth) if not isinstance(config.mlp_of(i), MoEConfig)]
    document = parts.write_trunk(config)
    if config.max_positions is not None:
        document["model_max_length"] = document.pop("max_position_embeddings")
    document |= {
        "hidden_act": "silu",
        "layer_types": ["full_attention" if i in full else "linear_attention" for i in range(config.depth)],
        "mlp_layer_types": ["dense" if i in dense else "sparse" for i in range(config.depth)],
        **({"first_k_dense_replace": len(dense)} if dense == list(range(len(dense))) else {}),
        "linear_attn_config": {
            "full_attn_layers": [i + 1 for i in full],
            "kda_layers": [i + 1 for i in range(config.depth) if i not in full],
            **({} if delta is None else _written_delta(delta)),
        },
        "mla_use_nope": True,
        "intermediate_size": mlp.width if mlp is not None else moe.width if moe is not None else config.width,
    }
    if latent is not None:
        document |= {
            "num_attention_heads": latent.heads,
            "num_key_value_heads": latent.heads,
            "attention_bias": latent.bias,
            "kv_lora_rank": latent.latent,
            "q_lora_rank": latent.query_latent,
            "qk_nope_head_dim": latent.key_dim,
            "qk_rope_head_dim": latent.shared_dim,
            "v_head_dim": latent.value_dim,
        }
    return document if moe is None else {**document, **_written_experts(moe)}


def _written_delta(delta: KimiDeltaConfig) -> dict[str, Any]:
    return {"head_dim": delta.key_dim, "num_heads": delta.heads, "short_conv_kernel_size": delta.convolution}


def _written_experts(moe: MoEConfig) -> dict[str, Any]:
    return {
        "moe_intermediate_size": moe.width,
        "moe_router_activation_func": "sigmoid",
        "moe_renormalize": moe.normalise,
        "routed_scaling_factor": moe.scale,
        "num_experts": moe.experts,
        "num_experts_per_token": moe.chosen,
        "num_shared_experts": moe.shared_width // moe.width,
        "num_expert_group": moe.groups,
        "topk_group": moe.chosen_groups,
    }


def _is_kimi_delta(delta: KimiDeltaConfig, norm_eps: float) -> bool:
    ranks = delta.key_dim == delta.value_dim == delta.ranks[0] == delta.ranks[1]
    return ranks and not delta.negative_eigenvalues and delta.norm_eps == norm_eps


def _is_kimi(moe: MoEConfig) -> bool:
    shared = moe.shared_width > 0 and moe.shared_width % moe.width == 0 and not moe.shared_gate
    routed = moe.scores == "sigmoid" and moe.correction and moe.wide_router and moe.activation == "swiglu"
    return shared and routed and moe.latent is None and not moe.bias


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block, kind, moe = f"model.layers.{i}", f"blocks.{i}", config.kind(i), config.mlp_of(i)
        theirs, ours = f"{layer}.self_attn", f"{block}.mixer"
        found |= whole({f"{layer}.{p}.weight": f"{block}.{o}.weight" for p, o in NORMS.items()})
        found |= _delta(theirs, ours, kind) if isinstance(kind, KimiDeltaConfig) else _latent(theirs, ours, kind)
        if not isinstance(moe, MoEConfig):
            found |= mlp_slots(f"{layer}.mlp", f"{block}.mlp")
            continue
        theirs, ours = f"{layer}.block_sparse_moe", f"{block}.mlp"
        found |= expert_slots(f"{theirs}.experts", ours, moe, config.width, ("w1", "w3", "w2"))
        found |= linear_slots(theirs, ours, {"gate": "router"}) | mlp_slots(
            f"{theirs}.shared_experts", f"{ours}.shared"
        )
        found |= whole({f"{theirs}.gate.e_score_correction_bias": f"{ours}.correction"})
    return found


def _delta(theirs: str, ours: str, kind: KimiDeltaConfig) -> Slots:
    found = linear_slots(theirs, ours, DELTA) | whole({f"{theirs}.dt_bias": f"{ours}.dt_bias"})
    found[f"{theirs}.A_log"] = (Slot(f"{ours}.A_log", shape=(1, 1, kind.heads, 1)),)
    rows = stacked(f"{ours}.convolution", *kind.channels)
    for letter, slot, size in zip("qkv", rows, kind.channels, strict=True):
        found[f"{theirs}.{letter}_conv1d.weight"] = (replace(slot, shape=(size, 1, kind.convolution)),)
    return found


def _latent(theirs: str, ours: str, kind: LatentAttentionConfig) -> Slots:
    names = {"kv_b_proj.weight": "expand.weight", "kv_a_layernorm.weight": "latent_norm.weight"}
    biased = {"kv_a_proj_with_mqa": "compress", "o_proj": "output"}
    if kind.query_latent is None:
        names["q_proj.weight"] = "query.weight"
    else:
        names |= {"q_b_proj.weight": "query.weight", "q_a_layernorm.weight": "query_norm.weight"}
        biased["q_a_proj"] = "query_down"
    return whole({f"{theirs}.{p}": f"{ours}.{o}" for p, o in names.items()}) | linear_slots(
        theirs, ours, biased, kind.bias
    )


def aliases(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Slots:
    """Map the names of a dense layer's MLP as transformers 5.23 saves it."""
    found: Slots = {}
    for i in range(config.depth):
        if not isinstance(config.mlp_of(i), MoEConfig):
            found |= mlp_slots(f"model.layers.{i}.block_sparse_moe", f"blocks.{i}.mlp")
    return found


FAMILY = Family(
    "kimi_linear",
    "KimiLinearForCausalLM",
    read_config,
    write_config,
    slots,
    aliases,
    renames=((r"\.block_sparse_moe\.", ".mlp."), (r"\.self_attn\.(f_[ab]_proj)\.", r".self_attn.forget_gate.\1.")),
    experts="model.layers.{}.mlp.experts",
)
