"""Answers read as their readers would: what mathematics datasets hold, and what nobody should have to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interlace.distill.steps.verify import SYMBOLS
from interlace.sandbox.worker import Worker
from interlace.verify.expressions import same
from interlace.verify.numbers import final_number, same_number

BESIDE = Path(__file__).parent
KNOWN = {"The answer is 3:45 p.m. | 3:45"}  # half of a day is said on one side only


@pytest.fixture(scope="module")
def worker():
    made = Worker(SYMBOLS, 2.0)
    yield made
    made.close()


@pytest.mark.parametrize(("name", "compare"), [("numbers", same_number), ("expressions", same)])
def test_pairs_are_compared_as_a_reader_would(name, compare):
    rows = [json.loads(line) for line in (BESIDE / f"pairs_{name}.jsonl").read_text("utf-8").splitlines()]
    assert len({(r["answer"], r["gold"]) for r in rows}) == 150
    wrong = {f"{r['answer']} | {r['gold']}" for r in rows if compare(r["answer"], r["gold"])[0] is not r["equal"]}
    assert wrong <= KNOWN


def test_shapes_are_compared_either_way():
    """Intervals, unions, sets, points, matrices, equations, inequalities, units: each beside its like and another."""
    rows = [json.loads(line) for line in (BESIDE / "pairs_near.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        for pair in ((row["answer"], row["gold"]), (row["gold"], row["answer"])):
            assert same(*pair)[0] is row["equal"], pair


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{\\pm 3}",
        "±3",
        "The answer is x > 3.",
        "\\boxed{x \\ge 3}",
        "x ≠ 3",
        "12:00",
        "The answer is 3 : 4.",
        "\\boxed{2\\sqrt3}",
        "\\boxed{\\log_2 8}",
        "\\boxed{\\frac{x}{4}}",
        "\\boxed{x = 3, y = 5}",
        "The answer is 3 or 5.",
        "The answer is between 3 and 5.",
        "101_{2}",
    ],
)
def test_what_is_more_than_one_number_is_none(text):
    assert final_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\\boxed{45^\\circ}", 45),
        ("The answer is 5 m^2.", 5),
        ("\\boxed{5\\,\\text{cm}^{2}}", 5),
        ("9.8 m/s^2", 9.8),
        ("The answer is 1'000'000.", 1_000_000),
        ("\\boxed{1\\ 000}", 1000),
        ("\\boxed{10^6}", 1_000_000),
        ("\\boxed{3 \\over 4}", 0.75),
    ],
)
def test_signs_that_belong_to_a_number_do_not_hide_it(text, number):
    assert final_number(text) == pytest.approx(number)


@pytest.mark.parametrize(
    "text",
    [
        "(-\\infty,-1)\\cup(1,\\infty)",
        "(0,1) ∪ (2,3)",
        "(1,2),(3,4)",
        "-(1,2)",
        "\\log()",
        "factorial(10**9)",
        "(10**9999)**9999",
        "1/0",
        "\\text{no such thing",
        "((((",
        "x" * 5000,
    ],
)
def test_equal_texts_are_equal_before_anything_is_parsed(text, worker):
    assert worker.ask({"answer": f" ${text}$ ", "gold": text}) == [True, ""]


@pytest.mark.parametrize(
    "answer",
    ["-(1,2)", "log()", "sqrt(1,2,3)", "(1,2)+1", "1/0", "\\infty", "[1,2]", "\\{1,2\\}", "x<y", "(1,2),(3,4)"],
)
@pytest.mark.parametrize("gold", ["x", "1", "(1,2)", "\\infty-\\infty", "(0,1)\\cup(2,3)", "\\{1,2\\}", "x<3"])
def test_no_answer_breaks_the_check(answer, gold):
    for pair in ((answer, gold), (gold, answer)):
        right, why = same(*pair)
        assert right or why


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("no", "on"),
        ("cat", "act"),
        ("DNE", "END"),
        ("\\text{Amy}", "\\text{May}"),
        ("E", "e"),
        ("5 cat", "5 act"),
        ("red", "der"),
    ],
)
def test_words_are_no_products_of_letters(answer, gold):
    assert not same(answer, gold)[0]


def test_letters_beside_each_other_are_a_product_where_the_other_side_is_an_expression():
    assert same("xy", "y*x")[0]
    assert same("2ab", "2ba")[0]


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("\\boxed{3 1/2}", "31/2", False),
        ("\\boxed{3 1/2}", "7/2", True),
        ("\\boxed{1 2}", "12", False),
        ("\\boxed{\\text{NO  solution}}", "no solution", True),
        ("\\boxed{AB}", "ab", False),
    ],
)
def test_spaces_and_case_count_where_they_say_something(answer, gold, equal):
    assert same_number(answer, gold)[0] is equal
    assert same(answer, gold)[0] is equal


@pytest.mark.parametrize("source", ["factorial(10**9)", "(10**9999)**9999", "binomial(10**6,5*10**5)", "9**9**9"])
def test_numbers_too_large_to_write_are_refused_before_they_are_made(source, worker):
    right, why = worker.ask({"answer": source, "gold": "7"})
    assert not right
    assert "no expression" in why
