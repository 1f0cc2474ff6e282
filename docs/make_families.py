"""docs/families.md from docs/published_models.json: `python docs/make_families.py > docs/families.md`.

The sizes are those that `interlace inspect` computes from each model's published config; a test holds the page to this
script, and each count to the published one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interlace.checkpoint.families.registry import FAMILIES
from interlace.model.config import ModelConfig
from interlace.model.sizes import Sizes, sizes

CONTEXT = 65_536
FAMILY = {kind: family for family in FAMILIES for kind in (family.model_type, *family.also)}
SOURCES = {
    "hub": "safetensors metadata of the model's hub page",
    "index": "`total_parameters` of the model's shard index",
    "gguf": "parameter count in the maker's own GGUF file",
    "maker": "the maker's announcement",
    "others": "counted by others from the released files; the maker states none",
}

HEAD = """# Families

Made by `python docs/make_families.py > docs/families.md`.

`interlace.load(folder)` opens each of these, from the hub's files as they are; `interlace.save` writes the released
names back, which `transformers` opens without our code. `tests/peers/` compares small models of each family with
`transformers` 5.23 and 5.24: logits, 100 cached steps, greedy text, ragged batches and gradients; and the bytes of every
saved tensor with what was loaded. The docstring of a family's file in `src/interlace/checkpoint/families/` says where its
published implementations disagree. [performance.md](performance.md#families) has speed and memory.

| `model_type` | layers | file |
|---|---|---|
| `olmo_hybrid` | Gated DeltaNet (norm on the input), attention without positions (norm on the output) | `olmo_hybrid.py` |
| `olmo3`, `olmo2` | attention with the norm on the output, QK-norm over the projection; Olmo 3 slides | `olmo3.py`, `olmo2.py` |
| `qwen3_next` | Gated DeltaNet, gated attention with partial RoPE, zero-centred norms, experts | `qwen3_next.py` |
| `qwen3_5`, `qwen3_5_text`, `qwen3_5_moe`, `qwen3_5_moe_text` | the same with separate projections, dense or with experts; \
the text model out of a release with a vision tower | `qwen3_5.py` |
| `kimi_linear` | Kimi Delta Attention, latent attention without positions, experts by sigmoid scores | `kimi_linear.py` |
| `nemotron_h` | Mamba-2, attention without positions, experts and squared-ReLU MLPs, each a layer of its own | `nemotron_h.py` |
| `granitemoehybrid` | Mamba-2 and attention, four multipliers, experts beside a shared MLP | `granitemoehybrid.py` |
| `mamba2`, `mamba` | pure recurrent models with a float32 residual stream | `mamba2.py`, `mamba.py` |
| `llama`, `qwen3` | plain transformers | `llama.py`, `qwen3.py` |
| `interlace` | any pattern of any kinds of layer, in our own names | `own.py` |

For study, without a published format of their own, a pattern may also name `hyena` (long gated convolutions, whose cache
grows with the context) and `lstm`.

## Published models

Parameters are computed from the published config; *published* is the count of the text model alone, that is without what
the last column names. *Read* is what one token reads, the embedding included. State (float32) and cache (bfloat16) are
bytes of one sequence after 65,536 tokens.

| model | `model_type` | parameters | published | off by | read | state | cache | beside it in the files |
|---|---|---:|---:|---:|---:|---:|---:|---|
"""


def models() -> list[dict[str, Any]]:
    """The published models."""
    found: list[dict[str, Any]] = json.loads(Path(__file__).with_name("published_models.json").read_text())
    return found


def config_of(model: dict[str, Any]) -> ModelConfig:
    """Its config as we say it."""
    return FAMILY[model["config"]["model_type"]].read_config(model["config"])


def published(model: dict[str, Any]) -> int:
    """The published count of the text model alone."""
    count: int = model["published"]
    return count - sum(model.get("beside", {}).values())


def row(model: dict[str, Any], size: Sizes) -> str:
    """One line of the table."""
    off = size.total / published(model) - 1
    beside = ", ".join(f"{name} {count:,}" for name, count in model.get("beside", {}).items())
    cells = [
        model["name"],
        f"`{model['config']['model_type']}`",
        f"{size.total:,}",
        f"{published(model):,}",
        "0" if off == 0 else f"{off:+.5%}",
        f"{size.active / 1e9:.2f} B",
        f"{size.state_bytes[CONTEXT] / 2**20:,.1f} MiB",
        f"{size.cache_bytes[CONTEXT] / 2**20:,.0f} MiB",
        beside,
    ]
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The whole page."""
    text = HEAD + "".join(row(m, sizes(config_of(m), (CONTEXT,))) for m in models())
    text += "\nWhere the published counts come from: "
    text += "; ".join(
        f"{reason}: {', '.join(m['name'].split('/')[1] for m in models() if m['source'] == key)}"
        for key, reason in SOURCES.items()
    )
    unseen = ", ".join(m["name"].split("/")[1] for m in models() if not m["config_seen"])
    text += (
        ".\n\nThe configs are trimmed to what decides the geometry. Those of "
        + unseen
        + " were put together from model "
        "cards and defaults, and are confirmed by the count alone. Nemotron's count leaves out the router's corrections "
        "(128 numbers in each of 23 layers), which are in the files and in ours.\n"
    )
    return text


if __name__ == "__main__":
    print(page(), end="")
