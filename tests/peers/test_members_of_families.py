"""Members of a family that lack one of its parts, opened by `transformers` after we saved them."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from configs import granite, kimi_linear, nemotron_h, qwen3_next

import interlace

ATTENTION = ["full_attention"] * 3
DEGENERATE = {
    "granite attention rope": lambda: granite(
        layer_types=ATTENTION, num_local_experts=0, position_embedding_type="rope", tie_word_embeddings=True
    ),
    "granite attention experts": lambda: granite(layer_types=ATTENTION),
    "kimi dense": lambda: kimi_linear(mlp_layer_types=["dense"] * 5),
    "kimi latent": lambda: kimi_linear(layer_types=["full_attention"] * 5),
    "qwen3_next no experts": lambda: qwen3_next(num_experts=0),
    "qwen3_next dense": lambda: qwen3_next(mlp_only_layers=[0, 1, 2, 3]),
    "nemotron no recurrence": lambda: nemotron_h(layers_block_type=["full_attention", "mlp", "moe"]),
}


@pytest.mark.parametrize("name", list(DEGENERATE))
def test_what_we_save_they_open(name, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_config(DEGENERATE[name]()).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    interlace.save(interlace.load(tmp_path / "theirs"), tmp_path / "ours")
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(opened) is type(theirs)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for (key, p), q in zip(opened.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(p, q), key
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(opened(tokens).logits, theirs(tokens).logits)


def test_they_pad_with_the_tokenizer_that_we_save(tmp_path):
    """Pad token and side are the release's."""
    from interlace.data.tokenizer import Tokenizer

    Tokenizer.train(["some words to learn from"], 300, ("<|pad|>",)).write(tmp_path)
    fast = transformers.AutoTokenizer.from_pretrained(tmp_path)
    fast.pad_token, fast.padding_side, fast.model_max_length = "<|pad|>", "left", 512
    fast.save_pretrained(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    model.save_pretrained(tmp_path / "theirs")
    interlace.save(interlace.load(tmp_path / "theirs"), tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again.padding_side == "left"
    assert again.model_max_length == 512
    rows = again(["a", "some words"], padding=True)["input_ids"]
    assert rows[0][0] == again.pad_token_id == fast.pad_token_id
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (settings.temperature, settings.do_sample) == (0.6, True)
