"""Olmo Hybrid and Olmo 3 against `transformers`: logits, cached steps, greedy text, and folders both can open."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import interlace
from interlace.base.segments import Segments
from interlace.generate.engine import generate_tokens
from interlace.generate.sampling import Sampling

RELATIVE = 2e-5  # float32, different order of sums
SMALL = {"vocab_size": 97, "pad_token_id": None, "eos_token_id": None, "max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def hybrid(**changes):
    base = {
        **SMALL,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": None},
    }
    return transformers.OlmoHybridConfig(**{**base, **changes})


def olmo3(**changes):
    base = {
        **SMALL,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "sliding_window": 9,
    }
    return transformers.Olmo3Config(**{**base, **changes})


CONFIGS = {
    "hybrid": lambda: hybrid(),
    "hybrid rope": lambda: hybrid(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
    "hybrid grouped values": lambda: hybrid(linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=10),
    "hybrid odd": lambda: hybrid(
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
}
every_config = pytest.mark.parametrize("name", list(CONFIGS))


@pytest.fixture
def pair(name, tmp_path):
    """(theirs, ours loaded from their folder, the folder)."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # norms off 1 and biases off 0, so that a swap of two would show
            p.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, interlace.load(tmp_path / "theirs"), tmp_path


def relative(found, want):
    return float((found - want).norm() / want.norm())


@every_config
def test_logits_and_cached_steps_are_equal(pair):
    """Prefill of an odd length, then 200 tokens one by one with carried state on both sides."""
    theirs, ours, _ = pair
    tokens = torch.randint(97, (2, 277))
    with torch.no_grad():
        want = theirs(tokens[:, :77], use_cache=True)
        found, state = ours(tokens[:, :77])
        assert relative(found, want.logits) < RELATIVE
        cache = want.past_key_values
        for t in range(77, 277):
            want = theirs(tokens[:, t : t + 1], past_key_values=cache, use_cache=True)
            found, state = ours(tokens[:, t], Segments.equal(2, 1), state)
        assert relative(found, want.logits[:, 0]) < RELATIVE
        assert relative(ours(tokens)[0][:, -1], want.logits[:, 0]) < RELATIVE


@every_config
def test_greedy_text_is_equal(pair):
    theirs, ours, _ = pair
    prompt = torch.randint(97, (1, 13))
    want = theirs.generate(prompt, max_new_tokens=40, do_sample=False)[0, 13:].tolist()
    found = list(generate_tokens(ours, prompt[0].tolist(), max_tokens=40, sampling=Sampling(temperature=0)))
    assert found == want


@every_config
def test_a_ragged_batch_equals_their_single_runs(pair):
    theirs, ours, _ = pair
    parts = [torch.randint(97, (n,)) for n in (1, 70, 13)]
    with torch.no_grad():
        found = ours(torch.cat(parts), Segments.from_lengths([len(p) for p in parts]))[0]
        want = torch.cat([theirs(p[None]).logits[0] for p in parts])
    assert relative(found, want) < RELATIVE


