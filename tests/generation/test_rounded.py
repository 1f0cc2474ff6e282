"""Models whose weights were rounded to few bits: near the model, saved and opened again, never trained or mistaken."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import interlace
from interlace.base.errors import CheckpointError, ConfigError
from interlace.cli.main import run
from interlace.data.tokenizer import Tokenizer
from interlace.generation import pack
from interlace.generation.budget import sequence_bytes
from interlace.generation.pack import ROUNDINGS, pack_for_decoding
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.layers.moe import MoE
from interlace.model.presets import PRESETS, preset
from interlace.ops.core.quantised import Rounding, quantise

KINDS = ["tiny-hybrid", "tiny-bare", "tiny-kimi", "tiny-granite", "tiny-nemotron", "tiny-gated-attention", "tiny-mamba"]
GREEDY = Sampling(temperature=0)


def built(name, **more):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name).replace(init_std=0.1, **more)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    return model


def relative(a, b):
    return float((a - b).norm() / b.norm())


def widened(model):
    """A copy whose weights are those that a rounded model stands for."""
    rounding, plain = ROUNDINGS["int4"], copy.deepcopy(model)
    with torch.no_grad():
        for module in plain.modules():
            for group in getattr(module, "GROUPS", ()):
                for layer in (getattr(module, name) for name in group):
                    layer.weight.copy_(quantise(layer.weight, rounding).weight(torch.float32))
            for weight in (
                getattr(module, name) for name in getattr(module, "MATRICES", ()) if name in ("first", "second")
            ):
                weight.copy_(quantise(weight, rounding).weight(torch.float32))
        if not plain.config.tied_embeddings:
            plain.head.weight.copy_(quantise(plain.head.weight, Rounding(8)).weight(torch.float32))
    return plain


@pytest.mark.parametrize("name", KINDS)
def test_a_rounded_model_is_the_model_of_its_weights_and_is_opened_as_it_was(name, tmp_path):
    model, tokens = built(name), torch.randint(61, (40,))
    plain, bytes_before = widened(model), model.weights_bytes
    pack_for_decoding(model, ROUNDINGS["int4"])
    with torch.no_grad():
        want = plain(tokens)[0]
        found, state, steps = model(tokens)[0], None, []
        for token in tokens.split(1):
            logits, state = model(token, state=state)
            steps.append(logits)
    assert relative(found, want) < 1e-3
    assert relative(torch.cat(steps), found) < 1e-3
    assert model.weights_bytes < bytes_before
    interlace.save(model, tmp_path / "a")
    again = interlace.load(tmp_path / "a")
    interlace.save(again, tmp_path / "b")
    assert again.rounding == ROUNDINGS["int4"]
    assert again.weights_bytes == model.weights_bytes
    assert all(p.read_bytes() == (tmp_path / "b" / p.name).read_bytes() for p in (tmp_path / "a").iterdir())
    with torch.no_grad():
        assert torch.equal(again(tokens)[0], found)
    made = [list(generate_tokens(m, [1, 2, 3], max_tokens=9, sampling=GREEDY)) for m in (model, again)]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(KINDS)))
def test_every_kind_of_layer_is_rounded_and_saved(name, tmp_path):
    model = pack_for_decoding(built(name), ROUNDINGS["int8"])
    interlace.save(model, tmp_path)
    tokens = torch.randint(61, (9,))
    with torch.no_grad():
        assert torch.equal(interlace.load(tmp_path)(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("inference", [True, False])
def test_a_tied_head_is_rounded_apart_from_its_embedding(tmp_path, inference):
    with torch.inference_mode(inference):
        model = pack_for_decoding(built("tiny-hybrid", tied_embeddings=True), ROUNDINGS["int8"])
        interlace.save(model, tmp_path)
    tokens = torch.randint(61, (9,))
    with torch.no_grad():
        again = interlace.load(tmp_path)
        assert torch.equal(again(tokens)[0], model(tokens)[0])
        assert relative(again.logits(torch.eye(24)), again.embedding.weight.T) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rounded_model_opens_in_another_dtype(tmp_path, dtype):
    model = pack_for_decoding(built("tiny-granite").bfloat16(), ROUNDINGS["int4"])
    interlace.save(model, tmp_path)
    again, tokens = interlace.load(tmp_path, dtype=dtype), torch.randint(61, (9,))
    assert again.dtype == dtype
    with torch.no_grad():
        want = model(tokens)[0].float()
        assert relative(again(tokens)[0].float(), want) < 0.05
        assert relative(again.float()(tokens)[0], want) < 0.05


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi", "tiny-granite"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_rounded_model_is_moved_whole(name, tied):
    model = pack_for_decoding(built(name, tied_embeddings=tied), ROUNDINGS["int4"])
    with torch.no_grad():
        want = model(torch.arange(9))[0]
        cast = model.to(torch.float64).to(torch.float32)(torch.arange(9))[0]
    assert relative(cast, want) < 1e-5
    model.to("meta")
    held = dict(model.rounded_weights())
    assert "head" in held
    assert {weight.device.type for weight in held.values()} == {"meta"}


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
def test_a_rounded_model_is_not_trained_and_not_packed_twice(name):
    model = pack_for_decoding(built(name), ROUNDINGS["int8"])
    assert pack_for_decoding(model).rounding == ROUNDINGS["int8"]
    with pytest.raises(ConfigError, match="weights: the model's have 8 bits already"):
        pack_for_decoding(model, ROUNDINGS["int4"])
    with pytest.raises(ConfigError, match="rounded to few bits"):
        model(torch.arange(5))[0].sum()


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_rounded_head_that_is_tied_follows_its_embedding_or_says_that_it_cannot(how):
    model = built("tiny-hybrid", tied_embeddings=True)
    weight = pack_for_decoding(model, Rounding(8)).embedding.weight
    with torch.no_grad():
        new = 0.2 * torch.randn_like(weight)
        weight.copy_(new) if how == "in place" else setattr(weight, "data", new)
        try:
            found = model.logits(torch.eye(model.config.width))
        except ConfigError as error:
            assert "rounded" in str(error)
        else:
            assert relative(found, weight.T) < 0.05


def test_rounded_weights_that_get_new_ones_are_not_forgotten():
    """Rounding gives the layers' own weights up: loading others is refused in words, not ignored."""
    model = pack_for_decoding(built("tiny-hybrid"), Rounding(8))
    layer = model.blocks[0].mixer.query
    layer.weight = torch.nn.Parameter(torch.randn(layer.out_features, layer.in_features))
    with torch.no_grad(), pytest.raises(ConfigError, match="rounded to few bits"):
        model(torch.arange(5))
    model = pack_for_decoding(built("tiny-kimi"), Rounding(8))
    experts = next(m for m in model.modules() if isinstance(m, MoE))
    experts.first = torch.nn.Parameter(torch.randn(5, 4, 24))
    with torch.no_grad(), pytest.raises(ConfigError, match="experts changed"):
        model(torch.arange(5))


