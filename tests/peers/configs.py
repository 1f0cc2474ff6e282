"""Small configurations of each family, in what that family varies; `transformers` builds them."""

from __future__ import annotations

import transformers

VOCABULARY = 97
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
TRUNK = {**SMALL, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}
DENSE = {**TRUNK, "intermediate_size": 80}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def olmo_hybrid(**changes):
    nope = {"rope_parameters": {"rope_type": "default", "rope_theta": None}}
    return transformers.OlmoHybridConfig(**{**DENSE, **nope, **changes})


def olmo3(**changes):
    return transformers.Olmo3Config(**{**DENSE, "sliding_window": 9, **changes})


def olmo2(**changes):
    return transformers.Olmo2Config(**{**DENSE, "num_hidden_layers": 2, **changes})


def llama(**changes):
    return transformers.LlamaConfig(**{**DENSE, "num_hidden_layers": 2, **changes})


def qwen3(**changes):
    grouped = {"num_key_value_heads": 2, "head_dim": 12}
    return transformers.Qwen3Config(**{**DENSE, "num_hidden_layers": 3, **grouped, **changes})


DELTA = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 24,
}


def qwen3_next(**changes):
    return transformers.Qwen3NextConfig(**{**DENSE, **DELTA, **EXPERTS, **changes})


def qwen3_5(**changes):
    return transformers.Qwen3_5TextConfig(**{**DENSE, **DELTA, **changes})


def qwen3_5_moe(**changes):
    return transformers.Qwen3_5MoeTextConfig(**{**TRUNK, **DELTA, **EXPERTS, **changes})


def kimi_linear(**changes):
    base = {
        "num_hidden_layers": 5,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 20,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 20,
        "qk_rope_head_dim": 6,
        "qk_nope_head_dim": 10,
        "v_head_dim": 12,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    }
    return transformers.KimiLinearConfig(**{**DENSE, **base, **changes})


def nemotron_h(**changes):
    base = {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "mlp"],
        "num_key_value_heads": 2,
        "head_dim": 12,
        "ssm_state_size": 10,
        "mamba_num_heads": 8,
        "mamba_head_dim": 12,
        "n_groups": 2,
        "n_routed_experts": 4,
        "moe_intermediate_size": 20,
        "moe_shared_expert_intermediate_size": 28,
        "time_step_min": 1e-9,  # theirs floors dt there in prompts only; see the family's docstring
    }
    trunk = {k: v for k, v in DENSE.items() if k != "num_hidden_layers"}
    return transformers.NemotronHConfig(**{**trunk, **base, **changes})


def granite(**changes):
    base = {
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mamba_n_heads": 8,
        "mamba_d_state": 10,
        "mamba_d_head": 12,
        "shared_intermediate_size": 28,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    }
    return transformers.GraniteMoeHybridConfig(**{**DENSE, **base, **changes})


def mamba2(**changes):
    base = {"hidden_size": 48, "num_hidden_layers": 3, "state_size": 10, "num_heads": 8, "head_dim": 12, "n_groups": 2}
    return transformers.Mamba2Config(**{**SMALL, **base, **changes})


def mamba(**changes):
    return transformers.MambaConfig(**{**SMALL, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 8, **changes})