@every_config
def test_gradients_are_equal(pair):
    """Of the loss, for every matrix that both name alike after a save."""
    theirs, ours, _ = pair
    tokens = torch.randint(97, (2, 75))
    theirs(tokens, labels=tokens).loss.backward()
    logits, _ = ours(tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    layer, block = theirs.model.layers[0], ours.blocks[0]
    mine, other = (block.mixer, layer.linear_attn) if hasattr(layer, "linear_attn") else (block.mixer, layer.self_attn)
    pairs = [
        (ours.embedding.weight, theirs.model.embed_tokens.weight),
        (mine.key.weight, other.k_proj.weight),
        (block.mlp.down.weight, layer.mlp.down_proj.weight),
        (
            block.mlp_norm.weight,
            (getattr(layer, "post_feedforward_layernorm", None) or layer.post_attention_layernorm).weight,
        ),
    ]
    if hasattr(other, "A_log"):
        pairs += [(mine.A_log, other.A_log), (mine.dt_bias, other.dt_bias), (mine.convolution, other.conv1d.weight)]
    for a, b in pairs:
        assert relative(a.grad.flatten(), b.grad.flatten()) < 1e-4  # the decay's gradient is a difference of sums


@every_config
def test_what_we_save_they_open(pair):
    """Without our code, with the same logits, and nothing missing or unexpected."""
    theirs, ours, folder = pair
    interlace.save(ours, folder / "ours")
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(97, (1, 66))
    with torch.no_grad():
        assert relative(opened(tokens).logits, theirs(tokens).logits) < RELATIVE
    assert type(opened) is type(theirs)


@pytest.mark.parametrize("name", ["hybrid", "hybrid grouped values"])
def test_convolutions_fused_cut_by_projection_or_in_thirds(pair):
    """The three layouts in which the convolutions have been stored give the same model."""
    _theirs, ours, folder = pair
    tokens = torch.randint(97, (20,))
    want = ours(tokens)[0]
    stored = load_file(folder / "theirs" / "model.safetensors")
    channels = ours.config.layers["gated_delta"].channels
    for layout in ("fused", "by projection", "thirds"):
        changed = dict(stored)
        for i, block in enumerate(ours.blocks):
            prefix = f"model.layers.{i}.linear_attn."
            if f"{prefix}A_log" not in changed:
                continue
            for letter in "qkv":
                changed.pop(f"{prefix}{letter}_conv1d.weight")
            fused = block.mixer.convolution.detach().unsqueeze(1).contiguous()
            if layout == "fused":
                changed[f"{prefix}conv1d.weight"] = fused
            else:
                parts = fused.split(channels) if layout == "by projection" else fused.chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    changed[f"{prefix}{letter}_conv1d.weight"] = part.clone()
        save_file(changed, folder / "theirs" / "model.safetensors")
        assert torch.equal(interlace.load(folder / "theirs")(tokens)[0], want), layout


@pytest.mark.parametrize("name", ["hybrid"])
def test_other_names_seen_in_the_wild(pair):
    """Norms as transformers' converter names them, output projection and norm as OLMo-core's exporter does."""
    _, ours, folder = pair
    file = folder / "theirs" / "model.safetensors"
    renamed = {}
    for key, value in load_file(file).items():
        if ".3." not in key:  # layer 3 is attention, where one of these names means something else
            for old, new in {
                "input_layernorm": "attention_layer_norm",
                "post_attention_layernorm": "feedforward_layer_norm",
                "linear_attn.o_proj": "linear_attn.out_proj",
                "linear_attn.o_norm": "linear_attn.norm",
            }.items():
                key = key.replace(old, new)
        renamed[key] = value
    save_file(renamed, file)
    tokens = torch.randint(97, (20,))
    assert torch.equal(interlace.load(folder / "theirs")(tokens)[0], ours(tokens)[0])


@pytest.mark.parametrize(
    ("parameters", "position"),
    [
        (None, "none"),
        ({"rope_type": None}, "none"),
        ({"rope_theta": None}, "none"),
        ({"rope_type": "default", "rope_theta": 5e5}, "rope"),
        ("absent", "none"),
        ("top level", "rope"),
    ],
    ids=str,
)
def test_every_history_of_rope_parameters(parameters, position):
    from interlace.checkpoint.olmo_hybrid import read_config

    config = json.loads(hybrid().to_json_string())
    config["rope_parameters"] = parameters
    if isinstance(parameters, str):
        config.pop("rope_parameters")
    if parameters == "top level":
        config |= {"rope_theta": 5e5, "rope_scaling": None}
    attention = read_config(config).layers["attention"]
    assert attention.position == position
    assert position == "none" or attention.rope.theta == 5e5


def test_the_7b_has_the_published_number_of_parameters():
    """7,430,870,688 in all, 7,045,519,008 without the input embedding (arXiv 2604.03444)."""
    from interlace.checkpoint.olmo_hybrid import read_config, slots

    config = read_config(json.loads(transformers.OlmoHybridConfig(rope_parameters=None).to_json_string()))
    size = interlace.sizes(config)
    assert size.total == 7_430_870_688
    assert size.total - size.parameters["embedding"] == 7_045_519_008
    assert len(slots(config)) == 523
    memory = 24 * 30 * 96 * 192 * 4
    window = 24 * 3 * (2 * 2880 + 5760) * 2
    assert size.state_bytes[65_536] == memory + window
    assert size.cache_bytes[65_536] == 8 * 2 * 65_536 * 3840 * 2


def test_safetensors_reads_what_we_write(tmp_path):
    """Our writer against the library: bf16 beside float32, and the header it wants."""
    from interlace.checkpoint.tensors import read_header, read_into, write

    a, b = torch.randn(3, 5), torch.randn(7).to(torch.bfloat16)
    write(tmp_path / "x.safetensors", [("b", (7,), b), ("a", (3, 5), a)])
    theirs = load_file(tmp_path / "x.safetensors")
    assert torch.equal(theirs["a"], a)
    assert torch.equal(theirs["b"], b)
    save_file({"a": a, "b": b}, tmp_path / "y.safetensors", metadata={"format": "pt"})
    found = torch.empty(7, dtype=torch.bfloat16)
    read_into(read_header(tmp_path / "y.safetensors")["b"], "b", found)
    assert torch.equal(found, b)
