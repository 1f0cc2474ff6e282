"""Lists that stand for large sets: signs, refusals, fields of reasoning, numbers that JSON has not."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from interlace.distill.desk import Answer
from interlace.distill.export import Unusable, check_turn, export
from interlace.distill.folder import DistillRun
from interlace.distill.run import generate
from interlace.distill.steps.ask import Generate
from interlace.distill.steps.refusals import is_refusal
from interlace.distill.teachers.outcomes import content
from interlace.distill.teachers.questions import split_reasoning
from interlace.text.contamination import Index, Item
from interlace.text.minhash import first_of_each, shingles, signature
from interlace.text.words import words_of

SIGNS = [
    ("What is C?", "What is C#?"),
    ("6 × 7", "6 ÷ 7"),
    ("3 ≤ x", "3 ≥ x"),
    ("a ∩ b", "a ∪ b"),
    ("x→y", "x←y"),
    ("∀x: p", "∃x: p"),
    ("¬p", "p"),
    ("a && b", "a || b"),
    ("Rate it 👍", "Rate it 👎"),
    ("F♯ major", "F♭ major"),
    ("x ∈ A", "x ∉ A"),
    ("C++", "C"),
    ("a ≈ b", "a ≡ b"),
    ("p ⇒ q", "p ⇔ q"),
]
AT_ONE = [("[1, 2]", "(1, 2)"), ("5!", "5"), ("1.5", "1 5"), ("pay $5", "pay €5"), ("x'", "x"), ("!x", "x")]


def kept_by_dedup(tmp_path, texts, threshold):
    """The texts that go on."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"q": t}) + "\n" for t in texts))
    step = f'[[steps]]\nname = "d"\nkind = "dedup"\ntext = "{{{{ q }}}}"\nthreshold = {threshold}\n'
    end = '[output]\nuser = "{{ q }}"\nassistant = "a"\n'
    (tmp_path / "r.toml").write_text(f'[[steps]]\nkind = "jsonl"\npath = "in.jsonl"\n{step}{end}')
    generate(tmp_path / "r.toml", tmp_path / "run")
    folder = DistillRun(tmp_path / "run")
    ledger = folder.open_ledger()
    kept = [r.values["q"] for r in ledger.rows.ordered(folder.last.id)]
    ledger.close()
    return kept


@pytest.mark.parametrize(("one", "other"), SIGNS)
def test_signs_tell_texts_apart(one, other):
    assert words_of(one) != words_of(other)
    signed = np.array([signature(shingles(t, 3)) for t in (one, other)])
    assert list(first_of_each(signed, 0.8)) == [-1, -1]


def test_at_threshold_one_only_the_same_text_is_a_duplicate(tmp_path):
    texts = [t for pair in SIGNS + AT_ONE for t in pair]
    texts += ["one two one two one two", "one two one two", unicodedata.normalize("NFD", "café")]
    texts = list(dict.fromkeys(texts))
    assert kept_by_dedup(tmp_path, [*texts, "6  ×\n7 ", "café"], 1.0) == texts


def test_below_it_punctuation_and_case_do_not_count(tmp_path):
    text = "A farmer has seventeen sheep, and sells nine of them: what is left?"
    assert kept_by_dedup(tmp_path, [text, text.upper().replace(",", "") + "!"], 0.8) == [text]


THAI = "ประเทศไทยตั้งอยู่ในภูมิภาคเอเชียตะวันออกเฉียงใต้และมีกรุงเทพมหานครเป็นเมืองหลวง"


@pytest.mark.parametrize("text", [THAI, "𠀀𠀁𠀂𠀃𠀄𠀅𠀆𠀇𠀈𠀉", "東京は日本の首都です"])
def test_scripts_without_spaces_have_words(text):
    assert Index([Item("b", 1, words_of(text), "")]).nearest(f"x {text}กกก y").coverage > 0.8
    assert len(words_of(text)) > 5


def test_an_accent_is_the_same_however_it_is_encoded():
    assert words_of(unicodedata.normalize("NFD", "Café")) == words_of("café")


LISTS = Path(__file__).parent


