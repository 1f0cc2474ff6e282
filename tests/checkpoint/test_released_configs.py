"""Configs as they are released: each is read and run with small sizes, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import interlace
from interlace.base.errors import CheckpointError
from interlace.checkpoint.load import describe
from interlace.checkpoint.special import generation_config
from interlace.data.chat import ChatTemplate, read_template
from interlace.generate.engine import recommended
from interlace.model.model import HybridLM, Source

RELEASES = Path(__file__).with_name("releases")
OTHER = {  # families that are not ours
    "AI21-Jamba-1.5-Mini": "jamba",
    "Falcon-H1-0.5B-Base": "falcon_h1",
    "LFM2.5-1.2B-Distilled": "lfm2",
    "Ring-mini-linear-2.0-4bit": "bailing_moe_linear",
    "Zamba2-7B": "zamba2",
    "falcon-mamba-7b": "falcon_mamba",
}
QUANTISED = {"NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": "NVFP4", "NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": "modelopt"}
ENDS = {  # ids that end a text, from all files of the release
    "Kimi-Linear-48B-A3B-Instruct": {163586},
    "Llama-3.1-8B": {128001},
    "Mamba-Codestral-7B-v0.1": {0},
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {2},
    "Nemotron-H-8B-Base-8K": {2},
    "OLMo-2-1124-7B-Instruct": {100257},
    "Qwen3-0.6B": {151645},
    "Qwen3-4B": {151645, 151643},  # the second is in generation_config.json alone
    "Qwen3-4B-Thinking-2507": {151645},
    "Qwen3-Next-80B-A3B-Instruct": {151645},
    "Qwen3.5-0.8B": {248044},  # inside text_config
    "SmolLM2-135M": {0},
    "mamba-2.8b-hf": {0},
}
GENERATION_ALONE = {
    "Llama-3.1-8B-Instruct": {128001, 128008, 128009},
    "Llama-3.1-8B-Instruct-unsloth": {128001, 128008, 128009},
}
PARAMETERS = {  # counts that were published for the text model: docs/published_models.json
    "Kimi-Linear-48B-A3B-Instruct": 49_122_681_728,
    "Llama-3.1-8B": 8_030_261_248,
    "Mamba-Codestral-7B-v0.1": 7_285_403_648,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "Qwen3.5-0.8B": 752_393_024,
    "mamba-2.8b-hf": 2_768_345_600,
}
DEPTH = 8
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("vocab_size",), 64),
    **dict.fromkeys(("num_attention_heads", "mamba_num_heads", "linear_num_key_heads", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_groups", "num_experts_per_tok", "num_experts_per_token"), 2),
    **dict.fromkeys(("mamba_head_dim", "ssm_state_size", "state_size", "time_step_rank", "num_heads"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "moe_latent_size", "kv_lora_rank"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    "qk_rope_head_dim": 4,
    "num_hidden_layers": DEPTH,
    "chunk_size": 8,
}


def shrunk(config):
    """A released config with small sizes, and every other key as it is."""
    made = {k: shrunk(v) if isinstance(v, dict) else SMALL.get(k, v) for k, v in config.items()}
    for key in ("head_dim", "attention_head_dim"):
        if key in config:
            made[key] = 8
    for key in ("layer_types", "hybrid_override_pattern"):
        if key in config:
            made[key] = config[key][:DEPTH]
    for key in ("kda_layers", "full_attn_layers"):  # counted from 1
        if key in config:
            made[key] = [layer for layer in config[key] if layer <= DEPTH]
    if config.get("model_type") in ("mamba", "mamba2"):
        made["intermediate_size"] = 64  # twice the width
    return made


@pytest.fixture
def small(tmp_path):
    """The files of a release with small sizes, and small random weights beside them."""

    def make(name):
        folder = tmp_path / name
        shutil.copytree(RELEASES / name, folder)
        config = shrunk(json.loads((folder / "config.json").read_text()))
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        family, read, _ = describe(folder)
        model = HybridLM(read).eval()
        model.source = Source(family.model_type, {}, {}, {})
        interlace.save(model, tmp_path / "weights")
        shutil.copy(tmp_path / "weights/model.safetensors", folder)
        return folder, model

    return make


def test_every_folder_is_tested_and_says_where_it_is_from():
    names = {p.name for p in RELEASES.iterdir() if p.is_dir()}
    assert names == OTHER.keys() | QUANTISED.keys() | ENDS.keys() | GENERATION_ALONE.keys()
    assert len(names) >= 20
    sources = (RELEASES / "SOURCES.md").read_text()
    assert all(f"| {p.relative_to(RELEASES)} |" in sources for p in RELEASES.glob("*/*"))


@pytest.mark.parametrize("name", ENDS)
def test_a_released_config_is_read_and_ends_where_all_its_files_say(name):
    _, config, _ = describe(RELEASES / name)
    assert set(config.tokens.eos) == ENDS[name]
    if name in PARAMETERS:
        assert interlace.sizes(config, contexts=()).total == PARAMETERS[name]


@pytest.mark.parametrize("name", GENERATION_ALONE)
def test_a_generation_config_is_read(name):
    table = generation_config(RELEASES / name)
    assert set(table["eos_token_id"]) == GENERATION_ALONE[name]
    assert (table["temperature"], table["top_p"]) == (0.6, 0.9)


@pytest.mark.parametrize("name", ENDS)
def test_a_small_model_of_a_released_config_runs(small, tmp_path, name):
    folder, model = small(name)
    loaded = interlace.load(folder)
    tokens = torch.arange(12) * 5 % 64
    want = model(tokens)[0]
    assert torch.equal(loaded(tokens)[0], want)
    assert torch.isfinite(want).all()
    first, state = loaded(tokens[:7])
    rest, _ = loaded(tokens[7:], state=state)
    torch.testing.assert_close(torch.cat([first, rest]), want, rtol=1e-4, atol=1e-5)  # float32, other chunks
    interlace.save(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] is not None
    assert torch.equal(interlace.load(tmp_path / "again")(tokens)[0], want)


def test_the_sampling_of_a_release_is_taken(small):
    folder, _ = small("Qwen3-4B")
    sampling, taken = recommended(interlace.load(folder), temperature=None, top_k=None, top_p=None)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.95)
    assert taken == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.mark.parametrize("name", OTHER)
def test_a_family_that_is_not_ours_is_named_in_one_sentence(name):
    with pytest.raises(CheckpointError) as caught:
        describe(RELEASES / name)
    said = str(caught.value)
    assert f"model_type '{OTHER[name]}' is not supported" in said
    assert "did you mean" not in said  # another family is no misspelling of it
    assert "known: granitemoehybrid, " in said
    assert ("auto_map names is never run" in said) == ("auto_map" in (RELEASES / name / "config.json").read_text())
    assert "\n" not in said


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_release_is_refused_in_one_sentence(tmp_path, name):
    shutil.copytree(RELEASES / name, tmp_path / "model")
    weights = {"backbone.layers.0.mixer.in_proj.weight": torch.zeros(4, 4, dtype=torch.uint8)}
    weights |= {"backbone.layers.0.mixer.in_proj.weight_scale_2": torch.zeros(())}
    save_file(weights, tmp_path / "model/model.safetensors")
    with pytest.raises(CheckpointError, match="the weights are quantised") as caught:
        interlace.load(tmp_path / "model")
    assert QUANTISED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
    {"role": "user", "content": "Bye"},
]
OPENED = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("Qwen3-0.6B", OPENED), ("Qwen3-4B", OPENED), ("Qwen3.5-0.8B", f"{OPENED}<think>\n\n</think>\n\n")],
)
def test_a_released_template_is_rendered(name, prompt):
    chat = ChatTemplate(read_template(str(RELEASES / name / "chat_template.jinja")), eos="<|im_end|>")
    try:
        text = chat.render(TURNS, ask=True)
        before = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        assert text == f"{before}<|im_start|>user\nBye<|im_end|>\n{prompt}"
        assert "look_up" in chat.render(TURNS, True, tools=[{"type": "function", "function": {"name": "look_up"}}])
        assert chat.end_of_turn().strip() == "<|im_end|>"
    finally:
        chat.close()
