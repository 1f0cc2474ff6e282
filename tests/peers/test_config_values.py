"""Values of config.json that the reference opens: other words for the same, scalings said otherwise, windows of 0."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from configs import CONFIGS, VOCABULARY, llama, nemotron_h, olmo3, qwen3

import interlace

RELATIVE = 2e-5  # float32, different order of sums
M = 64  # max_position_embeddings below


def relative(found, want):
    return float((found - want).norm() / want.norm())


def both(folder, config, **raw):
    """Theirs and ours from one folder, whose config.json is changed by hand; None takes a key away."""
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in {**json.loads(path.read_text()), **raw}.items() if v is not ...}))
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), interlace.load(folder)


def same(theirs, ours, length):
    tokens = torch.randint(VOCABULARY, (1, length))
    with torch.no_grad():
        assert relative(ours(tokens)[0], theirs(tokens).logits) < RELATIVE


ACTIVATIONS = ["olmo_hybrid", "olmo3", "olmo2", "llama", "qwen3", "qwen3_next", "qwen3_5", "mamba", "mamba2"]
ACTIVATIONS += ["kimi_linear", "granitemoehybrid", "nemotron_h"]


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n in CONFIGS])
def test_swish_is_silu(tmp_path, name):
    key = "mamba_hidden_act" if name == "nemotron_h" else "hidden_act"
    theirs, ours = both(tmp_path, CONFIGS[name](), **{key: "swish"})
    same(theirs, ours, 20)


ROPES = {
    "yarn": {"type": "yarn", "factor": 4.0},
    "yarn, no factor": {"type": "yarn", "factor": None, "original_max_position_embeddings": 16},
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn, one mscale": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7},
    "yarn, betas 0": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 0,
        "beta_slow": 0,
    },
    "yarn, truncate null": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": M, "truncate": None},
    "yarn, truncate true": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": M, "truncate": True},
    "yarn, very short": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "linear": {"type": "linear", "factor": 4},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "dynamic, an original that is not read": {
        "rope_type": "dynamic",
        "factor": 2.0,
        "original_max_position_embeddings": 16,
    },
    "a factor without a type": {"factor": 4.0},
}


@pytest.mark.parametrize("name", list(ROPES))
@pytest.mark.parametrize("age", ["rope_scaling", "rope_parameters"])
def test_scalings_as_releases_say_them(tmp_path, name, age):
    raw = {"rope_theta": 10_000.0, "rope_parameters": ..., "rope_scaling": dict(ROPES[name])}
    if age == "rope_parameters":
        raw = {"rope_parameters": {"rope_theta": 10_000.0, **ROPES[name]}}
    theirs, ours = both(tmp_path, llama(max_position_embeddings=M), **raw)
    same(theirs, ours, M)


@pytest.mark.parametrize("scaling", ["yarn", "llama3"])
def test_an_original_length_beside_the_scaling_counts_first(tmp_path, scaling):
    rope = {"rope_type": scaling, "factor": 4.0, "original_max_position_embeddings": 40}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if scaling == "llama3" else {}
    raw = {"rope_theta": 10_000.0, "rope_parameters": ..., "rope_scaling": rope}
    theirs, ours = both(tmp_path, llama(max_position_embeddings=M), original_max_position_embeddings=9, **raw)
    same(theirs, ours, M)


def test_yarn_for_each_kind_of_layer_without_its_length(tmp_path):
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    ropes = {"full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}, "sliding_attention": plain}
    theirs, ours = both(tmp_path, olmo3(max_position_embeddings=M), rope_parameters=ropes)
    same(theirs, ours, M)


def test_dynamic_beyond_its_length_equals_their_decoding(tmp_path):
    """Each token turns by the base of the length that it ends, as theirs does when tokens come one by one."""
    dynamic = {"type": "dynamic", "factor": 2.0}
    raw = {"rope_theta": 10_000.0, "rope_parameters": ..., "rope_scaling": dynamic}
    theirs, ours = both(tmp_path, llama(max_position_embeddings=M), **raw)
    tokens = torch.randint(VOCABULARY, (1, M + 40))
    with torch.no_grad():
        past, want = None, []
        for t in range(M + 40):
            out = theirs(tokens[:, t : t + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            want.append(out.logits)
        assert relative(ours(tokens)[0], torch.cat(want, 1)) < RELATIVE


def test_dynamic_is_written_as_it_was_read(tmp_path):
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    _, ours = both(tmp_path / "a", llama(max_position_embeddings=M), rope_parameters=dynamic)
    interlace.save(ours, tmp_path / "b")
    found = json.loads((tmp_path / "b" / "config.json").read_text())
    assert found["model_type"] == "llama"
    assert found["max_position_embeddings"] == M
    assert found["rope_parameters"] == dynamic
    assert interlace.load(tmp_path / "b").config == ours.config


def test_dynamic_follows_the_law_of_cuts():
    from interlace.layers.rope import RopeConfig, rotary

    rope = RopeConfig(theta=10_000.0, scaling="dynamic", factor=2.0, original_context=M)
    whole = rotary(torch.arange(3 * M), rope, 12)
    parts = [rotary(torch.arange(a, b), rope, 12) for a, b in ((0, 5), (5, M + 1), (M + 1, 3 * M))]
    for k in range(2):
        assert torch.equal(whole[k], torch.cat([part[k] for part in parts]))
    base = 10_000.0 * (2.0 * 100 / M - 1.0) ** (12 / 10)
    for i in range(6):
        assert float(whole[0][99, i]) == pytest.approx(math.cos(99 * base ** (-2 * i / 12)), abs=1e-5)


@pytest.mark.parametrize("window", [0, None])
@pytest.mark.parametrize("slides", [True, False])
def test_a_window_of_0_is_none_in_qwen3(tmp_path, window, slides):
    plain = {"sliding_window": window, "use_sliding_window": slides, "max_window_layers": 1, "layer_types": ...}
    transformers.AutoModelForCausalLM.from_config(qwen3()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in {**json.loads(path.read_text()), **plain}.items() if v is not ...}))
    assert {x.window for x in interlace.load(tmp_path).config.layers.values() if hasattr(x, "window")} == {None}


@pytest.mark.parametrize("window", [0, None])
def test_a_window_of_0_is_none_in_nemotron(tmp_path, window):
    theirs, ours = both(tmp_path, nemotron_h(), sliding_window=window)
    same(theirs, ours, 20)


def test_a_window_of_0_is_none_in_olmo3(tmp_path):
    theirs, ours = both(tmp_path, olmo3(layer_types=["full_attention"] * 4), sliding_window=0)
    same(theirs, ours, 20)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "layer_types": ["sliding_attention", "full_attention"] * 2}))
    assert {x.window for x in interlace.load(tmp_path).config.layers.values() if hasattr(x, "window")} == {None}


REFUSED = ["longrope", "proportional", "su", "mrope", "ntk", 7, ["yarn"]]


@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_other_scalings_are_refused_by_name(tmp_path, kind):
    both(tmp_path, llama(max_position_embeddings=M))
    path = tmp_path / "config.json"
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": rope}))
    with pytest.raises(interlace.base.errors.CheckpointError, match="rope_type"):
        interlace.load(tmp_path)


UNREAD = {
    "olmo_hybrid",
    "olmo3",
    "olmo2",
    "qwen3",
    "qwen3_next",
    "qwen3_5",
    "kimi_linear",
    "granitemoehybrid",
    "mamba2",
}


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_keys_of_other_families_mean_nothing(tmp_path, name):
    """`mlp_bias` is read by Llama and Nemotron-H alone."""
    theirs, ours = both(tmp_path, CONFIGS[name](), mlp_bias=True)
    same(theirs, ours, 20)


@pytest.mark.parametrize("name", ["nemotron_h", "kimi_linear"])
def test_a_head_that_the_reference_never_ties_is_read(tmp_path, name):
    """What they save of a config that says tied holds a head of its own, which they read."""
    config = CONFIGS[name]()
    config.tie_word_embeddings = True
    theirs, ours = both(tmp_path, config)
    assert not ours.config.tied_embeddings
    same(theirs, ours, 20)


@pytest.mark.parametrize("name", sorted(n for n in CONFIGS if " " not in n))
def test_a_model_that_is_tied_here_is_tied_where_they_open_it(tmp_path, name):
    transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(tmp_path / "theirs")
    config = interlace.load(tmp_path / "theirs").config.replace(tied_embeddings=True)
    ours = interlace.HybridLM(config).eval()
    interlace.save(ours, tmp_path / "ours")
    if json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "interlace":
        assert name in ("nemotron_h", "kimi_linear")
        ours = interlace.load(tmp_path / "ours")
        assert ours.head.weight is ours.embedding.weight
    else:
        same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval(), ours, 20)


@pytest.mark.parametrize("most", [64, None])
@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "olmo2", "olmo3", "olmo_hybrid rope", "qwen3_next", "granitemoehybrid rope"]
)
def test_dynamic_that_begins_elsewhere_is_kept_in_our_own_format(tmp_path, name, most):
    """No published config can say where it begins but by the longest context."""
    transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(tmp_path / "theirs")
    table = interlace.load(tmp_path / "theirs").config.to_dict()
    table["max_positions"] = most
    for key, layer in table.items():
        if isinstance(layer, dict) and "rope" in layer:
            rope = {"scaling": "dynamic", "factor": 2.0, "original_context": 16, "theta": 1e4}
            table[key] = {**layer, "rope": {**layer["rope"], **rope}}
    model = interlace.HybridLM(interlace.ModelConfig.from_dict(table)).eval()
    interlace.save(model, tmp_path / "ours")
    again = interlace.load(tmp_path / "ours")
    tokens = torch.arange(60)
    with torch.no_grad():
        assert torch.equal(again(tokens)[0], model(tokens)[0])
