"""Adapters: their gradients, their merging, going on with a run of them, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import recipe_of, texts_in
from watching import scored

import interlace
from interlace.base.errors import CheckpointError, ConfigError
from interlace.base.schema import validate
from interlace.base.segments import Segments
from interlace.checkpoint.load import load_merged
from interlace.cli.main import run as command
from interlace.data.batches import Batch
from interlace.layers.low_rank import adapters, merge_adapters
from interlace.model.presets import PRESETS, preset
from interlace.train.loop import train
from interlace.train.objectives.next_token import NextToken
from interlace.train.recipe import LoraSettings, Recipe
from interlace.train.trained import adaptable, add_adapters

TINY = [name for name in PRESETS if name.startswith("tiny")]


def batch_of(config):
    tokens = torch.randint(config.vocabulary, (29,))
    return Batch(tokens, tokens.roll(-1), Segments.from_lengths([17, 1, 11]))


def adapted(name, **more):
    """A model with adapters on every layer that can have one, their B drawn."""
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name)).double()
    names = dict.fromkeys(own for *_, own in adaptable(model))
    layers = tuple(own for own in names if own != "head" or not model.config.tied_embeddings)
    add_adapters(model, LoraSettings(rank=3, alpha=4.0, layers=layers, **more))
    model.double()
    for _, adapter in adapters(model):
        torch.nn.init.normal_(adapter.B, std=0.02)
    return model


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_those_of_the_weights_in_the_subspace(name):
    """W + s B A: the gradient of B is s G A^T and that of A is s B^T G, where G is the gradient of the whole weight."""
    model = adapted(name)
    given, objective = batch_of(model.config), NextToken()
    objective(model, given).minimised.backward()
    found = {n: (a.A.grad.clone(), a.B.grad.clone(), a) for n, a in adapters(model)}
    merge_adapters(model)
    model.zero_grad()
    objective(model, given).minimised.backward()
    assert len(found) > 3
    for n, (d_A, d_B, a) in found.items():
        whole = model.get_parameter(n).grad
        scale = d_B.norm() + d_A.norm()
        assert (a.scale * whole @ a.A.mT - d_B).norm() < 1e-9 * scale, n
        assert (a.scale * a.B.mT @ whole - d_A).norm() < 1e-9 * scale, n


@pytest.mark.parametrize("name", TINY)
def test_merged_equals_unmerged(name):
    model = adapted(name).float().eval()
    given = batch_of(model.config)
    with torch.no_grad():
        plain = model(given.tokens, given.segments)[0]
        merge_adapters(model)
        merged = model(given.tokens, given.segments)[0]
    assert float((plain - merged).abs().max()) < 1e-6 * max(1.0, float(plain.abs().max()))
    assert not list(adapters(model))


def test_dropout_is_of_training_alone():
    model = adapted("tiny-hybrid", dropout=0.5)
    given = batch_of(model.config)
    outs = [model.train(t)(given.tokens, given.segments)[0] for t in (True, True, False, False)]
    assert not torch.equal(outs[0], outs[1])
    assert torch.equal(outs[2], outs[3])


class Stop(Exception):
    pass


def train_whole_and_stopped(plan, folder):
    """Train into `whole` at once, and into `run` with a stop before its end."""

    def stop(now):
        if now.label == "training" and now.done == 14:
            raise Stop

    train(plan, folder / "whole", scored)
    with contextlib.suppress(Stop):
        train(plan, folder / "run", scored, stop)
    train(plan, folder / "run", scored)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(a run of a small model, plain data of a recipe that adapts it)."""
    folder = tmp_path_factory.mktemp("lora")
    plan = recipe_of(texts_in(folder / "texts"))
    train(validate(Recipe, plan, ""), folder / "base", scored)
    lora = {"rank": 2, "dropout": 0.1, "layers": ["gated_delta", "attention.query", "mlp"]}
    data = {**plan["data"], "tokenizer": str(folder / "base/data/tokenizer.json")}
    settings = {**plan["train"], "start": str(folder / "base"), "lora": lora, "average": 0.9}
    return folder / "base", {**plan, "data": data, "train": settings}


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_a_run_that_was_stopped_ends_with_the_same_adapter(base, tmp_path, recompute):
    plan = {**base[1], "train": {**base[1]["train"], "recompute": recompute}}
    plan = validate(Recipe, plan, "")

    train_whole_and_stopped(plan, tmp_path)
    last = "checkpoints/step-20"
    names = sorted(p.relative_to(tmp_path / "whole" / last) for p in (tmp_path / "whole" / last).rglob("*"))
    assert {"adapter_config.json", "adapter_model.safetensors", "average"} <= {str(n) for n in names}
    for name in names:
        if not (tmp_path / "run" / last / name).is_dir():
            assert (tmp_path / "run" / last / name).read_bytes() == (tmp_path / "whole" / last / name).read_bytes()
    assert not any("lora" in n or "adapter" in n for n in load_file(base[0] / last / "model.safetensors"))
    tuned, plain = interlace.load(tmp_path / "run"), interlace.load(base[0])
    changed = {n for n, p in tuned.named_parameters() if not torch.equal(p, plain.get_parameter(n))}
    assert {n.split(".")[2] + "." + n.split(".")[3] for n in changed} == {
        *("mixer.query", "mixer.key", "mixer.value", "mixer.gate", "mixer.decay", "mixer.beta", "mixer.output"),
        *("mlp.gate", "mlp.up", "mlp.down"),
    }
    assert not any("blocks.1.mixer" in n and "query" not in n for n in changed)


