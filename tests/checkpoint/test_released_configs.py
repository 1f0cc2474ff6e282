"""Configs as they are released: each is read and run with small sizes, or refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from small import shrunk
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

import interlace
from interlace.base.errors import CheckpointError
from interlace.checkpoint.load import describe
from interlace.checkpoint.special import generation_config
from interlace.data.chat import ChatTemplate, read_template
from interlace.generation.text import recommended
from interlace.model.model import HybridLM, Source

RELEASES = Path(__file__).with_name("releases")
ROW = re.compile(r"^\| (\S+/\S+) \| .* \| (.*) \|$", re.MULTILINE)
SOURCES = dict(
    ROW.findall((RELEASES / "SOURCES.md").read_text())
)  # path to its state: a hash that is stated, or a word
OTHER = {  # families that are not ours
    "AI21-Jamba-1.5-Mini": "jamba",
    "Falcon-H1-0.5B-Base": "falcon_h1",
    "LFM2.5-1.2B-Distilled": "lfm2",
    "Ring-mini-linear-2.0-4bit": "bailing_moe_linear",
    "Zamba2-7B": "zamba2",
    "falcon-mamba-7b": "falcon_mamba",
}
QUANTISED = {"NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": "NVFP4", "NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": "modelopt"}
QWEN3, QWEN3_CHAT = {151643}, {151643, 151645}  # <|endoftext|>, <|im_end|>
ENDS = {  # ids that end a text, from all files of the release
    "Kimi-Linear-48B-A3B-Instruct": {163586},
    "Llama-3.1-8B": {128001},
    "Llama-3.2-1B": {128001},
    "Mamba-Codestral-7B-v0.1": {0},
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": {2},
    "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": {2},
    "Nemotron-H-56B-Base-8K": {2},
    "Nemotron-H-8B-Base-8K": {2},
    "OLMo-2-0425-1B-Instruct": {100257},
    "OLMo-2-1124-7B": {100257},
    "OLMo-2-1124-7B-Instruct": {100257},
    "Olmo-3.1-32B-Instruct": {100257},
    "Qwen3-0.6B": QWEN3_CHAT,  # in config.json the second alone
    "Qwen3-1.7B": QWEN3_CHAT,
    "Qwen3-14B": {151645},
    "Qwen3-32B": QWEN3_CHAT,
    "Qwen3-4B": QWEN3_CHAT,
    "Qwen3-4B-Base": QWEN3,
    "Qwen3-4B-Instruct-2507": QWEN3_CHAT,
    "Qwen3-8B": QWEN3_CHAT,
    "Qwen3-Next-80B-A3B-Instruct": {151645},
    "Qwen3.5-0.8B": {248044},  # inside text_config
    "Qwen3.5-27B": {248044, 248046},  # the second is in generation_config.json alone
    "Qwen3.5-2B": {248044},
    "Qwen3.5-35B-A3B": {248044},
    "Qwen3.5-397B-A17B": {248044},
    "Qwen3.5-4B": {248044},
    "Qwen3.5-9B": {248044},
    "SmolLM2-135M": {0},
    "SmolLM2-135M-Instruct": {2},
    "granite-4.0-350m-base": {100257},
    "granite-4.0-h-small": {100257},
    "granite-4.0-h-tiny": {100257},
    "mamba-1.4b-hf": {0},
    "mamba-130m-hf": {0},
    "mamba-2.8b-hf": {0},
}
GENERATION_ALONE = {
    "Llama-3.1-8B-Instruct": {128001, 128008, 128009},
    "Llama-3.1-8B-Instruct-unsloth": {128001, 128008, 128009},
}
IM = (
    "<|im_end|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n",
)
OLMO = ("<|endoftext|>", "<|user|>\nHi\n<|assistant|>\nHello.<|endoftext|>\n<|user|>\nBye\n", "<|assistant|>\n")
OPENED = "<|im_start|>assistant\n"
TEMPLATES = {  # the end of a turn, TURNS as written, how an answer is asked for
    "OLMo-2-0425-1B-Instruct": OLMO,
    "OLMo-2-1124-7B-Instruct": OLMO,
    "Olmo-3-7B-Think": (*IM, f"{OPENED}<think>"),
    "Qwen3-0.6B": (*IM, OPENED),
    "Qwen3-1.7B": (*IM, OPENED),
    "Qwen3-4B-Instruct-2507": (*IM, OPENED),
    "Qwen3-8B": (*IM, OPENED),
    "Qwen3.5-0.8B": (*IM, f"{OPENED}<think>\n\n</think>\n\n"),
    "Qwen3.5-2B": (*IM, f"{OPENED}<think>\n\n</think>\n\n"),
    "Qwen3.5-4B": (*IM, f"{OPENED}<think>\n"),
    "Qwen3.5-9B": (*IM, f"{OPENED}<think>\n"),
    "SmolLM2-135M-Instruct": (*IM, OPENED),
    "granite-4.0-h-small": (
        "<|end_of_text|>",
        "".join(
            f"<|start_of_role|>{role}<|end_of_role|>{said}<|end_of_text|>\n"
            for role, said in (("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"))
        ),
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
}
TOKENIZERS = [
    "OLMo-2-0425-1B-Instruct",
    "Qwen3-0.6B",
    "Qwen3-4B-Instruct-2507",
    "SmolLM2-135M-Instruct",
    "mamba-130m-hf",
]
BYTES = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PARAMETERS = {  # counts that were published for the text model: docs/published_models.json
    "Kimi-Linear-48B-A3B-Instruct": 49_122_681_728,
    "Llama-3.1-8B": 8_030_261_248,
    "Mamba-Codestral-7B-v0.1": 7_285_403_648,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "Qwen3.5-0.8B": 752_393_024,
    "mamba-2.8b-hf": 2_768_345_600,
}


def template_of(folder):
    """The chat template of a release: a file of its own, or a text in the tokenizer's config."""
    path = folder / "chat_template.jinja"
    return (
        read_template(str(path))
        if path.exists()
        else json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    )


