"""Members of a family that lack one of its parts: their configs go there and back, and no format changes unsaid."""

from __future__ import annotations

import json

import pytest
import torch

import interlace
from interlace.checkpoint.families.registry import FAMILIES
from interlace.checkpoint.save import family_of
from interlace.model.model import HybridLM

TRUNK = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DENSE = {**TRUNK, "intermediate_size": 20, "num_key_value_heads": 1}
GRANITE = {
    **DENSE,
    "model_type": "granitemoehybrid",
    "shared_intermediate_size": 20,
    "num_local_experts": 0,
    "layer_types": ["attention", "attention"],
    "position_embedding_type": "rope",
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
}
MAMBA_KEYS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 6, "mamba_expand": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 4,
    "head_dim": 8,
}
NEXT = {**DENSE, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 8, "model_type": "qwen3_next"}
KIMI = {
    **DENSE,
    **EXPERTS,
    "model_type": "kimi_linear",
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "linear_attn_config": {
        "full_attn_layers": [2],
        "kda_layers": [1],
        "num_heads": 2,
        "head_dim": 6,
        "short_conv_kernel_size": 3,
    },
}
NEMOTRON = {
    **{k: v for k, v in DENSE.items() if k != "num_hidden_layers"},
    "model_type": "nemotron_h",
    "mamba_num_heads": 2,
    "mamba_head_dim": 6,
    "ssm_state_size": 5,
    "n_groups": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 8,
}
MAMBA2 = {
    "model_type": "mamba2",
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 8,
    "n_groups": 1,
    "state_size": 5,
}


def kimi_layers(full, delta):
    return {"linear_attn_config": {**KIMI["linear_attn_config"], "full_attn_layers": full, "kda_layers": delta}}


MEMBERS = {
    "granite attention": {**GRANITE, **MAMBA_KEYS},
    "granite attention and nothing about mamba": GRANITE,
    "granite attention, no positions": {**GRANITE, "position_embedding_type": "nope"},
    "granite attention, experts": {**GRANITE, **MAMBA_KEYS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite recurrent": {**GRANITE, **MAMBA_KEYS, "layer_types": ["mamba", "mamba"]},
    "granite steps": {
        **GRANITE,
        **MAMBA_KEYS,
        "layer_types": ["mamba", "attention"],
        "time_step_min": 0.002,
        "time_step_max": 0.05,
        "time_step_floor": 1e-5,
    },
    "qwen3_next without experts": {**NEXT, "num_experts": 0},
    "qwen3_next dense in every layer": {**NEXT, "mlp_only_layers": [0, 1]},
    "qwen3_next attention": {**NEXT, "layer_types": ["full_attention"] * 2},
    "qwen3_next recurrent": {**NEXT, "layer_types": ["linear_attention"] * 2},
    "kimi dense": {**KIMI, "first_k_dense_replace": 2},
    "kimi latent attention": {**KIMI, **kimi_layers([1, 2], [])},
    "kimi recurrent": {**KIMI, **kimi_layers([], [1, 2])},
    "kimi recurrent and dense": {**KIMI, **kimi_layers([], [1, 2]), "first_k_dense_replace": 2},
    "nemotron without recurrence": {**NEMOTRON, "hybrid_override_pattern": "*-"},
    "nemotron attention": {**NEMOTRON, "hybrid_override_pattern": "**"},
    "nemotron experts": {**NEMOTRON, "hybrid_override_pattern": "E-"},
    "nemotron recurrent": {**NEMOTRON, "hybrid_override_pattern": "MM"},
    "nemotron without attention's keys": {
        **{k: v for k, v in NEMOTRON.items() if "num_attention" not in k and "key_value" not in k},
        "hybrid_override_pattern": "M-",
    },
    "mamba2 with a lower limit alone": {**MAMBA2, "time_step_limit": [0.01, {"__float__": "Infinity"}]},
    "mamba2 with limits": {**MAMBA2, "time_step_limit": [0.01, 0.1]},
    "olmo3 sliding": {**DENSE, "model_type": "olmo3", "layer_types": ["sliding_attention"] * 2, "sliding_window": 9},
    "olmo3 full": {**DENSE, "model_type": "olmo3", "layer_types": ["full_attention"] * 2},
    "qwen3 sliding": {
        **DENSE,
        "model_type": "qwen3",
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 0,
    },
    "qwen3_5 attention": {**DENSE, **DELTA, "model_type": "qwen3_5_text", "layer_types": ["full_attention"] * 2},
    "qwen3_5 recurrent": {**DENSE, **DELTA, "model_type": "qwen3_5_text", "layer_types": ["linear_attention"] * 2},
}
every_member = pytest.mark.parametrize("published", list(MEMBERS.values()), ids=list(MEMBERS))


def read(published):
    family = next(f for f in FAMILIES if published["model_type"] in (f.model_type, *f.also))
    return family, family.read_config(published)


@every_member
def test_its_config_goes_there_and_back(published):
    family, config = read(published)
    chosen, written = family_of(config, family.model_type)
    assert chosen.model_type == family.model_type
    assert family.read_config(json.loads(json.dumps(written))) == config


@every_member
def test_it_is_saved_in_its_own_format(published, tmp_path):
    """A model that was loaded from a family goes back to it, with the same bytes."""
    family, config = read(published)
    interlace.save(_as_loaded(family, config), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_type"] == family.model_type
    model = interlace.load(tmp_path / "a")
    interlace.save(model, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert torch.isfinite(model(torch.arange(7))[0]).all()


def _as_loaded(family, config):
    from interlace.model.model import Source

    model = HybridLM(config)
    model.source = Source(family.model_type, {}, {}, {})
    return model


# A format that the source's family cannot say


def test_our_own_format_is_said_where_the_source_had_another(tmp_path, capfd, caplog):
    """A llama cannot have norms stored as differences from 1; the model is kept, and the change of format said."""
    _, config = read({**DENSE, "model_type": "llama"})
    model = HybridLM(config.from_dict({**config.to_dict(), "zero_centred_norms": True}, where="model"))
    interlace.save(HybridLM(config), tmp_path / "a")
    model.source = interlace.load(tmp_path / "a").source
    capfd.readouterr()
    interlace.save(model, tmp_path / "b")
    said = caplog.text + capfd.readouterr().err
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "interlace"
    assert "llama" in said
    assert "interlace's own format" in said or "our own format" in said


def test_another_familys_format_is_said_too(tmp_path, capfd, caplog):
    _, config = read({**DENSE, "model_type": "llama"})
    interlace.save(HybridLM(config), tmp_path / "a")
    model = interlace.load(tmp_path / "a")
    _, other = read({**DENSE, "model_type": "qwen3", "head_dim": 8})
    changed = HybridLM(other)
    changed.source = model.source
    capfd.readouterr()
    interlace.save(changed, tmp_path / "b")
    said = caplog.text + capfd.readouterr().err
    assert "llama" in said
    assert "qwen3" in said


def test_the_format_that_a_model_came_in_is_not_remarked_upon(tmp_path, capfd, caplog):
    _, config = read({**DENSE, "model_type": "llama"})
    interlace.save(HybridLM(config), tmp_path / "a")
    interlace.save(interlace.load(tmp_path / "a"), tmp_path / "b")
    assert caplog.text + capfd.readouterr().err == ""
