"""Contamination is ranked by what it is judged by: a short item is found beside a long shared instruction."""

from __future__ import annotations

import pytest

from interlace.text.contamination import Index, Item, judged
from interlace.text.words import words_of

INSTRUCTION = "read the question below with care and answer with one number alone without a word of how you came to it"
LEGS = "how many legs do seven spiders and two ants have together"
EDGE = "one two three four five"


def item(number, text, answer=""):
    return Item("b", number, words_of(text), answer)


def long_ones(count):
    """Items that share the instruction and nothing else, each under half covered by it."""
    own = " ".join(f"w{{0}}x{i}" for i in range(40))
    return [item(i, f"{INSTRUCTION} {own.format(i)}") for i in range(count)]


@pytest.mark.parametrize("others", [0, 7, 8, 30])
def test_a_short_item_is_found_beside_a_long_shared_instruction(others):
    match = Index([*long_ones(others), item(99, LEGS)]).nearest(f"{INSTRUCTION} {LEGS}")
    assert (match.item.number, match.coverage) == (99, 1.0)


@pytest.mark.parametrize("text", ["capital of France", "two plus two", LEGS])
def test_an_item_of_few_words_is_found_beside_many(text):
    index = Index([*long_ones(20), item(99, text)])
    assert index.nearest(f"{INSTRUCTION}: {text}?").item.number == 99


def test_of_two_items_the_one_that_counts_is_told():
    """One is covered more and is not answered; the other is covered less, and its answer is the row's."""
    more = item(1, f"{EDGE} a b c d e f", "7")  # 5 of 11 words
    less = item(2, "six seven eight nine g h i j k l", "42")  # 4 of 10 words
    match = Index([more, less]).nearest(f"{EDGE} and so six seven eight nine", "it is 42")
    assert match.item.number == 2
    assert judged(match, 0.5, 0.35)


def test_the_match_does_not_depend_on_the_order_of_the_items():
    items = [*long_ones(12), item(99, LEGS), item(98, LEGS + " and what else")]
    text = f"{INSTRUCTION} {LEGS}"
    assert Index(items).nearest(text).item.number == Index(items[::-1]).nearest(text).item.number == 99


def test_a_long_item_that_repeats_itself_does_not_hide_another():
    echo = [item(i, f"{' '.join([INSTRUCTION] * 4)} {' '.join(f'z{i}x{k}' for k in range(120))}") for i in range(10)]
    match = Index([*echo, item(99, LEGS)]).nearest(f"{INSTRUCTION} {INSTRUCTION} {LEGS}")
    assert match.item.number == 99


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("Why?", "I do not know why the sky is blue"),
        ("Why?", "He left. Why? Nobody knows."),
        ("Define entropy.", "Can you define entropy for an ideal gas?"),
        ("Who are you?", "Ask them who are you and why"),
        ("What is the time?", "What is the time complexity of quicksort?"),
        ("\u4e3a\u4ec0\u4e48", "\u4e3a\u4ec0\u4e48\u5929\u7a7a\u662f\u84dd\u8272\u7684\uff1f"),
        ("\u4ec0\u4e48\u662f\u5149", "\u4ec0\u4e48\u662f\u5149\u5408\u4f5c\u7528\uff1f"),
    ],
)
def test_an_item_of_few_words_is_not_found_inside_a_sentence(text, row):
    assert Index([item(1, text)]).nearest(row) is None
    assert Index([item(1, text, "yes")]).nearest(row, "no") is None


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("Why?", " why "),
        ("Define entropy.", "Answer in one line.\n\nDefine entropy."),
        ("Define entropy.", "Question: define entropy"),
        ("Who are you?", "Hello! **Who are you?** Tell me."),
        ("Why not? Explain.", "You must. Why not? Explain."),
        ("2 + 2 = ?", "Compute: 2 + 2 = ?"),
        ("\u4ec0\u4e48\u662f\u5149", "\u8bf7\u95ee\uff1a\u4ec0\u4e48\u662f\u5149\uff1f"),
    ],
)
def test_an_item_of_few_words_is_found_as_a_sentence(text, row):
    assert Index([item(1, text)]).nearest(row).coverage == 1


def test_from_three_words_on_an_item_is_told_by_its_answer():
    def found(text, row):
        return Index([item(1, text, "Paris")]).nearest(row, "Paris")

    assert found("capital of France", "Name the capital of France in a word").answered
    assert found("France", "Name the capital of France in a word") is None
    assert found("the capital", "Name the capital of France in a word") is None