def test_the_command_merges_what_a_run_trained(base, tmp_path, capsys):
    train(validate(Recipe, base[1], ""), tmp_path / "run", scored)
    assert command(["merge", str(base[0]), str(tmp_path / "run"), "--out", str(tmp_path / "merged"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "merged")
    tokens = torch.arange(40)
    assert torch.equal(interlace.load(tmp_path / "merged")(tokens)[0], interlace.load(tmp_path / "run")(tokens)[0])


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    train(validate(Recipe, base[1], ""), folder / "run", scored)
    return folder / "run/checkpoints/step-20"


def other_rank(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))


def changed_tensors(folder, change):
    found = load_file(folder / "adapter_model.safetensors")
    save_file(change(found), folder / "adapter_model.safetensors")


def without(folder, word):
    first = next(n for n in load_file(folder / "adapter_model.safetensors") if word in n)
    changed_tensors(folder, lambda found: {n: x for n, x in found.items() if n != first})


def without_a_layer(folder):
    changed_tensors(folder, lambda found: {n: x for n, x in found.items() if "layers.0.mlp.up_proj" not in n})


def of_another_width(folder):
    changed_tensors(folder, lambda found: {n: x[:, :-1].contiguous() if "lora_A" in n else x for n, x in found.items()})


def of_another_model(folder):
    changed_tensors(folder, lambda found: {n.replace("q_proj", "c_attn"): x for n, x in found.items()})


def with_dora(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (other_rank, "has the rank 2, but adapter_config.json says 3"),
        (lambda f: without(f, "lora_A"), r"lora_A.weight' is missing"),
        (lambda f: without(f, "lora_B"), r"lora_B.weight' is missing"),
        (without_a_layer, "tensors of 'model.layers.0.mlp.up_proj' are missing"),
        (of_another_width, r"has shape \[2, 31\], but the model's layer asks for \[2, 32\]"),
        (of_another_model, "belongs to no layer of this model"),
        (with_dora, "use_dora = True is not supported"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: missing"),
    ],
)
def test_a_damaged_adapter_is_named(base, adapter, tmp_path, damage, said):
    shutil.copytree(adapter, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=said):
        load_merged(base[0], tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused(base, adapter, tmp_path):
    other = interlace.load(base[0])
    with torch.no_grad():
        other.embedding.weight[0] += 1
    interlace.save(other, tmp_path / "other")
    with pytest.raises(CheckpointError, match="was trained beside another checkpoint"):
        load_merged(tmp_path / "other", adapter)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora": {"rank": 2, "layers": ["atention"]}}, r"lora.layers: there is no 'atention' .* mean 'attention'"),
        ({"lora": {"rank": 2, "layers": ["attention.quary"]}}, "did you mean 'attention.query'"),
        ({"lora": {"rank": 0}}, "train.lora.rank"),
        ({"start": ""}, "lora: adapts a checkpoint; set train.start"),
        ({"freeze": ["mlp"]}, "with lora all weights are frozen"),
        ({"optimizer": "muon"}, 'adapters are trained by "adamw"'),
    ],
)
def test_settings_that_cannot_be(base, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        train(validate(Recipe, {**base[1], "train": {**base[1]["train"], **change}}, ""), tmp_path / "run", scored)
    assert not (tmp_path / "run/run.toml").exists()


def test_the_load_of_experts_moves_no_weight_of_the_base(tmp_path, base):
    """A correction is moved by counts, and would not be in the adapter's checkpoint."""
    plan = {
        **base[1],
        "model": {**base[1]["model"], "moe": {"experts": 4, "chosen": 2, "width": 16, "correction": True}},
    }
    plan["model"]["gated_delta"] = {**plan["model"]["gated_delta"], "mlp": "moe"}
    torch.manual_seed(0)
    model = interlace.HybridLM(interlace.ModelConfig.from_dict(plan["model"]))
    model.tokenizer = interlace.load(base[0]).tokenizer
    interlace.save(model, tmp_path / "experts")
    start = {"start": str(tmp_path / "experts"), "lora": {"rank": 2, "layers": ["moe.first", "attention"]}}
    train(validate(Recipe, {**plan, "train": {**base[1]["train"], **start}}, ""), tmp_path / "run", scored)
    tuned = interlace.load(tmp_path / "run")
    assert torch.equal(tuned.get_parameter("blocks.0.mlp.correction"), model.get_parameter("blocks.0.mlp.correction"))
    assert not torch.equal(tuned.get_parameter("blocks.0.mlp.first"), model.get_parameter("blocks.0.mlp.first"))


def test_a_base_that_is_trained_on_stays_for_its_adapter(base, tmp_path):
    shutil.copytree(base[0], tmp_path / "base")
    settings = {**base[1]["train"], "start": str(tmp_path / "base")}
    data = {**base[1]["data"], "tokenizer": str(tmp_path / "base/data/tokenizer.json")}
    train(validate(Recipe, {**base[1], "data": data, "train": settings}, ""), tmp_path / "run", scored)
    tokens = torch.arange(30)
    before = interlace.load(tmp_path / "run")(tokens)[0]
    plan = {k: {**v} for k, v in base[1].items()}
    plan["data"]["tokenizer"] = "train:300"
    plan["train"] = {k: v for k, v in plan["train"].items() if k not in ("start", "lora", "average")} | {
        "tokens": 40 * 192
    }
    train(validate(Recipe, plan, ""), tmp_path / "base", scored, changes=["train.tokens"])
    assert torch.equal(interlace.load(tmp_path / "run")(tokens)[0], before)


def test_weights_that_cannot_be_narrowed_are_saved_all_alike(base, tmp_path):
    """A frozen embedding fits into bfloat16, what was trained does not: the masters are read again as they were."""
    model = interlace.load(base[0]).bfloat16()
    interlace.save(model, tmp_path / "half")
    settings = {k: v for k, v in base[1]["train"].items() if k != "lora"}
    settings |= {"start": str(tmp_path / "half"), "freeze": ["embedding"], "precision": "float32"}
    plan = validate(Recipe, {**base[1], "train": settings}, "")

    train_whole_and_stopped(plan, tmp_path)
    files = [tmp_path / name / "checkpoints/step-20/model.safetensors" for name in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert interlace.load(tmp_path / "run").dtype == torch.float32


def test_a_model_with_adapters_is_not_saved_without_them(tmp_path):
    with pytest.raises(CheckpointError, match="merge_adapters"):
        interlace.save(adapted("tiny-hybrid"), tmp_path / "out")


def other_start(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa"}))


def without_a_base(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere/base"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(other_start, "init_lora_weights = 'pissa' is not supported"), (without_a_base, "interlace merge CHECKPOINT")],
)
def test_an_adapter_that_cannot_be_loaded_says_why(adapter, tmp_path, damage, said):
    shutil.copytree(adapter, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=said):
        interlace.load(tmp_path / "adapter")
