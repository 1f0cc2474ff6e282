"""Configs: closed, round trips, and sizes solved for."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from interlace.base.errors import ConfigError
from interlace.model.config import ModelConfig
from interlace.model.presets import PRESETS, preset
from interlace.model.sizes import all_attention, match_parameters, sizes


@pytest.mark.parametrize("name", list(PRESETS))
def test_plain_data_round_trips(name):
    config = preset(name)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_a_pattern_repeats_over_the_depth():
    assert preset("tiny-sliding").kinds == ("sliding", "sliding", "attention", "sliding")


def test_unknown_preset():
    with pytest.raises(ConfigError, match="did you mean 'tiny-hybrid'"):
        preset("tiny-hybird")


@pytest.mark.parametrize("wanted", [20_000, 26_001, 100_000])
def test_parameters_are_solved_for(wanted):
    solved = match_parameters(preset("tiny-transformer"), wanted, 0.01)
    assert abs(sizes(solved).non_embedding / wanted - 1) <= 0.01


def test_what_cannot_be_matched_says_how_close_it_comes():
    with pytest.raises(ConfigError, match=r"mlp.width: no width.*off by \+"):
        match_parameters(preset("tiny-transformer"), 3000, 0.01)


def test_all_attention_is_all_attention():
    for name in PRESETS:
        dense = all_attention(preset(name))
        mixers = {type(dense.kind(i)).__name__ for i in range(dense.depth)}
        assert mixers <= {"AttentionConfig", "LatentAttentionConfig", "MLPConfig", "MoEConfig"}
        assert not any(sizes(dense).state_bytes.values())
        assert dense.depth == preset(name).depth


DOCS = Path(__file__).parents[2] / "docs"


def layers_page():
    spec = importlib.util.spec_from_file_location("make_layers", DOCS / "make_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_the_page_of_layers_is_current_and_explains_every_key():
    page = layers_page()
    assert (DOCS / "layers.md").read_text() == page, "python docs/make_layers.py > docs/layers.md"
    assert not re.findall(r"^\| `.*\|  \|$", page, re.MULTILINE)


def test_the_example_on_that_page_is_a_model():
    (toml,) = re.findall(r"```toml\n(.*?)```", layers_page(), re.DOTALL)
    config = ModelConfig.from_dict(tomllib.loads(toml)["model"])
    assert config.kinds == ("kimi_delta", "kimi_delta", "kimi_delta", "latent_attention") * 2


def test_all_that_is_missing_is_named_at_once():
    table = {**preset("tiny-mamba").to_dict(), "mamba": {"depth": 3}}
    with pytest.raises(
        ConfigError, match=r"^model: mamba.inner, mamba.step_rank: required, and not given \(and 1 more\)$"
    ):
        ModelConfig.from_dict(table)
