"""Prefill and decode of every family beside `transformers` on this CPU, from the same checkpoint, in one run.

    python benchmarks/families.py [--pairs 7] [--only kimi_linear,mamba2] [--dtype bfloat16] [--json]

Each family has a model of 15 to 60 million parameters with the head sizes of its releases, saved by transformers and
opened by both. Prefill: 1 x 1024 tokens, state kept, logits of the last. Decode: 32 greedy tokens after a prompt of
256, the time of the prompt included; the same tokens alone, as the time of 64 less that of 2 after a prompt of 16; and
32 of each of 16 rows after prompts of 16. Ours and theirs alternate; ratios are of medians, with quartiles.
Prints nothing unless the operators agree with the float64 recurrence first, and the two sides' logits with each
other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from measure import compare, compare_differences, describe, require_truth

import interlace
from interlace.generation.batch import answers
from interlace.generation.pack import pack_for_decoding
from interlace.generation.request import Request
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens

TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
TRUNK = {**TOKENS, "vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
DENSE = {**TRUNK, "intermediate_size": 1376, "max_position_embeddings": 8192}
DELTA = {
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
EXPERTS = {
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
}
NOPE = {"rope_type": "default", "rope_theta": None}
CONFIGS: dict[str, Any] = {
    "llama": lambda t: t.LlamaConfig(**DENSE, num_key_value_heads=2),
    "qwen3": lambda t: t.Qwen3Config(**DENSE, num_key_value_heads=2, head_dim=64),
    "olmo2": lambda t: t.Olmo2Config(**DENSE),
    "olmo3": lambda t: t.Olmo3Config(**DENSE, sliding_window=512),
    "olmo_hybrid": lambda t: t.OlmoHybridConfig(**DENSE, rope_parameters=NOPE),
    "qwen3_next": lambda t: t.Qwen3NextConfig(**DENSE, **DELTA, **EXPERTS),
    "qwen3_5": lambda t: t.Qwen3_5TextConfig(**DENSE, **DELTA),
    "qwen3_5_moe": lambda t: t.Qwen3_5MoeTextConfig(**TRUNK, **DELTA, **EXPERTS),
    "kimi_linear": lambda t: t.KimiLinearConfig(
        **DENSE,
        num_key_value_heads=8,
        moe_intermediate_size=256,
        num_local_experts=16,
        num_experts_per_tok=4,
        kv_lora_rank=128,
        qk_rope_head_dim=32,
        qk_nope_head_dim=64,
        v_head_dim=64,
        linear_head_dim=128,
        linear_num_heads=4,
    ),
    "nemotron_h": lambda t: t.NemotronHConfig(
        **{k: v for k, v in DENSE.items() if k != "num_hidden_layers"},
        layers_block_type=["linear_attention", "moe", "linear_attention", "moe", "full_attention", "mlp"] * 2,
        num_key_value_heads=2,
        head_dim=64,
        ssm_state_size=128,
        mamba_num_heads=16,
        mamba_head_dim=64,
        n_groups=4,
        n_routed_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=256,
        moe_shared_expert_intermediate_size=512,
        time_step_min=1e-9,
    ),
    "granitemoehybrid": lambda t: t.GraniteMoeHybridConfig(
        **{**DENSE, "intermediate_size": 256},
        num_key_value_heads=2,
        layer_types=["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 4,
        mamba_n_heads=16,
        mamba_d_head=64,
        mamba_d_state=128,
        shared_intermediate_size=512,
        num_local_experts=16,
        num_experts_per_tok=4,
        attention_multiplier=0.125,
        residual_multiplier=0.22,
        embedding_multiplier=12.0,
        logits_scaling=6.0,
    ),
    "mamba": lambda t: t.MambaConfig(**TOKENS, vocab_size=8192, hidden_size=768, num_hidden_layers=8),
    "mamba2": lambda t: t.Mamba2Config(
        **TOKENS, vocab_size=8192, hidden_size=768, num_hidden_layers=8, num_heads=24, head_dim=64, n_groups=1
    ),
}
PROMPT, TEXT, NEW = 1024, 256, 32
ROWS, SHORT = 16, 16


def both(name: str, dtype: torch.dtype) -> tuple[interlace.HybridLM, torch.nn.Module]:
    """Our model and theirs, from one folder."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](transformers)).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return interlace.load(folder), theirs.eval()


@torch.inference_mode()
def measure(name: str, dtype: torch.dtype, pairs: int) -> dict[str, Any]:
    """Prefill and decode of one family."""
    ours, theirs = both(name, dtype)
    size = interlace.sizes(ours.config)
    tokens = torch.randint(ours.config.vocabulary, (1, PROMPT))
    a, b = ours(tokens, last_only=True)[0].float(), theirs(tokens, logits_to_keep=1).logits[:, 0].float()
    prefill = compare(
        lambda: ours(tokens, last_only=True), lambda: theirs(tokens, use_cache=True, logits_to_keep=1), pairs
    )
    pack_for_decoding(ours)
    prompt, greedy = tokens[:, :TEXT], Sampling(temperature=0)
    decode = compare(
        lambda: list(generate_tokens(ours, prompt[0].tolist(), max_tokens=NEW, sampling=greedy)),
        lambda: theirs.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False),
        pairs,
    )
    short = prompt[:, :SHORT]
    alone = compare_differences(
        lambda count: list(generate_tokens(ours, short[0].tolist(), max_tokens=count, sampling=greedy)),
        lambda count: theirs.generate(short, max_new_tokens=count, min_new_tokens=count, do_sample=False),
        (2, 2 * NEW),
        pairs,
    )
    many = torch.randint(ours.config.vocabulary, (ROWS, SHORT))
    requests = [Request(tuple(row), NEW, greedy) for row in many.tolist()]
    rows = compare(
        lambda: answers(ours, requests),
        lambda: theirs.generate(many, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False),
        pairs,
    )
    return {
        "family": name,
        "parameters": size.total,
        "difference": float((a - b).norm() / b.norm()),
        "prefill": {**prefill, "tokens_per_second": PROMPT / prefill["ours_seconds"]},
        "decode": {**decode, "tokens_per_second": NEW / decode["ours_seconds"]},
        "alone": {**alone, "tokens_per_second": 1 / alone["ours_seconds"]},
        "rows": {**rows, "tokens_per_second": ROWS * NEW / rows["ours_seconds"]},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", default=",".join(CONFIGS))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    require_truth()
    machine = describe(f"transformers {transformers.__version__}")
    print(machine, file=sys.stderr)
    results = []
    heads = [("prefill tok/s", 13), ("decode tok/s", 12), ("alone tok/s", 11), (f"{ROWS} rows tok/s", 13)]
    print(f"{'family':18} {'parameters':>11}  " + "  ".join(f"{head:>{w}} {'ratio':>18}" for head, w in heads))
    for name in arguments.only.split(","):
        r = measure(name, getattr(torch, arguments.dtype), arguments.pairs)
        results.append(r)
        cells = []
        for part, (_, width) in zip(("prefill", "decode", "alone", "rows"), heads, strict=True):
            x = r[part]
            spread = f"{x['ratio']:.2f} ({x['ratio_low']:.2f}-{x['ratio_high']:.2f})"
            cells.append(f"{x['tokens_per_second']:{width}.0f} {spread:>18}")
        print(f"{name:18} {r['parameters']:11,}  " + "  ".join(cells), flush=True)
    if arguments.json:
        json.dump({"machine": machine, "results": results}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
