"""Contamination is ranked by what it is judged by: a short item is found beside a long shared instruction."""

from __future__ import annotations

import pytest

from interlace.distill.contamination import Index, Item, judged
from interlace.distill.words import words_of

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
