"""Laws 3 to 7 for every small model of the registry, and with them for every kind of layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import interlace
from interlace.base.segments import Segments
from interlace.layers.attention import AttentionConfig
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.hyena import HyenaConfig
from interlace.layers.kimi_delta import KimiDeltaConfig
from interlace.layers.latent_attention import LatentAttentionConfig
from interlace.layers.lstm import LSTMConfig
from interlace.layers.mamba import MambaConfig
from interlace.layers.mamba2 import Mamba2Config
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoE, MoEConfig
from interlace.layers.registry import KINDS
from interlace.model.model import HybridLM
from interlace.model.presets import PRESETS, preset
from interlace.model.sizes import sizes
from interlace.model.state import ModelState
from interlace.ops.gated_delta.flops import flops_per_token_and_head as gated_delta_flops
from interlace.ops.kimi_delta.flops import flops_per_token_and_head as kimi_delta_flops
from interlace.ops.state_space.flops import flops_per_token_and_head as state_space_flops

CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64: sums in another order
every_model = pytest.mark.parametrize("name", list(PRESETS))


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    config = preset(name)
    model = HybridLM(config, dtype=dtype).eval()
    return model, torch.randint(config.vocabulary, (131,))


def test_presets_cover_every_kind():
    used = {type(layer) for name in PRESETS for layer in preset(name).layers.values()}
    assert used == set(KINDS.values())


@every_model
def test_any_cut_carries_the_state(name):
    """Law 3, for two sequences of different length at once."""
    model, tokens = build(name)
    a, b = tokens[:50], tokens[50:]
    with torch.no_grad():
        whole = [model(x)[0] for x in (a, b)]
        state, found = None, [[], []]
        for cut_a, cut_b in (((0, 1), (0, 70)), ((1, 33), (70, 71)), ((33, 50), (71, 81))):
            parts = [a[slice(*cut_a)], b[slice(*cut_b)]]
            segments = Segments.from_lengths([len(p) for p in parts])
            logits, state = model(torch.cat(parts), segments, state)
            for out, piece in zip(found, logits.split(segments.lengths), strict=True):
                out.append(piece)
    for want, pieces in zip(whole, found, strict=True):
        torch.testing.assert_close(torch.cat(pieces), want, **CLOSE)


@every_model
def test_gradients_pass_through_a_cut(name):
    """Law 3, gradients of all weights."""
    model, tokens = build(name)
    results = []
    for cuts in ([80], [33, 47]):
        model.zero_grad()
        state, total = None, 0
        for part in tokens[:80].split(cuts):
            logits, state = model(part, state=state)
            total = total + torch.logsumexp(logits, -1).sum() + logits[:, 3].sum()
        total.backward()
        results.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


@every_model
def test_packed_segments_equal_separate_runs(name):
    """Law 4."""
    model, tokens = build(name)
    lengths = [1, 64, 3, 63]
    with torch.no_grad():
        packed, state = model(tokens, Segments.from_lengths(lengths))
        alone = [model(part) for part in tokens.split(lengths)]
    torch.testing.assert_close(packed, torch.cat([logits for logits, _ in alone]), **CLOSE)
    assert state.positions.tolist() == lengths


@every_model
def test_token_by_token_equals_prefill(name):
    """Law 5, across the border of a chunk and of a window."""
    model, tokens = build(name)
    with torch.no_grad():
        whole = model(tokens)[0]
        state, steps = model.empty_state(1), []
        for token in tokens.split(1):
            logits, state = model(token, state=state)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps), whole, **CLOSE)


@every_model
def test_a_batched_row_equals_its_solo_run(name):
    """Law 5: rows of different length prefilled apart, joined, decoded together; then one is forked and goes on."""
    model, tokens = build(name)
    prompts = [tokens[:1], tokens[1:70], tokens[70:77]]
    new = tokens[-8:]
    with torch.no_grad():
        states = [model(p)[1] for p in prompts]
        joined = ModelState.concat([s.fork(0) for s in states])
        together = []
        for token in new:
            logits, joined = model(token.repeat(3), Segments.equal(3, 1), joined)
            together.append(logits)
        for row, prompt in enumerate(prompts):
            want = model(torch.cat((prompt, new)))[0][len(prompt) :]
            torch.testing.assert_close(torch.stack([x[row] for x in together]), want, **CLOSE)
        fork = joined.select([2, 0])
        logits, _ = model(tokens[:2], Segments.equal(2, 1), fork)
        want = model(torch.cat((prompts[2], new, tokens[:1])))[0][-1]
        torch.testing.assert_close(logits[0], want, **CLOSE)


@every_model
def test_float32_is_close_to_float64(name):
    """Law 2 for models: float32 rounds each of a few hundred operations at 6e-8."""
    model, tokens = build(name)
    single, _ = build(name, torch.float32)
    with torch.no_grad():
        single.load_state_dict(model.state_dict())
        want, found = model(tokens)[0], single(tokens)[0]
    assert float((found.double() - want).norm() / want.norm()) < 5e-6


@every_model
def test_predicted_sizes_are_the_models(name):
    """Law 6: parameters by part, FLOPs counted on the meta device, bytes of a state after a generation's worth."""
    config = preset(name)
    time = 64
    predicted = sizes(config, (time,), element_bytes=8)
    model = HybridLM(config, device="meta")
    assert predicted.total == sum(p.numel() for p in model.parameters())
    body = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("embedding", "head")))
    assert predicted.non_embedding == body

    model = model.double()  # which torch's own products serve, so that its counter sees them
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, time, dtype=torch.int64, device="meta"))
    assert counter.get_total_flops() == matmul_flops(config, time)

    built, tokens = build(name)
    with torch.no_grad():
        state = built.empty_state(1, time)
        for token in tokens[:time].split(1):
            _, state = built(token, state=state)
    # the prediction is for float32 memories; this model's are float64, as all of it is
    wide = [getattr(s, name).nbytes for s in state.layers for name in ("memory", "hidden", "cell") if hasattr(s, name)]
    memories = sum(wide) // 2
    assert state.nbytes - memories == predicted.state_bytes[time] + predicted.cache_bytes[time]