# Folders


@pytest.fixture
def folder(tmp_path):
    interlace.save(pack_for_decoding(built("tiny-granite"), ROUNDINGS["int4"]), tmp_path / "few")
    return tmp_path / "few"


def test_damage_is_named(folder):
    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith(".minima"))
    wrong = [
        ({n: t for n, t in tensors.items() if n != name}, f"'{name}' is missing"),
        ({**tensors, name: tensors[name].float()}, f"'{name}' holds F32, but must hold BF16"),
        ({**tensors, name: tensors[name][..., :8].contiguous()}, f"'{name}' has shape"),
        ({**tensors, "more.words": torch.zeros(1)}, "'more.words' belongs to no layer"),
        ({**tensors, name: tensors[name] * float("nan")}, f"'{name}' holds NaN or infinity"),
    ]
    for given, message in wrong:
        save_file(given, path)
        with pytest.raises(CheckpointError, match=message):
            interlace.load(folder)
    save_file(tensors, path)
    for said in ({"layers": {"bits": 5, "group": 64}}, {"layers": {"bit": 4}}, {}, [], {"layers": None}, 4):
        (folder / "config.json").write_text(json.dumps({**config, "rounding": said}))
        with pytest.raises(CheckpointError, match="quantise again"):
            interlace.load(folder)
    del config["rounding"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="were rounded to few bits for decoding"):
        interlace.load(folder)


