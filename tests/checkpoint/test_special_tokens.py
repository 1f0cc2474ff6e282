"""Where a release says what ends a text, begins it, pads it and how to draw: all of its files, not one of them."""

from __future__ import annotations

import json

import pytest
import torch

import interlace
from interlace.base.errors import InterlaceError
from interlace.cli.main import run
from interlace.data.tokenizer import Tokenizer
from interlace.generation.conversation import Conversation
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.model.model import HybridLM
from interlace.model.presets import preset

MARKS = ("<|im_start|>", "<|im_end|>", "<|pad|>", "<s>")
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["some words to learn from, and a few more words"], 300, MARKS)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A model whose config names no special token, with a tokenizer that names its end of text alone."""
    model = HybridLM(preset("tiny-transformer").replace(vocabulary=tokenizer.vocabulary))
    model.tokenizer = tokenizer
    interlace.save(model, tmp_path / "model")
    configure(tmp_path / "model", eos_token_id=None, bos_token_id=None, pad_token_id=None)
    configure(tmp_path / "model", "tokenizer_config.json", eos_token=None)
    return tmp_path / "model"


def configure(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **changes}))


def ends(folder):
    return set(interlace.load(folder).config.tokens.eos)


def test_the_ends_of_generation_config(folder):
    configure(folder, eos_token_id=7)
    configure(folder, "generation_config.json", eos_token_id=[8, 9])
    assert {7, 8, 9} <= ends(folder)


@pytest.mark.parametrize("given", [11, [11], [11, 12]], ids=str)
def test_one_end_or_several(folder, given):
    configure(folder, "generation_config.json", eos_token_id=given)
    assert set([given] if isinstance(given, int) else given) <= ends(folder)


@pytest.mark.parametrize(
    "named",
    ["<|im_end|>", {"content": "<|im_end|>", "lstrip": False, "special": True, "__type": "AddedToken"}],
    ids=["text", "table"],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_tokenizers_end(folder, tokenizer, name, named):
    configure(folder, eos_token_id=7)
    configure(folder, name, eos_token=named)
    assert {7, tokenizer.fast.token_to_id("<|im_end|>")} <= ends(folder)


@pytest.mark.parametrize("where", ["outer", "inner", "both"])
def test_ends_at_either_level_of_a_nested_config(tmp_path, where):
    interlace.save(HybridLM(small_qwen()), tmp_path)
    inner = json.loads((tmp_path / "config.json").read_text())
    assert inner["model_type"] == "qwen3_5_text"
    inner["eos_token_id"] = 5 if where != "outer" else None
    outer = {"model_type": "qwen3_5", "text_config": inner, **({"eos_token_id": [6]} if where != "inner" else {})}
    outer |= {"bos_token_id": 4, "pad_token_id": 3} if where == "outer" else {}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    tokens = interlace.load(tmp_path).config.tokens
    assert set(tokens.eos) == {"outer": {6}, "inner": {5}, "both": {5, 6}}[where]
    assert where != "outer" or (tokens.bos, tokens.pad) == (4, 3)


def small_qwen():
    return preset("tiny-transformer").from_dict(
        {
            "width": 16,
            "depth": 2,
            "vocabulary": 31,
            "zero_centred_norms": True,
            "pattern": ["gated_delta", "attention"],
            "gated_delta": {"heads": 2, "key_dim": 4, "value_dim": 4, "negative_eigenvalues": False, "norm_eps": 1e-6},
            "attention": {"heads": 2, "head_dim": 8, "gate": True, "qk_norm": "head"},
            "mlp": {"width": 24},
        },
        where="model",
    )


def test_bos_and_pad_are_taken_from_where_they_are(folder, tokenizer):
    configure(folder, "generation_config.json", bos_token_id=13)
    configure(folder, "tokenizer_config.json", pad_token="<|pad|>")
    tokens = interlace.load(folder).config.tokens
    assert (tokens.bos, tokens.pad) == (13, tokenizer.fast.token_to_id("<|pad|>"))
    configure(folder, bos_token_id=12, pad_token_id=14)  # config.json's own word comes first
    tokens = interlace.load(folder).config.tokens
    assert (tokens.bos, tokens.pad) == (12, 14)


def test_generation_ends_where_the_model_does(folder, tokenizer):
    """40 tokens were made where the stop is at 8."""
    prompt = tokenizer.encode("some words")
    made = list(generate_tokens(interlace.load(folder), prompt, max_tokens=40, sampling=GREEDY))
    stop = next(i for i in range(3, 40) if made[i] not in made[:i])
    configure(folder, "generation_config.json", eos_token_id=[tokenizer.vocabulary - 1, made[stop]])
    again = list(generate_tokens(interlace.load(folder), prompt, max_tokens=40, sampling=GREEDY))
    assert again == made[:stop]


def test_a_conversation_ends_there_too(folder):
    talk = Conversation(_with(folder, eos_token_id=[8, 9]), GREEDY, 4)
    try:
        assert {8, 9} <= set(talk.ends)
    finally:
        talk.close()


def _with(folder, **changes):
    configure(folder, "generation_config.json", **changes)
    return interlace.load(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("given", ["<|im_end|>", [1, "x"], 1.5, True, {"id": 2}], ids=str)
def test_an_end_that_is_no_id_is_refused_in_words(folder, name, given):
    configure(folder, name, eos_token_id=given)
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder)
    assert "eos_token_id" in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1]", "null", "\xff"], ids=repr)
def test_a_damaged_generation_config_is_refused_in_words(folder, content):
    (folder / "generation_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InterlaceError, match=r"generation_config\.json"):
        interlace.load(folder)


@pytest.mark.parametrize("none", [-1, None, []], ids=str)
def test_no_id_is_no_end(folder, none):
    """Old releases write -1 for none."""
    configure(folder, eos_token_id=none, pad_token_id=-1)
    configure(folder, "generation_config.json", eos_token_id=none, pad_token_id=-1)
    tokens = interlace.load(folder).config.tokens
    assert all(i >= 0 for i in tokens.eos)
    assert tokens.pad is None or tokens.pad >= 0


# Sampling: what the release recommends, unless the caller says otherwise


def text(folder, **settings):
    return "".join(interlace.generate(interlace.load(folder), "some", max_tokens=12, **settings))


def test_the_recommended_sampling_is_used(folder):
    greedy = text(folder, temperature=0)
    assert len({text(folder, seed=seed) for seed in range(3)}) > 1
    configure(folder, "generation_config.json", do_sample=True, temperature=0.6, top_k=1, top_p=0.95)
    assert {text(folder, seed=seed) for seed in range(3)} == {greedy}


def test_what_the_caller_says_comes_first(folder):
    configure(folder, "generation_config.json", do_sample=True, temperature=0.6, top_k=1)
    assert len({text(folder, seed=seed, top_k=300, temperature=1.5) for seed in range(3)}) > 1


def test_the_verb_says_what_it_took_from_the_release(folder, capsys):
    configure(folder, "generation_config.json", do_sample=True, temperature=0.6, top_k=3, top_p=0.95)
    assert run(["generate", str(folder), "some", "--max-tokens", "4", "--seed", "1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    for word in ("generation_config.json", "temperature", "0.6", "top_k", "3", "top_p", "0.95"):
        assert word in said
    assert run(["generate", str(folder), "some", "--max-tokens", "4", "--temperature", "1.0"]) == 0
    assert "0.6" not in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"temperature": -1.0}, {"top_p": 2.0}, {"top_k": "many"}], ids=str)
def test_a_recommendation_out_of_range_is_refused_in_words(folder, given):
    configure(folder, "generation_config.json", do_sample=True, **given)
    with pytest.raises(InterlaceError, match=next(iter(given))):
        text(folder, seed=1)


def test_zero_top_k_means_all(folder):
    """transformers switches top_k off with 0."""
    configure(folder, "generation_config.json", do_sample=True, top_k=0)
    assert text(folder, seed=1)


def test_ids_beyond_the_vocabulary_end_nothing_and_stop_nothing(folder, tokenizer):
    """Only ids that can be drawn matter; a release may name one that its smaller copy does not have."""
    configure(folder, "generation_config.json", eos_token_id=[tokenizer.vocabulary + 5])
    assert torch.is_tensor(interlace.load(folder)(torch.arange(3))[0])
