"""One thing written in several ways: where an answer stands, units, degrees, chains, sets, what only digits show."""

from __future__ import annotations

import time

import pytest

from interlace.verify import units
from interlace.verify.expressions import same
from interlace.verify.final import final_answer
from interlace.verify.numbers import final_number, same_number


def check(pairs, equal):
    """Both ways round."""
    for pair in pairs:
        for answer, gold in (pair, pair[::-1]):
            assert same(answer, gold)[0] is equal, (answer, gold)


@pytest.mark.parametrize("letter", ["m", "g", "h", "s", "L", "N", "J", "W", "V"])
@pytest.mark.parametrize("form", ["5\\text{{ {}}}", "5 \\text{{{}}}", "5\\,\\mathrm{{{}}}", "5\\mathrm{{{}}}"])
def test_a_letter_in_text_behind_a_number_is_a_unit(letter, form):
    assert same(form.format(letter), "5")[0]
    assert not same(form.format(letter), "6")[0]


def test_units_have_one_spelling():
    check(
        [
            ("5\\text{ hours}", "5\\text{ h}"),
            ("5 \\text{ s}", "5 seconds"),
            ("5\\text{ L}", "5 liters"),
            ("5\\text{ ml}", "5 mL"),
            ("5\\text{ m}^2", "5 square meters"),
            ("5\\,\\mathrm{m}/\\mathrm{s}", "5\\text{ m/s}"),
            ("60\\text{ kilometers per hour}", "60 km/h"),
            ("5 m", "5m"),
            ("5m/s", "5 m/s"),
            ("5m", "5\\text{ meters}"),
            ("50 percent", "50\\%"),
            ("9.8\\ \\mathrm{m\\,s^{-2}}", "9.8 m/s^2"),
            ("6\\text{ N}\\cdot\\text{m}", "6"),
            ("40\\ \\text{mi}/\\text{h}", "40 mph"),
            ("2\\pi\\,r", "2\\pi r"),
            ("2\\text{x}", "2x"),
            ("3\\text{m} + 2", "3m+2"),
        ],
        True,
    )
    check(
        [
            ("5 \\text{ s}", "5 hours"),
            ("5m", "5\\text{ cm}"),
            ("5\\text{ m}", "5 m^2"),
            ("2\\text{x}", "2"),
            ("5\\text{ N}", "5\\text{ J}"),
        ],
        False,
    )


def test_every_name_of_a_unit_is_its_symbol():
    for symbol, names in units.UNITS.items():
        assert {units.unit_of(n) for n in (symbol, *names.split())} == {symbol}
        assert all(units.unit_of(f"{n}s") == symbol for n in names.split() if len(n) > 2 and n != "inches")


def test_degrees_close_no_brace_that_they_did_not_open():
    check(
        [
            ("\\sin{30^\\circ}", "\\frac12"),
            ("\\cos{60^{\\circ}}", "\\frac12"),
            ("\\frac{90^\\circ}{2}", "45"),
            ("60^\\circ", "\\frac{\\pi}{3}"),
            ("60^\\circ", "\\frac{\\pi}{3}\\text{ rad}"),
        ],
        True,
    )
    check([("60^\\circ", "\\frac{\\pi}{4}"), ("\\cos{60^\\circ}", "60")], False)
    assert final_number("\\boxed{\\frac{90^\\circ}{2}}") == 45


def test_chains_of_equations_are_compared_side_by_side():
    check(
        [
            ("x=2y=z", "z=x=2y"),
            ("AB=BC=CA", "CA=AB=BC"),
            ("\\frac x2=\\frac y3=\\frac z4", "6x=4y=3z"),
            ("A=\\pi r^2=25\\pi", "A=25\\pi"),
            ("x=2+3=5", "x=5"),
            ("A=\\pi r^2=25\\pi", "25\\pi"),
            ("P=2l+2w=30\\text{ cm}", "P=30"),
            ("u=v=w", "2u=2v=2w"),
        ],
        True,
    )
    check([("x=2y=z", "x=3y=z"), ("AB=BC=CA", "AB=XY=CA"), ("x=1=y", "x=7=y"), ("x=y=5", "x=5")], False)


