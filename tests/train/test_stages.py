"""Stages: one recipe, a run folder for each, and what may change between them."""

from __future__ import annotations

import json

import pytest
import tomli_w
import torch

import interlace
from interlace.base.errors import ConfigError
from interlace.base.schema import validate
from interlace.cli.main import run
from interlace.train.recipe import Recipe, read_recipe


@pytest.fixture
def staged(recipe):
    recipe["model"] |= {"max_positions": 48}
    recipe["model"]["attention"] = {"heads": 2, "norm": "output", "position": "rope"}
    recipe["train"] |= {"tokens": 6 * 192, "evaluations": 1, "checkpoints": 2, "decay": 0.0}
    rope = {"scaling": "yarn", "factor": 2.0, "original_context": 48}
    recipe["stage"] = [
        {"name": "first"},
        {"name": "frozen", "train": {"tokens": 4 * 192, "freeze": ["gated_delta", "embedding"], "decay": 1.0}},
        {
            "name": "long",
            "model": {"max_positions": 96, "attention": {"rope": rope}},
            "data": {"length": 96, "rows": 2},
            "train": {"tokens": 2 * 192},
        },
    ]
    return recipe


def written(plan, path):
    path.write_text(tomli_w.dumps(plan))
    return path


def test_stages_follow_one_another(staged, tmp_path, capsys):
    file, out = written(staged, tmp_path / "plan.toml"), tmp_path / "run"
    assert run(["train", str(file), "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["run"] == str(out / "long")
    models = {name: interlace.load(out / name) for name in ("first", "frozen", "long")}
    assert models["long"].config.max_positions == 96
    assert models["long"].config.layers["attention"].rope.scaling == "yarn"
    one, two, three = (dict(m.named_parameters()) for m in models.values())
    for name, p in one.items():
        still = name.startswith("embedding") or (
            ".mixer." in name and models["first"].config.kinds[int(name.split(".")[1])] == "gated_delta"
        )
        assert torch.equal(p, two[name]) == still, name
        assert not torch.equal(p, three[name])
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert run(["train", str(file), "--out", str(out)]) == 0  # nothing is done again
    assert before == {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    assert models["first"].tokenizer.hash() == models["long"].tokenizer.hash()


def test_a_stage_that_was_interrupted_is_gone_on_with(staged, tmp_path, monkeypatch):
    from interlace.train.trainer import Trainer

    file = written(staged, tmp_path / "plan.toml")
    assert run(["train", str(file), "--out", str(tmp_path / "whole")]) == 0
    step, calls = Trainer.step, []

    def stops(self, *parts):
        calls.append(1)
        if len(calls) == 9:  # in the second stage, after its first checkpoint
            raise KeyboardInterrupt
        return step(self, *parts)

    monkeypatch.setattr(Trainer, "step", stops)
    assert run(["train", str(file), "--out", str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run/long").exists()
    assert run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    assert len(calls) == 9 + 12 - 8
    files = [tmp_path / f"{name}/long/checkpoints/step-2/model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_fault_of_a_later_stage_is_found_before_the_first_begins(staged, tmp_path, capsys):
    file = written(staged, tmp_path / "plan.toml")
    for words, said in (
        (["stage.long.data.source=nowhere"], "nowhere: no such file"),
        (["stage.long.data.length=97"], "data.length: 97 is past the model's max_positions"),
        (["stage.frozen.train.accumulate=3"], "data.rows = 4 cannot be computed in 3 equal parts"),
        (["stage.long.train.horizons=[0.001]"], "fall on the steps [0]"),
    ):
        for more in ([], ["--dry-run"]):
            assert run(["train", str(file), "--out", str(tmp_path / "run"), *words, *more]) == 2
            assert said in capsys.readouterr().err
            assert not (tmp_path / "run").exists()


def test_a_stage_that_another_began_from_is_not_changed(staged, texts, tmp_path, capsys):
    file, out = written(staged, tmp_path / "plan.toml"), tmp_path / "run"
    assert run(["train", str(file), "--out", str(out)]) == 0
    words = ["stage.first.train.tokens=1920", "--allow-changes", "train.tokens"]
    capsys.readouterr()
    assert run(["train", str(file), "--out", str(out), *words]) == 2
    assert "cannot be changed, as stage frozen began from it" in capsys.readouterr().err
    assert run(["replay", str(out), "--step", "1"]) == 2
    assert "holds several runs; name one of them" in capsys.readouterr().err
    assert run(["train", str(file), "--out", str(out / "first")]) == 2
    assert "is the run of one recipe" in capsys.readouterr().err


def test_a_prepared_folder_gives_later_stages_its_tokenizer(staged, texts, tmp_path):
    assert run(["data", "prepare", str(texts), "--tokenizer", "train:300", "--out", str(tmp_path / "data")]) == 0
    staged["data"] = {"source": str(tmp_path / "data"), "length": 48, "rows": 4}
    staged["stage"] = [staged["stage"][0], {"name": "second", "data": {"source": str(texts)}, "train": {"tokens": 192}}]
    file = written(staged, tmp_path / "plan.toml")
    assert run(["train", str(file), "--out", str(tmp_path / "run")]) == 0


def test_a_start_may_be_changed_where_attention_stands(staged, tmp_path):
    staged.pop("stage")
    file = written(staged, tmp_path / "plan.toml")
    assert run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    more = {"data": {"source": staged["data"]["source"], "length": 96, "rows": 2}, "train": dict(staged["train"])}
    more["train"]["start"] = str(tmp_path / "run")
    more["model"] = {"max_positions": 96, "attention": {"rope": {"theta": 1e6}}}
    assert run(["train", str(written(more, tmp_path / "more.toml")), "--out", str(tmp_path / "more")]) == 0
    assert interlace.load(tmp_path / "more").config.layers["attention"].rope.theta == 1e6


def test_a_dry_run_shows_every_stage(staged, tmp_path, capsys):
    file = written(staged, tmp_path / "plan.toml")
    assert run(["train", str(file), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for name in ("first", "frozen", "long"):
        assert f"stage {name}: nothing was started" in shown
    assert run(["train", str(file), "--dry-run", "--json", "--out", str(tmp_path / "run")]) == 0
    assert list(json.loads(capsys.readouterr().out)["stages"]) == ["first", "frozen", "long"]
    assert not (tmp_path / "run").exists()


def test_a_layout_of_a_stage_is_checked_before_the_first_begins(staged, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = written(staged, tmp_path / "plan.toml")
    for words, said in (
        (["parallel.shard=2", "stage.long.parallel.shard=1"], "stage.long: parallel: replicate = 1 x shard = 1"),
        (
            ["parallel.tensor=2", "stage.long.data.rows=1", "stage.long.parallel={tensor=1, shard=2}"],
            "data.rows: 1 cannot",
        ),
    ):
        assert run(["train", str(file), "--out", str(tmp_path / "run"), *words]) == 2
        assert said in capsys.readouterr().err


def test_stages_are_changed_by_their_names(staged, tmp_path):
    file = written(staged, tmp_path / "plan.toml")
    plan = read_recipe(file, ["stage.long.train.tokens=960", "train.seed=3"])
    recipes = dict(plan.stages(tmp_path))
    assert recipes["long"].train.tokens == 960
    assert {r.train.seed for r in recipes.values()} == {3}
    with pytest.raises(ConfigError, match="no table is called 'longer'; did you mean 'long'"):
        read_recipe(file, ["stage.longer.train.tokens=960"])


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"name": "long", "model": {"width": 64}}, r"stage\.long\.model: changes width"),
        ({"name": "long", "model": {"attention": {"heads": 4}}}, r"stage\.long\.model: changes attention\.heads"),
        ({"name": "long", "train": {"token": 5}}, r"stage\.long: train\.token: unknown key; did you mean 'tokens'"),
        ({"name": "first"}, "two stages are called 'first'"),
        ({"name": "a/b"}, "string should match pattern"),
        ({"name": "long", "train": {"freeze": "mamba"}}, "there is no 'mamba' in the model"),
        (
            {"name": "long", "train": {"freeze": ["embedding", "head", "norms", "attention", "gated_delta", "mlp"]}},
            "leaves nothing to train",
        ),
        ({"name": "long", "data": {"length": 0}}, r"stage\.long: data\.length"),
        (
            {"name": "long", "parallel": {"shards": 2}},
            r"stage\.long: parallel\.shards: unknown key; did you mean 'shard'",
        ),
    ],
)
def test_bad_stages_are_named(staged, tmp_path, stage, words):
    staged["stage"][2] = stage
    with pytest.raises(ConfigError, match=words):
        validate(Recipe, staged, "").stages(tmp_path)