CONFIGS = {
    "olmo_hybrid": lambda: olmo_hybrid(),
    "olmo_hybrid rope": lambda: olmo_hybrid(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
    "olmo_hybrid grouped": lambda: olmo_hybrid(
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=10
    ),
    "olmo_hybrid odd": lambda: olmo_hybrid(
        hidden_size=60,
        num_attention_heads=3,
        num_key_value_heads=1,
        linear_key_head_dim=7,
        linear_value_head_dim=11,
        linear_conv_kernel_dim=3,
        linear_allow_neg_eigval=False,
        num_hidden_layers=5,
        tie_word_embeddings=True,
        attention_bias=True,
    ),
    "olmo3": lambda: olmo3(),
    "olmo3 grouped": lambda: olmo3(num_key_value_heads=2, sliding_window=70, tie_word_embeddings=True),
    "olmo3 full": lambda: olmo3(layer_types=["full_attention"] * 4, hidden_size=60, num_attention_heads=3),
    "olmo3 yarn": lambda: olmo3(
        rope_parameters={
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }
    ),
    "olmo2": lambda: olmo2(),
    "olmo2 grouped": lambda: olmo2(num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True),
    "olmo2 linear rope": lambda: olmo2(
        hidden_size=60,
        num_attention_heads=3,
        rope_parameters={"rope_type": "linear", "rope_theta": 20_000.0, "factor": 2.5},
    ),
    "llama": lambda: llama(),
    "llama grouped": lambda: llama(num_key_value_heads=2, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama biases": lambda: llama(attention_bias=True, mlp_bias=True, head_dim=10, rms_norm_eps=1e-4),
    "qwen3": lambda: qwen3(),
    "qwen3 tied": lambda: qwen3(tie_word_embeddings=True, attention_bias=True, head_dim=18, rope_parameters=YARN),
    "qwen3 sliding": lambda: qwen3(
        num_key_value_heads=4, use_sliding_window=True, sliding_window=11, max_window_layers=1
    ),
    "qwen3_next": lambda: qwen3_next(),
    "qwen3_next dense layers": lambda: qwen3_next(mlp_only_layers=[1, 3], norm_topk_prob=False, attention_bias=True),
    "qwen3_next odd": lambda: qwen3_next(
        linear_num_key_heads=3,
        linear_num_value_heads=9,
        linear_key_head_dim=7,
        linear_value_head_dim=5,
        linear_conv_kernel_dim=3,
        num_experts=5,
        num_experts_per_tok=3,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5},
    ),
    "qwen3_5": lambda: qwen3_5(),
    "qwen3_5 grouped": lambda: qwen3_5(linear_num_key_heads=1, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3_5 odd": lambda: qwen3_5(
        linear_key_head_dim=9, linear_value_head_dim=5, layer_types=["full_attention", "linear_attention"] * 2
    ),
    "qwen3_5_moe": lambda: qwen3_5_moe(),
    "qwen3_5_moe biased": lambda: qwen3_5_moe(attention_bias=True, num_experts_per_tok=4, tie_word_embeddings=True),
    "qwen3_5_moe odd": lambda: qwen3_5_moe(hidden_size=56, num_experts=3, linear_num_value_heads=6, head_dim=24),
    "kimi_linear": lambda: kimi_linear(),
    "kimi_linear groups": lambda: kimi_linear(
        n_group=4, topk_group=2, num_experts_per_tok=3, norm_topk_prob=False, n_shared_experts=2
    ),
    "kimi_linear odd": lambda: kimi_linear(
        q_lora_rank=18,
        attention_bias=True,
        linear_head_dim=7,
        linear_num_heads=3,
        linear_conv_kernel_dim=3,
        layer_types=["full_attention", "linear_attention"] * 2 + ["linear_attention"],
        mlp_layer_types=["dense", "sparse", "dense", "sparse", "sparse"],
    ),
    "nemotron_h": lambda: nemotron_h(),
    "nemotron_h latent": lambda: nemotron_h(
        moe_latent_size=16, mlp_bias=True, use_bias=True, n_routed_experts=8, n_group=2, topk_group=1
    ),
    "nemotron_h no experts": lambda: nemotron_h(
        layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"] * 2,
        use_conv_bias=False,
        n_groups=1,
        num_key_value_heads=4,
        head_dim=10,
        conv_kernel=3,
    ),
    "granitemoehybrid": lambda: granite(),
    "granitemoehybrid dense": lambda: granite(num_local_experts=0, tie_word_embeddings=True, mamba_conv_bias=False),
    "granitemoehybrid rope": lambda: granite(
        position_embedding_type="rope",
        attention_bias=True,
        mamba_proj_bias=True,
        mamba_n_groups=2,
        mamba_d_conv=3,
        time_step_limit=(0.0, 5.0),
        layer_types=["full_attention", "linear_attention", "linear_attention"],
    ),
    "mamba2": lambda: mamba2(),
    "mamba2 tied": lambda: mamba2(tie_word_embeddings=True, use_bias=True, n_groups=1, residual_in_fp32=False),
    "mamba2 odd": lambda: mamba2(
        hidden_size=45, num_heads=6, head_dim=15, n_groups=3, conv_kernel=3, use_conv_bias=False
    ),
    "mamba": lambda: mamba(),
    "mamba biases": lambda: mamba(use_bias=True, use_conv_bias=False, time_step_rank=5, tie_word_embeddings=False),
    "mamba odd": lambda: mamba(hidden_size=45, expand=3, conv_kernel=3, state_size=5, residual_in_fp32=False),
    "qwen3_5_moe all attention": lambda: qwen3_5_moe(layer_types=["full_attention"] * 4),
}
