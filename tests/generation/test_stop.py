"""Stop strings: special tokens among them, beside them and around them; what comes before one is shown, it is not."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from scripted import ending, script
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Fast

import interlace
from interlace.base.errors import ConfigError
from interlace.cli.main import main
from interlace.data.tokenizer import Tokenizer
from interlace.distill.teachers.local import Local
from interlace.distill.teachers.teacher import Teacher
from interlace.generation.engine import Engine
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.model.presets import preset


def byte_level():
    made = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 3, 280)
    made.fast.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    made.fast.add_tokens([AddedToken("</tool>", special=False)])
    return made


def byte_fallback():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    fast = Fast(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(["<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>"])
    fast.add_tokens([AddedToken("</tool>", special=False)])
    return Tokenizer(fast, 2)


@pytest.fixture(params=[byte_level, byte_fallback])
def writes(request, monkeypatch):
    """A model that goes on with the ids of a text, whatever it is asked; says how many were taken from it."""
    model = ending(interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=400)).eval())
    model.tokenizer = request.param()
    taken = []

    def answer(text, **more):
        taken.clear()
        script(monkeypatch, model.tokenizer.encode(text), taken)
        return "".join(interlace.generate(model, "the", max_tokens=40, **more))

    answer.taken, answer.model = taken, model
    return answer


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("a fox<|im_end|>the dog", ["<|im_end|>"], "a fox"),
        ("a fox<|im_end|>the dog", ["dog", "<|im_end|>"], "a fox"),
        ("a fox<|im_end|>the dog", ["fox", "<|im_end|>"], "a "),
        ("a fox<|im_end|>\nthe dog", ["<|im_end|>\n"], "a fox"),
        ("a fox\n<|im_end|>the dog", ["\n<|im_end|>"], "a fox"),
        ("a<|im_end|><|im_start|>the", ["<|im_end|><|im_start|>"], "a"),
        ("a<|im_end|>b<|im_start|>c", ["<|im_start|>"], "ab"),
        ("<|im_end|>the dog", ["<|im_end|>"], ""),
        ("🔥<|im_end|>🔥", ["<|im_end|>"], "🔥"),
        ("a</tool>b", ["</tool>"], "a"),
        ("a fox<|im_end|>the dog", ["<|im_start|>"], "a foxthe dog"),  # none came: what is special stays unseen
        ("a fox<|im_end|>", ["im_end"], "a fox"),
        ("xa<|im_end|>bc", ["ab"], "x"),  # the text that is shown never holds a stop string
        ("a<|im_end|>b", ["|"], "ab"),  # and letters of a name that is not shown are none of the text
        ("a<|im_end|>b", ["a<|im_start|>"], "ab"),
    ],
)
def test_a_stop_string_may_be_or_hold_special_tokens(writes, text, stop, shown):
    assert writes(text, stop=stop) == shown


def test_nothing_more_is_made_once_a_special_token_stopped(writes):
    writes("a<|im_end|>the quick brown fox", stop=["<|im_end|>"])
    tokenizer = writes.model.tokenizer
    assert writes.taken == tokenizer.encode("a<|im_end|>")


def test_half_a_character_before_a_stop_is_written_as_it_decodes(writes, monkeypatch):
    tokenizer = writes.model.tokenizer
    ids = [*tokenizer.encode("a"), *tokenizer.encode("🔥")[:2], *tokenizer.encode("<|im_end|>b")]
    script(monkeypatch, ids)
    found = "".join(interlace.generate(writes.model, "the", max_tokens=9, stop=["<|im_end|>"]))
    assert found == tokenizer.decode(ids[:3])


def test_one_string_is_one_stop_and_not_its_letters(writes):
    assert writes("the fox<|im_end|>", stop="fox") == "the "
    assert writes("the fox<|im_end|>a", stop="<|im_end|>") == "the fox"


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [None], [3], 3])
def test_what_is_no_stop_string_is_said_before_anything_is_made(writes, stop):
    with pytest.raises(ConfigError, match="stop"):
        writes("the fox", stop=stop)
    assert writes.taken == []


def test_special_tokens_stop_from_the_command_line(writes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(interlace, "load", lambda *_, **__: writes.model)
    ids = writes.model.tokenizer.encode("a fox<|im_end|>the")
    script(monkeypatch, ids)
    with pytest.raises(SystemExit) as end:
        main(["generate", "anything", "the", "--stop", "<|im_end|>", "--json"])
    assert end.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["text"] == "a fox"


@pytest.mark.parametrize("stop", [["<|im_end|>"], "<|im_end|>", ["dog", "<|im_end|>"], ["fox<|im_end|>", "<|im_end|>"]])
def test_a_local_teacher_stops_at_special_tokens_too(writes, stop, monkeypatch):
    teacher = Local("mine", Teacher(kind="local", checkpoint="x", licence="MIT", terms="own"))
    teacher._engine, teacher._chat, teacher._ends = Engine(writes.model, rows=1), writes.model.tokenizer.chat(), ()
    script(monkeypatch, writes.model.tokenizer.encode("a fox<|im_end|>the dog"))

    async def ask():
        try:
            return await teacher.send({"messages": [{"role": "user", "content": "a"}], "stop": stop})
        finally:
            await teacher.close()

    choice = asyncio.run(ask()).body["choices"][0]
    assert choice["message"]["content"] == ("a " if "fox<|im_end|>" in stop else "a fox")
    assert choice["finish_reason"] == "stop"


def test_a_seeded_run_is_cut_at_the_token_it_drew():
    """The same draws, ended where a special token came."""
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300, init_std=0.3)).eval()
    model.tokenizer = Tokenizer.train(["the quick brown fox"] * 3, 270)
    names = [f"<|{i}|>" for i in range(300 - model.tokenizer.vocabulary)]
    model.tokenizer.fast.add_special_tokens(names)
    prompt = model.tokenizer.encode("the")
    ids = list(generate_tokens(model, prompt, max_tokens=60, sampling=Sampling(), seed=1))
    drawn = [model.tokenizer.fast.id_to_token(i) for i in ids]
    name = next(token for token in drawn[3:] if token in names and token not in drawn[:3])
    found = "".join(interlace.generate(model, "the", max_tokens=60, seed=1, stop=[name]))
    assert found == model.tokenizer.decode(ids[: drawn.index(name)])