@pytest.fixture
def small(tmp_path):
    """The files of a release with small sizes, and small random weights beside them."""

    def make(name, **changed):
        folder = tmp_path / name
        shutil.copytree(RELEASES / name, folder)
        config = shrunk(json.loads((folder / "config.json").read_text()))
        (folder / "config.json").write_text(json.dumps(config | changed))
        torch.manual_seed(0)
        family, read, _ = describe(folder)
        model = HybridLM(read).eval()
        model.source = Source(family.model_type, {}, {}, {})
        interlace.save(model, tmp_path / "weights")
        shutil.copy(tmp_path / "weights/model.safetensors", folder)
        return folder, model

    return make


def test_every_folder_is_tested_and_says_where_it_is_from():
    names = {p.name for p in RELEASES.iterdir() if p.is_dir()}
    assert names == OTHER.keys() | QUANTISED.keys() | ENDS.keys() | GENERATION_ALONE.keys() | TEMPLATES.keys()
    assert SOURCES.keys() == {str(p.relative_to(RELEASES)) for p in RELEASES.glob("*/*")}


@pytest.mark.parametrize("path", [path for path, state in SOURCES.items() if state.split()[0] in ("git", "sha256")])
def test_a_file_is_byte_for_byte_the_release_s(path):
    kind, stated = SOURCES[path].split()
    held = (RELEASES / path).read_bytes()
    if kind == "git":
        assert hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest() == stated
    else:
        assert hashlib.sha256(held).hexdigest()[: len(stated)] == stated


@pytest.mark.parametrize("name", ENDS)
def test_a_released_config_is_read_and_ends_where_all_its_files_say(name):
    _, config, _ = describe(RELEASES / name)
    assert set(config.tokens.eos) == ENDS[name]
    if name in PARAMETERS:
        assert interlace.sizes(config, contexts=()).total == PARAMETERS[name]


@pytest.mark.parametrize("name", GENERATION_ALONE)
def test_a_generation_config_is_read(name):
    table = generation_config(RELEASES / name)
    assert set(table["eos_token_id"]) == GENERATION_ALONE[name]
    assert (table["temperature"], table["top_p"]) == (0.6, 0.9)


