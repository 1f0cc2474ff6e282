"""Adapters in the format of `peft`: ours opened by it over `transformers`, and its own merged here."""

from __future__ import annotations

import copy

import pytest
import torch
from configs import CONFIGS, VOCABULARY

import interlace
from interlace.checkpoint.adapter import read_adapters, write_adapter
from interlace.checkpoint.load import load_merged
from interlace.checkpoint.save import family_of_model
from interlace.layers.low_rank import adapters, kept_parameters, merge_adapters
from interlace.train.recipe import LoraSettings
from interlace.train.trained import adaptable, add_adapters

RELATIVE = 2e-5  # float32, different order of sums
FAMILIES = [name for name in CONFIGS if " " not in name]
REFUSED = ("mamba2.output", "mamba.output", "mamba.step")  # by peft in models that are mamba alone, and nemotron_h


def relative(found, want):
    return float((found - want).norm() / want.norm())


def layers_of(name, model):
    """All layers that can be adapted, routers among them, but those that peft refuses in this family."""
    names = [own for *_, own in adaptable(model)]
    if name in ("mamba", "mamba2", "nemotron_h"):
        names = [own for own in names if own not in REFUSED]
    return tuple(own for own in dict.fromkeys(names) if own != "head" or not model.config.tied_embeddings)


def drawn(model):
    """Draw B, which starts at zero."""
    for _, adapter in adapters(model):
        torch.nn.init.normal_(adapter.B, std=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_opens_an_adapter_of_ours(pair, name):
    from peft import PeftModel

    theirs, ours, folder = pair
    tokens = torch.randint(VOCABULARY, (2, 33))
    add_adapters(ours, LoraSettings(rank=3, alpha=5.0, layers=layers_of(name, ours)))
    drawn(ours)
    ours.base = str(folder / "theirs")
    (folder / "adapter").mkdir()
    write_adapter(ours, family_of_model(ours), folder / "adapter", kept_parameters(ours))
    with torch.no_grad():
        plain, want = theirs(tokens).logits, ours(tokens)[0]
        assert relative(plain, want) > 0.01
        found = PeftModel.from_pretrained(theirs, folder / "adapter").eval()(tokens).logits
    assert relative(found, want) < RELATIVE
    assert relative(interlace.load(folder / "adapter")(tokens)[0], want) < RELATIVE

    read = {n: torch.full_like(p, torch.nan) for n, p in kept_parameters(ours).items()}
    read_adapters(ours, family_of_model(ours), folder / "adapter", read)
    assert all(torch.equal(read[n], p) for n, p in kept_parameters(ours).items())
    merge_adapters(ours)
    assert relative(ours(tokens)[0], want) < RELATIVE


@pytest.mark.parametrize("name", ["olmo_hybrid", "qwen3_next", "granitemoehybrid", "llama"])
def test_an_adapter_of_peft_is_merged(pair, name):
    from peft import LoraConfig, get_peft_model

    theirs, _, folder = pair
    tokens = torch.randint(VOCABULARY, (2, 33))
    some = {
        "olmo_hybrid": ["g_proj", "o_proj"],
        "qwen3_next": ["in_proj_qkvz", "q_proj"],
        "granitemoehybrid": ["in_proj"],
    }
    wanted = LoraConfig(r=4, lora_alpha=6, target_modules=some.get(name, ["q_proj", "down_proj"]), use_rslora=True)
    model = get_peft_model(copy.deepcopy(theirs), wanted)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.1)
    model.save_pretrained(folder / "adapter")
    with torch.no_grad():
        want = model.eval()(tokens).logits
        assert relative(theirs(tokens).logits, want) > 0.01
        assert relative(load_merged(folder / "theirs", folder / "adapter")(tokens)[0], want) < RELATIVE