def test_the_verb_writes_a_folder_that_other_verbs_open(tmp_path, capsys):
    model = built("tiny-hybrid", vocabulary=300)
    model.tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 3, 290)
    interlace.save(model, tmp_path / "plain")
    (tmp_path / "text.txt").write_text("the lazy fox jumps over the quick brown dog " * 20)
    verb = ["quantise", str(tmp_path / "plain"), "--out", str(tmp_path / "few"), "--weights", "int4", "--group", "32"]
    assert run([*verb, "--weights-loss", str(tmp_path / "text.txt"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] < 0.5 * said["bytes_before"]
    assert said["bits_per_byte_lost"] == said["bits_per_byte_int4"] - said["bits_per_byte"]
    assert 0 < abs(said["bits_per_byte_lost"]) < 0.5
    assert interlace.load(tmp_path / "few").rounding == Rounding(4, 32)
    assert run(["generate", str(tmp_path / "few"), "the quick", "--max-tokens", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 5
    assert run(["inspect", str(tmp_path / "few")]) == 0
    plain, few, out = str(tmp_path / "plain"), str(tmp_path / "few"), str(tmp_path / "x")
    loss = ["--weights-loss", str(tmp_path / "text.txt")]
    for verb, message in [
        (["quantise", few, "--out", out], "have 4 bits already"),
        (["quantise", plain, "--out", few], "is not an empty folder"),
        (["quantise", plain, "--out", out, "--weights", "int3"], "weights: must be auto, int8 or int4, got 'int3'"),
        (["quantise", plain, "--out", out, "--group", "48"], "group: must be 64 or 32, got 48"),
        (["convert-checkpoint", few, out], "were rounded to few bits"),
        (["generate", few, "a", "--weights", "int8", *loss], "were rounded before"),
        (["generate", few, "a", "--weights", "int8"], "have 4 bits already"),
    ]:
        capsys.readouterr()
        assert run(verb) == 2, verb
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("weights", ["auto", "int4"])
@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
def test_inspect_predicts_what_the_engine_does_with_its_memory(name, weights, tmp_path, capsys):
    model = pack_for_decoding(built(name), ROUNDINGS.get(weights))
    with interlace.Engine(model, memory="40MB", rows=9) as engine:
        budget = engine.budget
    interlace.save(model, tmp_path / "model")
    verb = ["inspect", str(tmp_path / "model"), "--memory", "40MB", "--rows", "9", "--dtype", "float32"]
    assert run([*verb, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["memory"]
    tokens, fits = found.pop("sequences").popitem()
    assert found == dataclasses.asdict(budget)
    assert fits == min(budget.rows, budget.states // sequence_bytes(model, int(tokens)))
    assert run(verb) == 0
    assert "sequences at a time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("free", "rounding", "faster", "want"),
    [
        (1 << 40, None, "float32", torch.float32),
        (0, None, "float32", torch.float32),  # the system does not tell
        (1000, None, "float32", torch.bfloat16),
        (1 << 40, ROUNDINGS["int4"], "float32", torch.bfloat16),
        (1 << 40, None, "bfloat16", torch.bfloat16),
    ],
)
def test_weights_are_widened_where_that_is_faster_and_fits(free, rounding, faster, want, monkeypatch):
    monkeypatch.setattr(pack, "free_bytes", lambda: free)
    monkeypatch.setattr(pack, "choose_precision", lambda *_: faster)
    assert pack.widened(built("tiny-hybrid").bfloat16(), rounding).dtype == want
    assert pack.widened(built("tiny-hybrid")).dtype == torch.float32