@pytest.mark.parametrize("name", ENDS)
def test_a_small_model_of_a_released_config_runs(small, tmp_path, name):
    folder, model = small(name)
    loaded = interlace.load(folder)
    tokens = torch.arange(12) * 5 % 64
    want = model(tokens)[0]
    assert torch.equal(loaded(tokens)[0], want)
    assert torch.isfinite(want).all()
    first, state = loaded(tokens[:7])
    rest, _ = loaded(tokens[7:], state=state)
    torch.testing.assert_close(torch.cat([first, rest]), want, rtol=1e-4, atol=1e-5)  # float32, other chunks
    interlace.save(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] is not None
    assert torch.equal(interlace.load(tmp_path / "again")(tokens)[0], want)


def test_the_sampling_of_a_release_is_taken(small):
    folder, _ = small("Qwen3-4B")
    sampling, taken = recommended(interlace.load(folder), temperature=None, top_k=None, top_p=None)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.95)
    assert taken == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}


@pytest.mark.parametrize("name", OTHER)
def test_a_family_that_is_not_ours_is_named_in_one_sentence(name):
    with pytest.raises(CheckpointError) as caught:
        describe(RELEASES / name)
    said = str(caught.value)
    assert f"model_type '{OTHER[name]}' is not supported" in said
    assert "did you mean" not in said  # another family is no misspelling of it
    assert "known: granitemoehybrid, " in said
    assert ("auto_map names is never run" in said) == ("auto_map" in (RELEASES / name / "config.json").read_text())
    assert "\n" not in said


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_release_is_refused_in_one_sentence(tmp_path, name):
    shutil.copytree(RELEASES / name, tmp_path / "model")
    weights = {"backbone.layers.0.mixer.in_proj.weight": torch.zeros(4, 4, dtype=torch.uint8)}
    weights |= {"backbone.layers.0.mixer.in_proj.weight_scale_2": torch.zeros(())}
    save_file(weights, tmp_path / "model/model.safetensors")
    with pytest.raises(CheckpointError, match="the weights are quantised") as caught:
        interlace.load(tmp_path / "model")
    assert QUANTISED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
    {"role": "user", "content": "Bye"},
]
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_released_template_is_rendered(name):
    end, before, prompt = TEMPLATES[name]
    text = template_of(RELEASES / name)
    chat = ChatTemplate(text, eos=end)
    try:
        assert chat.render(TURNS, ask=True).endswith(before + prompt)
        assert ("look_up" in chat.render(TURNS, True, tools=TOOLS)) == ("tools" in text)
        assert chat.end_of_turn().strip() == end
    finally:
        chat.close()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_files_of_a_release_are_opened_and_saved_back(small, tmp_path, name):
    """The release's tokenizer_config.json beside a tokenizer of as many ids, whose words are made up."""
    stated = json.loads((RELEASES / name / "tokenizer_config.json").read_text())
    config = json.loads((RELEASES / name / "config.json").read_text())
    folder, _ = small(name, vocab_size=config["vocab_size"])
    special = {int(i): token for i, token in stated["added_tokens_decoder"].items()}
    free = (i for i in range(config["vocab_size"]) if i not in special)
    words = {letter: next(free) for letter in sorted(pre_tokenizers.ByteLevel.alphabet())}
    words |= {token["content"]: i for i, token in special.items()}
    added = [{"id": i, **token} for i, token in special.items()]
    fast = json.loads(Fast(models.BPE(vocab=words, merges=[])).to_str())
    fast |= {
        "added_tokens": added,
        "decoder": {"type": "ByteLevel", **BYTES},
        "pre_tokenizer": {"type": "ByteLevel", **BYTES},
    }
    (folder / "tokenizer.json").write_text(json.dumps(fast))
    loaded = interlace.load(folder)
    ids = {token["content"]: i for i, token in special.items()}
    assert ids[stated["eos_token"]] in loaded.config.tokens.eos
    assert loaded.config.tokens.pad == ids[stated["pad_token"]]
    assert loaded.tokenizer.eos == ids[stated["eos_token"]]
    assert loaded.tokenizer.chat_template == stated.get("chat_template")
    text = f"a{stated['eos_token']}b"
    assert loaded.tokenizer.encode(text) == [words["a"], ids[stated["eos_token"]], words["b"]]
    interlace.save(loaded, tmp_path / "saved")
    for path in (RELEASES / name).iterdir():
        if path.name != "config.json":
            assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (theirs.pad_token, theirs.model_max_length) == (stated["pad_token"], stated["model_max_length"])
    assert theirs(text)["input_ids"] == loaded.tokenizer.encode(text)