@pytest.mark.parametrize(("file", "refused"), [("refusals.txt", True), ("no_refusals.txt", False)])
def test_refusals_are_told_from_what_only_begins_like_one(file, refused):
    texts = (LISTS / file).read_text(encoding="utf-8").splitlines()
    wrong = [t for t in texts if is_refusal(t) is not refused]
    assert len(wrong) <= 0.06 * len(texts), wrong


@pytest.mark.parametrize("text", ["I can't help with that.", "I'm not able to provide advice on that."])
def test_a_refusal_is_one_after_a_courtesy_in_quotes_and_with_any_apostrophe(text):
    for said in (text, f"I'm sorry. {text}", f"Hello! Sorry, but {text}", f"**{text}**", f'"{text}"', text.upper()):
        for apostrophe in "'\u2019\u02bc\u0060":
            assert is_refusal(said.replace("'", apostrophe)), said
    for given in (f"{text[:-1]}, said the fox.", f"{text[:-1]}, so x = 3.", f"Say: {text}", f"{text} The answer is 7."):
        assert not is_refusal(given), given


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I must decline this request.", True),
        ("I must respectfully disagree with the premise, and here is why.", False),
        ("I have to decline that, sorry.", True),
        ("I refuse to help with that.", True),
        ("I decline the noun first: rosa, rosae.", False),
    ],
)
def test_what_is_declined_is_refused(text, refused):
    out = Generate(kind="generate", name="g", teacher="t", prompt="p").ended(Answer("ok", text, "", "", "t", ("k",)))
    assert (out is not None and out.state == "refused") is refused


TRACES = [
    {"content": "a", "reasoning_content": "r"},
    {"content": "a", "reasoning": "r"},
    {"content": "a", "thinking": "r"},
    {"content": "a", "reasoning_details": [{"type": "reasoning.text", "text": "r"}]},
    {"content": "a", "thinking_blocks": [{"type": "thinking", "thinking": "r", "signature": "s"}]},
    {"content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]},
    {"content": [{"type": "reasoning", "summary": [{"text": "r"}]}, {"type": "output_text", "text": "a"}]},
]


@pytest.mark.parametrize("message", TRACES)
def test_a_turn_is_exported_with_its_trace_wherever_that_stands(message):
    assert check_turn({"role": "assistant", **message}) == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "r",
    }


def test_a_turn_without_a_trace_has_none():
    turn = {"role": "assistant", "content": "a", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}
    assert check_turn(turn) == {"role": "assistant", "content": "a"}
    assert check_turn({"role": "user", "content": "a", "thinking": "r"}) == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "parts", [[], [{"type": "thinking", "thinking": "r"}], [{"type": "image_url"}, {"type": "text", "text": "a"}], [3]]
)
def test_a_turn_that_is_more_or_less_than_text_is_no_turn(parts):
    with pytest.raises(Unusable, match="content that is text"):
        check_turn({"role": "user", "content": parts})


def test_a_trace_in_channels_ends_where_it_ends():
    text = "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>final<|message|>a"
    assert split_reasoning(content({"choices": [{"message": {"content": text}}]})) == ("a", "r")


def read_strictly(text):
    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [1.5, float("-inf")]}])
def test_exports_are_json_for_every_reader(tmp_path, value):
    (tmp_path / "in.jsonl").write_text(json.dumps({"q": "x", "score": value}) + "\n")
    (tmp_path / "r.toml").write_text(
        '[[steps]]\nkind = "jsonl"\npath = "in.jsonl"\n'
        '[output]\nuser = "{{ q }}"\nassistant = "a"\nkeep = ["score"]\nheld_out = 0.0\n'
    )
    generate(tmp_path / "r.toml", tmp_path / "run")
    export(tmp_path / "run", tmp_path / "data")
    (row,) = (tmp_path / "data" / "train.jsonl").read_text().splitlines()
    nothing = {"deep": [1.5, None]} if isinstance(value, dict) else None
    assert read_strictly(row)["score"] == nothing
    (row,) = parquet.read_table(tmp_path / "data" / "train.parquet").to_pylist()
    assert read_strictly(row["columns"])["score"] == nothing
    read_strictly((tmp_path / "data" / "manifest.json").read_text())
