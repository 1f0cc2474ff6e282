"""How judges write marks, and what they are told when one is missing."""

from __future__ import annotations

import json

import pytest

from interlace.base.errors import ConfigError
from interlace.base.schema import validate
from interlace.distill.desk import Answer, Desk
from interlace.distill.ledger.records import Row
from interlace.distill.steps.marks import read_marks
from interlace.distill.steps.registry import KINDS

CRITERIA = ({"name": "true", "text": "Every statement is true."}, {"name": "padding", "text": "It pads.", "weight": -1})
MARKS = {"true": 3, "padding": 1}


class Scripted:
    """Answers in turn, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    async def ask(self, teachers, question):
        self.asked.append(question)
        text = self.texts.pop(0)
        return text if isinstance(text, Answer) else Answer("ok", text, "", "", teachers[0], (f"k{len(self.asked)}",))


def graded(client, tmp_path, templates, criteria=CRITERIA, **more):
    import asyncio

    table = {"kind": "grade", "name": "g", "teacher": "j", "answer": "{{ a }}", "criteria": criteria, **more}
    step = validate(KINDS["grade"], table, "g")
    desk = Desk("g", tmp_path, 0, templates, client)
    try:
        return asyncio.run(step.one(Row(1, "0", "ok", "", {"a": "x"}), desk))[0]
    finally:
        desk.close()


GOOD = {
    "alone": '{"true": 3, "padding": 1}',
    "fenced": '```json\n{"true": 3, "padding": 1}\n```',
    "fenced without a language": '```\n{"true": 3, "padding": 1}\n```',
    "fenced, words before": 'Here are my marks:\n\n```json\n{"true": 3, "padding": 1}\n```',
    "fenced, words after": '```json\n{"true": 3, "padding": 1}\n```\nThe answer is mostly right.',
    "prose before": 'The statements hold, but for one. {"true": 3, "padding": 1}',
    "prose after": '{"true": 3, "padding": 1}\n\nThe last sentence says nothing.',
    "prose with braces": 'The set {1, 2} is right. {"true": 3, "padding": 1}',
    "the form repeated first": 'As {"true": 0..4, "padding": 0..4} asks: {"true": 3, "padding": 1}',
    "a first try taken back": '{"true": 1, "padding": 0}\nOn reflection:\n{"true": 3, "padding": 1}',
    "thought between tags": '<think>{"true": 0, "padding": 0}</think>{"true": 3, "padding": 1}',
    "whole floats": '{"true": 3.0, "padding": 1.0}',
    "strings": '{"true": "3", "padding": "1"}',
    "strings of floats": '{"true": "3.0", "padding": "1.0"}',
    "of the most": '{"true": "3/4", "padding": "1/4"}',
    "out of the most": '{"true": "3 out of 4", "padding": "1 out of 4"}',
    "tables with a reason": '{"true": {"score": 3, "reason": "a slip in 1990"}, "padding": {"score": 1, "reason": ""}}',
    "tables with a mark": '{"true": {"mark": 3}, "padding": {"mark": 1}}',
    "tables with a value": '{"true": {"reasoning": "a", "value": 3}, "padding": {"reasoning": "b", "value": 1}}',
    "within scores": '{"scores": {"true": 3, "padding": 1}}',
    "within grades, with more": '{"grades": {"true": 3, "padding": 1}, "comment": "fine"}',
    "more keys": '{"true": 3, "padding": 1, "comment": "fine", "total": 4}',
    "a list of tables": '[{"criterion": "true", "score": 3}, {"criterion": "padding", "score": 1}]',
    "a list of one": '[{"true": 3, "padding": 1}]',
    "other capitals": '{"True": 3, "PADDING": 1}',
    "spaces in names": '{" true": 3, "padding ": 1}',
    "a comma too many": '{"true": 3, "padding": 1,}',
    "single quotes": "{'true': 3, 'padding': 1}",
    "no quotes": "{true: 3, padding: 1}",
    "comments": '{"true": 3, // one slip\n "padding": 1}',
    "one object each": '{"true": 3}\n{"padding": 1}',
    "lines": "true: 3\npadding: 1",
    "a list of lines": "- true: 3\n- padding: 1",
    "lines in bold": "**true**: 3\n**padding**: 1",
    "lines of the most": "true: 3/4\npadding: 1/4",
    "lines with reasons": "true: 3 - one slip in 1990\npadding: 1 - the last sentence",
    "lines with signs of equality": "true = 3\npadding = 1",
    "a table": "| criterion | mark |\n|---|---|\n| true | 3 |\n| padding | 1 |",
    "a byte-order mark": '\ufeff{"true": 3, "padding": 1}',
    "full-width colon": "true：3\npadding：1",
    "written twice as JSON": json.dumps('{"true": 3, "padding": 1}'),
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_a_mark_is_read_however_it_is_written(tmp_path, templates, text):
    client = Scripted(text, "", "")
    out = graded(client, tmp_path, templates)
    assert out.values["score_marks"] == {"j": MARKS}
    assert len(client.asked) == 1


BAD = {
    "too high": '{"true": 5, "padding": 1}',
    "below nothing": '{"true": -1, "padding": 1}',
    "a half": '{"true": 2.5, "padding": 1}',
    "a truth": '{"true": true, "padding": 1}',
    "nothing": '{"true": null, "padding": 1}',
    "a word": '{"true": "high", "padding": 1}',
    "a range": '{"true": "2-3", "padding": 1}',
    "of another most": '{"true": "3/10", "padding": 1}',
    "the form alone": '{"true": 0..4, "padding": 0..4}',
    "too large": '{"true": 1e400, "padding": 1}',
    "no number": '{"true": NaN, "padding": 1}',
    "very long": '{"true": ' + "9" * 5000 + ', "padding": 1}',
    "a word that ends so": "untrue: 3\npadding: 1",
    "two marks in one line": "true: 2 or 3\npadding: 1",
    "no marks": "The answer is true in 3 of its statements.",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_mark_is_missing(tmp_path, templates, text):
    out = graded(Scripted(text), tmp_path, templates, tries=1)
    assert out.state == "unparsable"
    assert "true" not in out.values["score_marks"]["j"]
    assert "for true" in out.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"true": 5, "padding": 1}', ["true", "5"]),
        ('{"true": "high", "padding": 1}', ["true", "high"]),
        ('{"padding": 1}', ["true"]),
        ("I cannot say.", ["true", "padding", "JSON"]),
    ],
)
def test_a_judge_is_told_what_was_wrong(tmp_path, templates, text, words):
    client = Scripted(text, '{"true": 3, "padding": 1}')
    out = graded(client, tmp_path, templates)
    assert out.values["score_marks"] == {"j": MARKS}
    first, second = client.asked
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[0] == first.messages[0]
    assert second.messages[1]["content"] == text
    assert all(w in second.messages[2]["content"] for w in words)


def test_what_was_given_is_not_asked_for_again(tmp_path, templates):
    client = Scripted('{"true": 3}', '{"padding": 1}')
    out = graded(client, tmp_path, templates)
    assert out.values["score_marks"] == {"j": MARKS}
    assert client.asked[1].schema["required"] == ["padding"]
    assert "0..4" in client.asked[1].messages[-1]["content"]


@pytest.mark.parametrize("state", ["truncated", "refused", "failed"])
def test_a_judge_that_did_not_answer_is_asked_again_and_its_reason_is_kept(tmp_path, templates, state):
    cut = Answer(state, '{"true": 3, ', "", "it ended early", "j", ("k",))
    client = Scripted(cut, cut)
    out = graded(client, tmp_path, templates, tries=2)
    assert out.state == "unparsable"
    assert "it ended early" in out.reason
    assert all(len(q.messages) == 1 for q in client.asked)  # what was cut off is no answer to go on from


SAID = [
    "correct: 3.\npadding: 1.",
    "correct: 3; padding: 1",
    '{"correct": "3 (fine)", "padding": "1 (x)"}',
    '{"correct": "3.", "padding": "1."}',
    '{"correct": [3], "padding": [1]}',
    '{"correct": {"level": 3}, "padding": {"level": 1}}',
    '[{"id": "correct", "score": 3}, {"id": "padding", "score": 1}]',
    '{"correct_score": 3, "padding_score": 1}',
    '[["correct", 3], ["padding", 1]]',
    "<correct>3</correct>\n<padding>1</padding>",
    "correct (0-4): 3\npadding (0-4): 1",
    "correct - 3\npadding - 1",
    "correct → 3\npadding -> 1",
    "| correct | padding |\n|---|---|\n| 3 | 1 |",
    "| correct | every statement | 3 |\n| padding | it pads | 1 |",
    "### correct\nScore: 3\n### padding\nScore: 1",
    "correct: 1\npadding: 0\nOn reflection:\ncorrect: 3\npadding: 1",
    "{“correct”: 3, “padding”: 1}",
    "correct: \\boxed{3}\npadding: \\boxed{1}",
    "correct=3 padding=1",
    "Correct: 3. Padding: 1.",
    "Score for correct: 3/4\nScore for padding: 1/4",
    "- **Correct (0–4):** 3\n- **Padding (0–4):** 1",
    "## 1. Correct\nThe answer is right but for 1 date.\n**Score: 3/4**\n\n## 2. Padding\nLittle.\n**Score: 1/4**",
    "**correct**\nScore: 3\n\n**padding**\nScore: 1",
    "correct: The date is off. Score: 3\npadding: None to speak of. Score: 1",
    "| criterion | score | reason |\n|---|---|---|\n| correct | 3 | a slip |\n| padding | 1 | x |",
    "| Answer | Correct | Padding |\n|---|---|---|\n| A | 3 | 1 |",
    "correct,padding\n3,1",
    "correct\tpadding\n3\t1",
    '{"evaluation":[{"dimension":"Correct","rating":3,"why":"x"},{"dimension":"Padding","rating":1,"why":"y"}]}',
    '{"correct":{"score":3,"out_of":4},"padding":{"score":1,"scale":"0-4"}}',
    '{"Correct (0-4)":3,"Padding (0-4)":1}',
    "<scores><correct>3/4</correct><padding>1/4</padding></scores>",
    '<score name="correct">3</score><score name="padding">1</score>',
    "correct: 3 (out of 4)\npadding: 1 (out of 4)",
    "correct: 3 (one slip in 1990)\npadding: 1 (2 sentences)",
    "correct: 3 because of a slip\npadding: 1 because",
    "correct: 3 // x\npadding: 1 // y",
    'correct: 1\nHm, no.\n{"correct": 3, "padding": 1}',
    '{"correct": 1, "padding": 0}\nSecond thoughts:\ncorrect: 3\npadding: 1',
    "correct: three.\npadding: one.",
    "correct: 3\n\npadding: 1\n\nTotal: 4/8",
    '{"tool_calls":[{"function":{"name":"grade","arguments":"{\\"correct\\": 3, \\"padding\\": 1}"}}]}',
    "correct: 3 of 4\npadding: 1 of 4",
    "correct: 3 points out of 4\npadding: 1 point out of 4",
    "correct: `3`\npadding: `1`",
    "correct: 3 — one slip\npadding: 1 – none",
    "The scale runs from 0 to 4.\n\ncorrect: 3\npadding: 1",
    "correct: 3 | reason: x\npadding: 1 | reason: y",
    "1. correct\n   - Score: 3\n2. padding\n   - Score: 1",
    "correct:\n3\n\npadding:\n1",
    'correct: "3",\npadding: "1"',
    "correct : 3 ; padding : 1",
    "correct: 3! padding: 1!",
    "**Correct:** 3/4 – fine. **Padding:** 1/4 – fine.",
]


@pytest.mark.parametrize("text", SAID)
def test_marks_are_read_from_lines_tables_headings_tags_and_json_of_any_shape(text):
    assert read_marks(text, ["correct", "padding"], 4) == ({"correct": 3, "padding": 1}, {})


NOT_SAID = [
    "correct: 3/10.",
    "correct: 3 of 5.",
    "correct: 3 out of 10.",
    "correct: 3 out of ten",
    "correct: 3/10th",
    "correct: 3 of the statements are false",
    "correct: 2 sentences say nothing",
    "correct: 3~4",
    "correct: 4 -> 3",
    "correct: 3 maybe 4",
    "correct: 1 (lowest) to 4",
    "correct: 0 (not met) .. 4 (met)",
    "correct: 2 + 2 = 4 holds",
    "correct: 3+",
    "correct: 3%",
    "correct: 3?",
    "correct: 3 4",
    "correct: 3,5",
    "correct: 2 and 3",
    "correct: 3/4/2021",
    "correct: 3:30",
    "correct: 3 (out of 10)",
    "correct (0-10): 3",
    "correct (out of 10): 3",
    "correct: 3 (0-10)",
    '{"correct":{"score":3,"max":10}}',
    '{"correct":"3/10"}',
    '{"correct":"3 of 10 facts"}',
    '{"correct":"3 or 4"}',
    '{"correct":[3,4]}',
    '{"correct": "3 (maybe 4)"}',
    "correct: 3, maybe 4",
    "correct: 3; or 4",
    "correct:\n1. The first fact holds.\n2. So does the other.",
    "1. correct\n2. padding\n3. nothing",
    "correct: 3 (or 4)",
    "correct: 3 (4)",
    "correct: 3...4",
    "correct: three or four",
    "correct: one of the facts is off",
    "correct: one fact is off",
    "correct: 3 on a scale of 0 to 10",
    "correct: 3 (on a scale of 0 to 10)",
    "correct: 3 / 4 of the facts",
    "correct: 4 means that every statement is true",
    "not correct: 3",
    "incorrect: 3",
    "correctness: 3",
    "correct: 3 minus 1",
    "correct: 3-",
    "correct: 3:4",
    "correct: 10",
    "correct: -1",
    "correct: 2.5",
    "correct: 3e2",
    "correct: .3",
    "correct: 3,000",
    "correct: 3 out of a possible 10",
    "correct: 3 in 10",
    "correct: 3 × 2",
    "correct: 3k",
    "correct: #3",
    "correct: 3 to be fair, 4",
    "correct: between 2 and 3",
    "correct: ~3",
    "correct: <3>",
    "correct: 0 = bad, 4 = good",
    "correct: 0: bad, 4: good",
    "correct: 0 - bad; 4 - good",
    "The statement 2 is correct, 3 is not",
    "correct: 3rd sentence",
    "| correct | 4 | 3 |",
    "correct: 1, 2, 3",
    "correct: 3/4/5",
    '{"criterion":"correct","id":3}',
    '{"correct":{"weight":3,"met":"no"}}',
    '["correct","padding"]',
    "correct: 3 (out of 10 facts)",
    "Is it correct? 3 of 4 say so.",
    "correct: 2 (two) or 3",
]


@pytest.mark.parametrize("text", NOT_SAID)
def test_a_number_of_another_scale_or_of_things_or_of_several_is_no_mark(text):
    assert "correct" not in read_marks(text, ["correct", "padding"], 4)[0]


@pytest.mark.parametrize("said", ["factual accuracy", "Factual-Accuracy", "FACTUAL_ACCURACY", "factualAccuracy"])
@pytest.mark.parametrize("form", ["{}: 3", '{{"{}": 3}}', "## {}\nScore: 3", '[{{"name": "{}", "score": 3}}]'])
def test_a_name_is_the_same_in_any_spelling(said, form):
    assert read_marks(form.format(said), ["factual_accuracy", "style"], 4)[0] == {"factual_accuracy": 3}


def test_a_longer_name_is_another():
    text = "Correct style: 3\nCorrect: 1\nCorrectness: 4"
    assert read_marks(text, ["correct", "correct_style"], 4)[0] == {"correct": 1, "correct_style": 3}


@pytest.mark.parametrize("text", ["3", "3/4.", "Score: 3", '{"score": 3}', "[3]", "It has one slip.\nScore: 3"])
def test_who_is_asked_for_one_mark_need_not_name_it(text):
    assert read_marks(text, ["correct"], 4)[0] == {"correct": 3}
    assert read_marks(text, ["correct", "padding"], 4)[0] == {}


def test_criteria_that_a_judge_could_not_tell_apart_are_refused():
    table = {"kind": "grade", "name": "g", "teacher": "j"}
    criteria = tuple({"name": n, "text": "x"} for n in ("clear_style", "ClearStyle"))
    with pytest.raises(ConfigError, match="two are called 'clear_style'"):
        validate(KINDS["grade"], {**table, "criteria": criteria}, "g")