def matmul_flops(config, time):
    """What a counter sees: linear layers and attention over the whole square; our own operators count nothing there."""
    model = HybridLM(config, device="meta")
    flops = 2 * time * sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    for i in range(config.depth):
        layer = config.kind(i)
        if isinstance(layer, LatentAttentionConfig):
            flops += 2 * layer.heads * (layer.query_dim + layer.value_dim) * time * time
        if isinstance(layer, AttentionConfig):
            if layer.window is None or layer.window >= time:
                flops += 4 * layer.heads * layer.head_dim * time * time
                continue
            for start in range(0, time, layer.window):  # blocks of `window` queries, each with the keys it can see
                stop = min(start + layer.window, time)
                seen = stop - max(0, start - layer.window + 1)
                flops += 4 * layer.heads * layer.head_dim * (stop - start) * seen
    return flops


def attention_flops(layer, width, time):
    return 4 * layer.heads * layer.head_dim * min((time + 1) / 2, layer.window or time)


def hyena_flops(layer, width, time):
    return 6 * layer.channels * layer.convolution + 15 * layer.channels * math.log2(2 * time)


# What each kind of layer computes for a token beside its linear layers, half of the sequence visible on average.
OWN = {
    AttentionConfig: attention_flops,
    LatentAttentionConfig: lambda c, _, time: 2 * c.heads * (c.query_dim + c.value_dim) * (time + 1) / 2,
    GatedDeltaConfig: lambda c, *_: (
        c.groups * gated_delta_flops(c.key_dim, c.value_dim, c.groups // c.heads) + 2 * c.convolution * sum(c.channels)
    ),
    KimiDeltaConfig: lambda c, *_: (
        c.heads * kimi_delta_flops(c.key_dim, c.value_dim) + 2 * c.convolution * sum(c.channels)
    ),
    Mamba2Config: lambda c, *_: (
        c.heads * state_space_flops(c.state_dim, c.head_dim, c.heads // c.groups) + 2 * c.convolution * sum(c.channels)
    ),
    MambaConfig: lambda c, *_: 2 * c.convolution * c.inner + 6 * c.inner * c.state_dim,
    HyenaConfig: hyena_flops,
    LSTMConfig: lambda *_: 0,
    MLPConfig: lambda *_: 0,
    MoEConfig: lambda c, width, _: (
        2 * c.chosen * (3 if c.activation == "swiglu" else 2) * c.width * (c.latent or width)
    ),
}


@every_model
def test_predicted_flops_add_up(name):
    """Law 6: the prediction is linear layers + operators + the half square that causal attention needs."""
    config, time = preset(name), 64
    predicted = sizes(config, (time,)).flops_per_token[time] * time
    model = HybridLM(config, device="meta")
    linear = 2 * time * sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    layers = [x for i in range(config.depth) for x in (config.kind(i), config.mlp_of(i)) if x is not None]
    own = sum(OWN[type(layer)](layer, config.width, time) for layer in layers)
    assert predicted == pytest.approx(linear + own * time, rel=1e-12)


@every_model
def test_active_parameters_leave_out_the_experts_that_are_not_chosen(name):
    config = preset(name)
    model = HybridLM(config, device="meta")
    idle = 0
    for module in model.modules():
        if isinstance(module, MoE):
            c = module.config
            idle += (c.experts - c.chosen) * (module.first[0].numel() + module.second[0].numel())
    size = sizes(config)
    assert size.total - size.active == idle


@every_model
def test_save_load_save_gives_identical_bytes(name, tmp_path):
    """Law 7, in float32 and bfloat16; the loaded model is the same function."""
    for dtype in (torch.float32, torch.bfloat16):
        model, tokens = build(name, dtype)
        first, second = tmp_path / f"{dtype}-a", tmp_path / f"{dtype}-b"
        interlace.save(model, first)
        loaded = interlace.load(first)
        interlace.save(loaded, second)
        for file in first.iterdir():
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name
        with torch.no_grad():
            assert torch.equal(model(tokens)[0], loaded(tokens)[0])


def test_gates_stay_in_float32():
    """Casting a model leaves A_log and dt_bias bit for bit."""
    model, _ = build("tiny-hybrid", torch.float32)
    before = model.blocks[0].mixer.A_log.detach().clone()
    model.to(torch.bfloat16)
    mixer = model.blocks[0].mixer
    assert mixer.A_log.dtype == mixer.dt_bias.dtype == torch.float32
    assert torch.equal(mixer.A_log, before)
    assert mixer.query.weight.dtype == torch.bfloat16
