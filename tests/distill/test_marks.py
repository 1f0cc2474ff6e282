"""How judges write marks, and what they are told when one is missing."""

from __future__ import annotations

import json

import pytest

from interlace.base.schema import validate
from interlace.distill.desk import Answer, Desk
from interlace.distill.ledger import Row
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
