"""What lies beside the weights comes in, is kept, and is written again, by load, save and convert alike."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import interlace
from interlace.checkpoint.convert import convert
from interlace.cli.main import run
from interlace.data.tokenizer import Tokenizer
from interlace.model.model import HybridLM
from interlace.model.presets import preset

TOKENS = torch.arange(9)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
GENERATION = json.dumps({"do_sample": True, "eos_token_id": [0, 2], "temperature": 0.6, "top_p": 0.95}, indent=3)
BESIDE = {
    "generation_config.json": GENERATION,
    "special_tokens_map.json": '{"pad_token": {"content": "<|pad|>", "lstrip": false}, "eos_token": "<|im_end|>"}\n',
    "added_tokens.json": '{"<|pad|>": 2}\n',
    "chat_template.jinja": TEMPLATE,
    "vocab.json": "{}\n",
    "merges.txt": "#version: 0.2\n",
    "tokenizer.model": "not ours to read",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|pad|>",
    "padding_side": "left",
    "model_max_length": 4096,
    "additional_special_tokens": ["<|im_start|>"],
    "clean_up_tokenization_spaces": False,
}
LEFT = ("modeling_x.py", "README.md", "training.json", "optimizer.safetensors", "consolidated.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A release: all that may lie beside the weights, and what is no part of it."""
    home = tmp_path / "release"
    tokenizer = Tokenizer.train(["some words to learn from"], 300, ("<|im_end|>", "<|pad|>", "<|im_start|>"))
    model = HybridLM(preset("tiny-hybrid").replace(vocabulary=tokenizer.vocabulary))
    model.tokenizer = tokenizer
    interlace.save(model, home)
    raw = json.loads((home / "tokenizer.json").read_text())
    (home / "tokenizer.json").write_text(json.dumps(raw))  # other spaces than the library's
    (home / "tokenizer_config.json").write_text(json.dumps(SETTINGS, indent=4))
    (home / "additional_chat_templates").mkdir()
    for name, content in BESIDE.items():
        (home / name).write_text(content)
    for name in LEFT:
        (home / name).write_text("no part of a checkpoint")
    return home


def saved(folder, out):
    interlace.save(interlace.load(folder), out)


both = pytest.mark.parametrize("write", [saved, convert], ids=["save", "convert"])


@both
@pytest.mark.parametrize("name", [*BESIDE, "tokenizer.json", "tokenizer_config.json"])
def test_a_file_beside_the_weights_is_written_as_it_was(folder, tmp_path, write, name):
    write(folder, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@both
def test_what_is_no_part_of_a_checkpoint_is_left(folder, tmp_path, write):
    write(folder, tmp_path / "out")
    assert not {p.name for p in (tmp_path / "out").iterdir()} & set(LEFT)


def test_save_and_convert_write_the_same_files(folder, tmp_path):
    saved(folder, tmp_path / "a")
    convert(folder, tmp_path / "b")
    names = [{str(p.relative_to(x)) for p in x.rglob("*") if p.is_file()} for x in (tmp_path / "a", tmp_path / "b")]
    assert names[0] == names[1]
    for name in names[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    saved(folder, tmp_path / "a")
    saved(tmp_path / "a", tmp_path / "b")
    for file in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes(), file.name


def test_a_changed_template_is_what_is_written(folder, tmp_path):
    model = interlace.load(folder)
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    interlace.save(model, tmp_path / "out")
    assert interlace.load(tmp_path / "out").tokenizer.chat_template == "{{ messages[0].content }}"
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["padding_side"] == "left"


@both
def test_ends_from_anywhere_are_still_ends_afterwards(folder, tmp_path, write):
    want = interlace.load(folder).config.tokens
    write(folder, tmp_path / "out")
    assert interlace.load(tmp_path / "out").config.tokens == want


def test_another_tokenizer_does_not_inherit_the_old_ones_files(folder, tmp_path):
    model = interlace.load(folder)
    model.tokenizer = Tokenizer.train(["other words"], 290)
    interlace.save(model, tmp_path / "out")
    assert not (tmp_path / "out" / "special_tokens_map.json").exists()
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert interlace.load(tmp_path / "out").tokenizer.hash() == model.tokenizer.hash()


# A folder that is saved into a second time holds the second model alone


def test_saving_over_shards_leaves_none_of_them(tmp_path):
    first, second = HybridLM(preset("tiny-hybrid")), HybridLM(preset("tiny-hybrid"))
    with torch.no_grad():
        second.norm.weight.add_(1)
    interlace.save(first, tmp_path / "model", shard_bytes=40_000)
    interlace.save(second, tmp_path / "model")
    assert torch.equal(interlace.load(tmp_path / "model")(TOKENS)[0], second(TOKENS)[0])
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_saving_over_another_model_leaves_nothing_of_its_tokenizer(folder):
    bare = HybridLM(preset("tiny-hybrid"))
    (folder / "notes.md").write_text("mine")
    interlace.save(bare, folder)
    assert interlace.load(folder).tokenizer is None
    assert not {p.name for p in folder.iterdir()} & {*BESIDE, "tokenizer.json", "tokenizer_config.json"}
    assert (folder / "notes.md").read_text() == "mine"


# The hub: what is asked of it


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A stand-in for the hub's client that serves `folder`, and notes what is fetched."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    fetched, cache = set(), tmp_path / "cache"
    cache.mkdir()

    def fetch(name):
        fetched.add(name)
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, cache / name)
        return str(cache / name)

    def snapshot_download(_repo, *, allow_patterns=None, ignore_patterns=None, **_):
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            fetch(name)
        return str(cache)

    def hf_hub_download(_repo, filename, **_):
        return fetch(filename)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return fetched


def test_by_hub_id_comes_all_that_a_load_reads(folder, hub):
    assert interlace.load("owner/name").tokenizer.chat_template == TEMPLATE
    assert {"config.json", "model.safetensors", "tokenizer.json", *BESIDE} - {"added_tokens.json"} <= hub


def test_by_hub_id_come_no_second_copies(folder, hub):
    (folder / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors", "onnx/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("a second copy")
    interlace.load("owner/name")
    assert not [n for n in hub if "consolidated" in n or n.startswith(("original", "onnx")) or n.endswith(".py")]


def test_shards_of_any_name_are_fetched_by_the_index(folder, hub, tmp_path):
    """Qwen3.5's are called model.safetensors-00001-of-00002.safetensors."""
    want = interlace.load(folder)(TOKENS)[0]
    index = {"metadata": {}, "weight_map": {}}
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    half = len(tensors) // 2
    for i, names in enumerate((list(tensors)[:half], list(tensors)[half:]), start=1):
        shard = f"model.safetensors-0000{i}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names}, folder / shard)
        index["weight_map"] |= dict.fromkeys(names, shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(interlace.load("owner/name")(TOKENS)[0], want)
    assert "consolidated.safetensors" not in hub


def test_inspect_by_hub_id_fetches_no_weights(hub):
    assert run(["inspect", "owner/name", "--json"]) == 0
    assert "config.json" in hub
    assert not [n for n in hub if n.endswith(".safetensors")]
