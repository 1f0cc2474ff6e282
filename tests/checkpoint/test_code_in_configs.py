"""Configs that name code, as released: nothing is run, and our own implementation goes on."""

from __future__ import annotations

import json

import pytest
import torch

import interlace
from interlace.base.errors import CheckpointError
from interlace.checkpoint.convert import convert
from interlace.checkpoint.folder import read_config
from interlace.cli.main import run
from interlace.model.model import HybridLM
from interlace.model.presets import preset

TOKENS = torch.arange(9)
EVIL = "raise SystemExit('was run')"


@pytest.fixture
def folder(tmp_path):
    interlace.save(HybridLM(preset("tiny-hybrid")), tmp_path / "model")
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (tmp_path / "model" / name).write_text(EVIL)
    return tmp_path / "model"


def configure(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **changes}))


NAMES_OF_CODE = [
    {"auto_map": {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Evil"}},
    {"auto_map": {"AutoTokenizer": ["tokenization_evil.Slow", None]}},
    {"auto_map": "modeling_evil.Evil"},
    {"trust_remote_code": True},
    {"custom_pipelines": {"text-generation": {"impl": "modeling_evil.Pipeline", "pt": ["AutoModelForCausalLM"]}}},
    {"text_config": {"auto_map": {"AutoModel": "modeling_evil.Evil"}}},
    {"_attn_implementation": "stranger/kernels"},
    {"_attn_implementation": "flash_attention_4"},
    {"attn_implementation": "paged|sdpa"},
    {"experts_implementation": "stranger/kernels"},
]


@pytest.mark.parametrize("keys", NAMES_OF_CODE, ids=str)
def test_a_config_that_names_code_is_opened_with_ours(folder, tmp_path, keys):
    want = interlace.load(folder)(TOKENS)[0]
    configure(folder, **keys)
    model = interlace.load(folder)
    assert torch.equal(model(TOKENS)[0], want)
    interlace.save(model, tmp_path / "saved")
    convert(folder, tmp_path / "converted")
    for result in ("saved", "converted"):
        assert not json.loads((tmp_path / result / "config.json").read_text()).keys() & keys.keys()
        assert not list((tmp_path / result).glob("*.py"))
        assert torch.equal(interlace.load(tmp_path / result)(TOKENS)[0], want)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_code_named_beside_the_config_is_not_run_either(folder, name):
    configure(folder, name, auto_map={"AutoTokenizer": ["tokenization_evil.Slow", None]}, custom_generate="evil/repo")
    interlace.load(folder)


@pytest.mark.parametrize(
    "keys",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "training_tokens": 15_000_000_000_000},
        {"num_parameters_seen": 1 << 40},
        {"rope_theta": 45_900_000_000},
    ],
    ids=str,
)
def test_large_numbers_that_size_nothing_do_not_stop_a_load(folder, keys):
    configure(folder, **keys)
    interlace.load(folder)


def test_inspect_opens_what_names_code(folder):
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert run(["inspect", str(folder), "--json"]) == 0


def test_an_unknown_family_that_brings_code_says_that_code_is_not_run(folder):
    configure(folder, model_type="zebra", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    with pytest.raises(CheckpointError) as caught:
        interlace.load(folder)
    for word in ("zebra", "not supported", "auto_map", "never run", "known"):
        assert word in str(caught.value)


# What the releases of Moonshot and NVIDIA say beside what a model is made from

KIMI = {
    "architectures": ["KimiLinearForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_kimi.KimiLinearConfig",
        "AutoModel": "modeling_kimi.KimiLinearModel",
        "AutoModelForCausalLM": "modeling_kimi.KimiLinearForCausalLM",
    },
}
NEMOTRON = {
    "architectures": ["NemotronHForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_nemotron_h.NemotronHConfig",
        "AutoModel": "modeling_nemotron_h.NemotronHForCausalLM",
        "AutoModelForCausalLM": "modeling_nemotron_h.NemotronHForCausalLM",
    },
}


@pytest.mark.parametrize("keys", [KIMI, NEMOTRON], ids=lambda k: k["architectures"][0])
def test_the_keys_of_the_releases_that_bring_code_are_read_over(tmp_path, keys):
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert read_config(tmp_path)["architectures"] == keys["architectures"]