ANSWERS = [
    ("The answer is: 5", "5"),
    ("The answer is: $x+1$", "x+1"),
    ("The final answer is $x+1$. I hope it is correct.", "x+1"),
    ("The answer is $\\frac12$, as shown.", "\\frac12"),
    ("**Final answer:**\n\nx+1", "x+1"),
    ("Final answer:\n\\[\nx+1\n\\]", "x+1"),
    ("<answer>x+1</answer>", "x+1"),
    ("The answer is [0,1).", "[0,1)"),
    ("The answer is |x|.", "|x|"),
    ("The answer is √2.", "√2"),
    ("The answer is $5$ cm.", "5 cm"),
    ("The answer is $x=1$ or $x=-1$, of course.", "x=1 or x=-1"),
    ("The answer is x+1, because x > 2.", "x+1"),
    ("The answer is x+1<|eot_id|>", "x+1"),
    ("So 2+3 = \\boxed{5}. The answer is \\boxed{5}", "5"),
    ("\\boxed{1} \\text{ and } \\boxed{2}", "1, 2"),
    ("We get \\boxed{4}, so the total is \\boxed{9}", "9"),
    ("\\boxed{4}\n\n\\boxed{9}", "9"),
    ("First \\boxed{3} of them, in the end \\boxed{5}", "5"),
    ("\\boxed{\\left\\{1, 2\\right\\}}", "\\left\\{1, 2\\right\\}"),
    ("It is \\boxed{4", ""),
    ("#### Final Answer\n\n$x+1$", "x+1"),
    ("The answers are $2$ and $3$.", "2 and 3"),
    ("The answer is therefore $x+1$.", "x+1"),
    ('The answer is "No", because.', "No"),
    ("The answer is $1.5$ million.", "1.5 million"),
    ("3 laps, the answer isn't known", "3 laps, the answer isn't known"),
]


@pytest.mark.parametrize(("text", "answer"), ANSWERS)
def test_an_answer_is_found_where_it_stands(text, answer):
    assert final_answer(text) == answer
    assert not answer or (same(text, answer)[0] and same_number(text, answer)[0])


def test_boxes_of_one_sentence_are_several_values():
    for compare in (same, same_number):
        assert not compare("\\boxed{1} \\text{ and } \\boxed{2}", "2")[0]
    assert same("$x=\\boxed{1}$ or $x=\\boxed{2}$", "2, 1")[0]


def test_a_choice_is_its_letter_or_its_value():
    check(
        [
            ("\\textbf{(A)} 5", "5"),
            ("\\textbf{(A)} 5", "A"),
            ("Answer: A. Since x > 2.", "A"),
            ("The answer is **(C)** $x+1$.", "x+1"),
        ],
        True,
    )
    check([("(A) 5", "(B) 5"), ("(A) 5", "B"), ("(A) 5", "6")], False)


def test_a_number_in_another_base_is_that_number():
    check([("10_3", "3"), ("12_{8}", "10")], True)
    check([("10_3", "10"), ("12_2", "4"), ("10_000", "10")], False)


def test_what_sympy_cannot_prove_is_held_against_digits():
    check(
        [
            ("\\arctan\\frac12+\\arctan\\frac13", "\\frac\\pi4"),
            ("\\sqrt[3]{2+\\sqrt5}+\\sqrt[3]{2-\\sqrt5}", "1"),
            ("\\sqrt[3]{-8}", "-2"),
            ("cbrt(-27)", "-3"),
        ],
        True,
    )
    check([("e^{\\pi\\sqrt{163}}", "262537412640768744"), ("\\pi+e^{-400}", "\\pi"), ("\\sqrt{-4}", "-2")], False)


def test_sets_are_read_by_what_their_members_meet():
    check(
        [
            ("\\{x \\mid x>2\\}", "(2,\\infty)"),
            ("\\{t : t>2\\}", "x>2"),
            ("\\{x | |x| < 2\\}", "(-2,2)"),
            ("\\{x \\mid x>2, x<5\\}", "(2,5)"),
            ("\\{x : x<1 \\text{ or } x>5\\}", "(-\\infty,1)\\cup(5,\\infty)"),
            ("\\{x\\in\\mathbb{R} \\mid x\\ne 2\\}", "x \\not= 2"),
            ("\\{x \\mid x^2=4\\}", "\\{2,-2\\}"),
            ("\\{x \\in (0,5) \\mid x > 2\\}", "(2,5)"),
            ("\\{x \\mid x > a\\}", "x > a"),
            ("\\lvert x\\rvert<2", "-2<x<2"),
        ],
        True,
    )
    check([("\\{x\\in\\mathbb{Z} \\mid x>2\\}", "(2,\\infty)"), ("\\{x \\mid x>2\\}", "[2,\\infty)")], False)


@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 8000, "\\boxed{1}" * 4000, "\\boxed{1} and " * 4000, "the answer is $" * 4000, "answer is $ x" * 4000]
    + ["the answer is " + piece * 8000 for piece in ("$x$ ", "$1$,", "$", "\\[", "x, ", "(A) ", "x. ", " ")],
)
def test_an_answer_is_found_in_linear_time(text):
    for piece, limit in ((text[: len(text) // 10], 0.25), (text, 1.0)):
        began = time.process_time()
        final_answer(piece)
        assert time.process_time() - began < limit
