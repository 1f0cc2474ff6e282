"""Small texts, a run on them that takes a second, and released configs with small sizes."""

from __future__ import annotations


def texts_in(folder):
    """A folder of small text files with something to learn in them."""
    folder.mkdir()
    for i in range(12):
        words = " ".join(f"the {'quick' if j % 3 else 'slow'} fox {i * j % 17} jumps" for j in range(120))
        (folder / f"{i:02}.txt").write_text(words + "\n", encoding="utf-8")
    return folder


def recipe_of(texts):
    """Plain data of a run that takes a second."""
    return {
        "model": {
            "width": 32,
            "depth": 2,
            "vocabulary": 300,
            "pattern": ["gated_delta", "attention"],
            "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
            "attention": {"heads": 2, "norm": "output", "position": "none"},
            "mlp": {"width": 48},
        },
        "data": {"source": [str(texts)], "tokenizer": "train:300", "length": 48, "rows": 4},
        "train": {"tokens": 20 * 192, "evaluations": 4, "evaluation_tokens": 960, "checkpoints": 5},
    }


DEPTH = 8
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("vocab_size",), 64),
    **dict.fromkeys(("num_attention_heads", "mamba_num_heads", "linear_num_key_heads", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_groups", "num_experts_per_tok", "num_experts_per_token"), 2),
    **dict.fromkeys(("mamba_head_dim", "ssm_state_size", "state_size", "time_step_rank", "num_heads"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "moe_latent_size", "kv_lora_rank"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    "shared_intermediate_size": 16,
    "qk_rope_head_dim": 4,
    "num_hidden_layers": DEPTH,
}


def shrunk(config):
    """A released config with small sizes, and every other key as it is. A size of 0 is none and stays so."""
    made = {k: shrunk(v) if isinstance(v, dict) else SMALL.get(k, v) if v else v for k, v in config.items()}
    for key in ("head_dim", "attention_head_dim"):
        if key in config:
            made[key] = 8
    for key in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        if key in config:
            made[key] = config[key][:DEPTH]
    for key in ("kda_layers", "full_attn_layers"):  # counted from 1
        if key in config:
            made[key] = [layer for layer in config[key] if layer <= DEPTH]
    if config.get("model_type") in ("mamba", "mamba2"):
        made["intermediate_size"] = 64  # twice the width
    return made
