"""Plans on paper: memory and rates that add up, ways that divide, and an estimate that can be told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from interlace.base.errors import ConfigError
from interlace.cli.main import run
from interlace.model.sizes import sizes
from interlace.train.parallel.machines import KINDS, device_kind
from interlace.train.parallel.paper import plans
from interlace.train.parallel.plan import costs, laid_out, way
from interlace.train.recipe import ParallelSettings, read_recipe

OLMO = Path(__file__).parents[2] / "recipes/olmo-hybrid-7b.toml"


@pytest.fixture(scope="module")
def recipe():
    return dict(read_recipe(OLMO).stages(Path("x")))


def test_the_recipe_is_the_released_model(recipe):
    """7,430,870,688 parameters, as its authors count them (docs/published_models.json)."""
    for stage in recipe.values():
        assert sizes(stage.model, ()).total == 7_430_870_688
        assert stage.data.rows * stage.data.length == 4 << 20
    assert recipe["long"].model.layers["attention"].position == "none"


@pytest.mark.parametrize("devices", [8, 512])
def test_plans_of_a_7b_hybrid(recipe, devices):
    """Beside 8.2K tokens/s on each of 128 H100 that the paper reports: between a half and one and a half of it."""
    found = plans(recipe["pretrain"], devices, device_kind("h100"))
    best = found[0]
    assert best.fits
    assert math.prod(best.sizes.values()) == devices
    assert 4_100 < best.tokens_per_second < 12_300
    assert best.memory_bytes < KINDS["h100"].memory_bytes
    total = sizes(recipe["pretrain"].model, ()).total
    cut = best.sizes["shard"] * best.sizes["context"] * best.sizes["tensor"]
    assert best.part_bytes["weights, gradients and optimizer state"] == pytest.approx(16 * total / cut, rel=0.1)
    assert all(p.tokens_per_second <= best.tokens_per_second * 1.02 for p in found if p.fits)
    for plan in found:
        assert recipe["pretrain"].data.rows % (plan.sizes["replicate"] * plan.sizes["shard"] * plan.accumulate) == 0


def test_more_of_everything_costs_more(recipe):
    pretrain = recipe["pretrain"]
    slow = device_kind("h100").__class__(**{**vars(device_kind("h100")), "across_bytes_per_second": 5e9})
    fast = plans(pretrain, 8, device_kind("h100"))[0]
    assert plans(pretrain, 8, slow)[0].tokens_per_second <= fast.tokens_per_second
    of = {(tuple(p.sizes.values()), p.accumulate, p.recompute): p for p in plans(pretrain, 8, device_kind("h100"))}
    for (layout, parts, again), plan in of.items():
        if again:
            other = of[layout, parts, False]
            assert plan.part_bytes["activations"] < other.part_bytes["activations"]
            assert plan.compute_seconds > other.compute_seconds


def test_states_win_for_long_stretches_and_heads_for_short_ones(recipe):
    model = recipe["long"].model
    rates = (50e9, 4e14)
    assert way(model, 1 << 18, 2, rates) == "state"
    assert way(model, 16, 2, rates) == "heads"
    short, long = costs(model, 100, 2), costs(model, 100_000, 2)
    assert short["state"].received_bytes == long["state"].received_bytes
    assert long["heads"].received_bytes == 1000 * short["heads"].received_bytes
    assert not costs(model, 100, 4)["heads"].possible  # 30 heads


def test_a_dry_run_says_what_a_context_costs(capsys, tmp_path):
    recipe = OLMO.with_name("hybrid-small.toml")
    words = ["train", str(recipe), "--dry-run", "--out", str(tmp_path / "run"), "data.source=" + str(OLMO)]
    assert run([*words, "parallel.context=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context_seconds"].keys() == {"state", "heads"}
    assert run([*words, "parallel.context=4", "--json"]) == 0  # six heads
    assert json.loads(capsys.readouterr().out)["context_seconds"].keys() == {"state"}


def test_auto_takes_what_is_left():
    assert laid_out(ParallelSettings(shard="auto"), 8)["shard"] == 8
    assert laid_out(ParallelSettings(shard="auto", tensor=2), 8) == {
        "replicate": 1,
        "shard": 4,
        "context": 1,
        "tensor": 2,
    }
    assert laid_out(ParallelSettings(replicate="auto", shard=2), 8)["replicate"] == 4
    with pytest.raises(ConfigError, match="a multiple of 3 workers, but there are 8"):
        laid_out(ParallelSettings(shard="auto", tensor=3), 8)


@pytest.mark.slow
def test_a_dry_run_prints_the_plan(capsys, tmp_path):
    arguments = ["train", str(OLMO), "--dry-run", "--devices", "512", "--out", str(tmp_path / "run")]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("512 h100, stage pretrain, on paper", "tokens/s of each device", "sent by each device for a step"):
        assert words in shown
    assert run([*arguments, "--json", "--device-kind", "b200"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device_kind"] == "b200"
    assert document["plans"]["long"][0]["sizes"].keys() == {"replicate", "shard", "context", "tensor"}
    for wrong, words in (
        (["--device-kind", "h10"], "did you mean 'h100'"),
        (["--devices", "513"], "513 cannot be laid out"),
    ):
        more = [] if "--devices" in wrong else ["--devices", "8"]
        assert run([*arguments[:3], *wrong, *more]) == 2
        assert words in capsys.readouterr().err
    assert run(["train", str(OLMO), "--devices", "8"]) == 2
    assert "is for --dry-run" in capsys.readouterr().err
