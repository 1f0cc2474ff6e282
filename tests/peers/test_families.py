"""Every family against `transformers`: logits, cached steps, greedy text, ragged batches, gradients, saved folders."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
from configs import CONFIGS, VOCABULARY
from safetensors.torch import load_file

import interlace
from interlace.base.segments import Segments
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens

RELATIVE = 2e-5  # float32, different order of sums
every_config = pytest.mark.parametrize("name", list(CONFIGS))


def relative(found, want):
    return float((found - want).norm() / want.norm())


@every_config
def test_logits_and_cached_steps_are_equal(pair, name):
    """Prefill of an odd length, then tokens one by one with carried state on both sides: 100 once in each family."""
    theirs, ours, _ = pair
    end = 97 if " " in name else 177  # a variant of a family is named by a second word
    tokens = torch.randint(VOCABULARY, (2, end))
    with torch.no_grad():
        want = theirs(tokens[:, :77], use_cache=True)
        found, state = ours(tokens[:, :77])
        assert relative(found, want.logits) < RELATIVE
        taken = inspect.signature(theirs.forward).parameters
        kind = next(k for k in ("cache", "cache_params", "past_key_values") if k in taken)  # "cache" since 5.24
        for t in range(77, end):
            want = theirs(tokens[:, t : t + 1], **{kind: want[kind]}, use_cache=True)
            found, state = ours(tokens[:, t], Segments.equal(2, 1), state)
        assert relative(found, want.logits[:, 0]) < RELATIVE
        assert relative(ours(tokens)[0][:, -1], want.logits[:, 0]) < RELATIVE


@every_config
def test_greedy_text_is_equal(pair):
    theirs, ours, _ = pair
    prompt = torch.randint(VOCABULARY, (1, 13))
    want = theirs.generate(prompt, max_new_tokens=40, do_sample=False)[0, 13:].tolist()
    found = list(generate_tokens(ours, prompt[0].tolist(), max_tokens=40, sampling=Sampling(temperature=0)))
    assert found == want


@every_config
def test_a_ragged_batch_equals_their_single_runs(pair):
    theirs, ours, _ = pair
    parts = [torch.randint(VOCABULARY, (n,)) for n in (1, 70, 13)]
    with torch.no_grad():
        found = ours(torch.cat(parts), Segments.from_lengths([len(p) for p in parts]))[0]
        want = torch.cat([theirs(p[None]).logits[0] for p in parts])
    assert relative(found, want) < RELATIVE


@every_config
def test_gradients_are_equal(pair):
    """Of the loss, for every parameter: theirs, saved as if they were weights, are loaded under our names."""
    theirs, ours, folder = pair
    tokens = torch.randint(VOCABULARY, (2, 75))
    theirs(tokens, labels=tokens).loss.backward()
    logits, _ = ours(tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    slopes = copy.deepcopy(theirs)
    for p, q in zip(slopes.parameters(), theirs.parameters(), strict=True):
        p.data = torch.zeros_like(q) if q.grad is None else q.grad
    slopes.save_pretrained(folder / "slopes")
    want = dict(interlace.load(folder / "slopes").named_parameters())
    largest = max(float(p.norm()) for p in want.values())
    for name, p in ours.named_parameters():
        if not p.requires_grad:
            continue
        off = (p.grad - want[name]).norm()
        # Theirs solves a triangular system of a whole chunk in float32, and a gate's gradient is a difference of sums
        # that may be small beside what it is the difference of.
        assert off <= 3e-4 * want[name].norm() + 1e-6 * largest, name


@every_config
def test_what_we_save_they_open(pair):
    """Without our code, with the same logits, nothing missing or unexpected, and every tensor's bytes unchanged."""
    theirs, ours, folder = pair
    interlace.save(ours, folder / "ours")
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(VOCABULARY, (1, 66))
    with torch.no_grad():
        assert relative(opened(tokens).logits, theirs(tokens).logits) < RELATIVE
    assert type(opened) is type(theirs)
    for (name, p), q in zip(opened.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    theirs.to(torch.bfloat16).save_pretrained(folder / "narrow")
    interlace.save(interlace.load(folder / "narrow"), folder / "narrow again")
    stored, again = (load_file(folder / f / "model.safetensors") for f in ("narrow", "narrow again"))
    same = stored.keys() & again.keys()
    if (
        ours.source.model_type == "olmo_hybrid"
    ):  # theirs cuts the convolutions in thirds, whatever the projections' sizes
        same = {name for name in same if not name.endswith("_conv1d.weight")}
    for name in same:
        assert stored[name].dtype == again[name].dtype, name
        assert torch.equal(stored[name], again[name]), name
    assert sum(x.nbytes for x in stored.values()) == sum(x.nbytes for x in again.values())
