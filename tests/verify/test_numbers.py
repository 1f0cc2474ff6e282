"""Which number an answer gives: its sign, what stands beside it, the clause it stands in, its scale and its unit."""

from __future__ import annotations

import pytest

from interlace.verify.numbers import all_numbers, final_number, same_number

MINUS = [
    r"\boxed{- 5}", r"\boxed{-{5}}", r"\boxed{-\left(\frac{10}{2}\right)}", r"\boxed{- \frac{10}{2}}",
    r"\boxed{\left(-5\right)}", r"\boxed{\text{-}5}", r"\boxed{\minus 5}", r"\boxed{x = - 5}", r"\boxed{-\$5}",
    r"\boxed{\$-5}", "The answer is - 5.", "The answer is $-$5.", "The answer is: $- 5$", "The answer is −$5.",
    "The answer is \u20115.", "The answer is \uff0d5.", "The answer is —5", "The answer is minus 5.",
    "The temperature is negative 5 degrees.", "#### - 5", "- 5", "The change is 3 - 8 = - 5.",
]  # fmt: skip


@pytest.mark.parametrize("text", MINUS)
def test_a_minus_is_read_however_far_from_its_number(text):
    assert final_number(text) == -5


@pytest.mark.parametrize("text", ["The answer is— 5", "- 5 apples", "• 5 apples", "the final — and only — answer is 5"])
def test_a_dash_that_parts_words_is_no_minus(text):
    assert final_number(text) == 5


BOXED = [
    r"3\theta", r"2\lambda", r"3\mathrm{i}", r"3 i", r"3 e", r"3 x", r"3a", r"4k", r"5m", r"2+3i", r"2 + i", r"x+3",
    r"x - 3", r"n+1", r"2n-1", r"\frac{3}{4}x", r"\frac{n+1}{2}", r"y = 3x", r"f(3)", r"\arctan 3", r"\exp(3)",
    r"\log 100", r"3\sin 30^\circ", r"\max(3)", r"\gcd(6, 9)", r"\lfloor 3.7\rfloor", r"\sqrt[3]{8}",
    r"\sum_{k=1}^{3} k", r"x \not= 3", r"x \nleq 3", r"x \equiv 3", r"> 3", r"3 \bmod 7", r"5 \cdot 4",
    r"1+\frac{1}{2}", r"1/2 + 1/3", r"3 \div 4", r"5^n", r"12!", r"a_5", r"x=3\text{ or }x=5", r"3\text{ and }5",
    r"(2,3)", r"3; 5", r"3\text{ hours and }30\text{ minutes}", r"10\%\text{ of }50", r"1011_{\text{two}}",
    r"\begin{pmatrix}3\end{pmatrix}", r"12\pi\text{ cm}^2",
]  # fmt: skip
SAID = [
    "7 - 3", "3 + 4", "6 \\times 7", "6 * 7", "6 x 7", "8 ÷ 2", "5 choose 2", "7 plus 3", "5 times 3", "3-5", "3–5",
    "$5–$7", "12 to 15 apples", "3 or 5", "2024-01-05", "1/2/2024", "5 lb 3 oz", "5'6\"", "3 feet, 4 inches",
    "3 dollars and 50 cents", "2 weeks and 3 days", "1 hour and 15 minutes", "3n", "3 x", "5 - 2i", "x+3",
    "3 squared", "3 pi", "log 100", "the square root of 16", "less than 5", "more than 5", "not 5", "4:5", "7 R 3",
    "3 4", "3/4 + 1", "n = 2, m = 3", "2^5", "3 \\theta", "f(3)",
]  # fmt: skip


@pytest.mark.parametrize(
    "text", [f"\\boxed{{{t}}}" for t in BOXED] + [f"The answer is {t}." for t in SAID] + ["#### 5-10"]
)
def test_a_number_beside_anything_but_units_and_words_is_no_answer(text):
    assert final_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "We get 3x + 5",
        "So the length is 4√2",
        "That leaves 20 - 5",
        "x ≠ 3",
        "2 to 3 hours",
        "between 3 and 5",
        "the ratio is 6:5",
    ],
)
def test_a_text_that_ends_in_more_than_a_number_has_none(text):
    assert final_number(text) is None


def test_two_boxes_side_by_side_are_two_answers():
    assert final_number(r"so $\boxed{3}$ or $\boxed{5}$") is None
    assert not same_number(r"\boxed{3}, \boxed{5}", "5")[0]
    assert final_number(r"first \boxed{3} of them, in the end \boxed{5}") == 5


BESIDE = [
    r"\boxed{f(2) = 42}", r"\boxed{P(A) = 42\%}", r"\boxed{x \approx 42}", r"\boxed{\text{(C) } 42}",
    r"\boxed{\$42\text{ more than Tommy}}", r"\boxed{42\text{ pages a year}}", "Answer: (C) 42",
    "The answer is option (b) 42.", "The answer is $42 a week.", "The answer is $42/week.",
    "The answer is a 42-mile walk.", "The answer is 42 miles in 3 days.", "The answer is 42 times as many.",
    "The answer is 40 + 2 = 42.", "The answer is 42, not 43.", "答案是42", "最终答案：42。", "La respuesta es 42.",
]  # fmt: skip
CLAUSES = [
    "<answer>42</answer>", "Some 7 thoughts.\n<answer> 42 </answer>", "The answer is <b>42</b>.", "42<|im_end|>",
    "42.\n</s>", "The answer is **42**.<|eot_id|>", "40+2 = <<40+2=42>>42 clips", "**Final answer:**\n\n42",
    "**Answer**:\n\n---\n\n42", "Answer:\n```\n42\n```", "Final answer:\n\\[\n42\n\\]",
    "The answer is 42, because 6 > 5.", "The answer is 42 since 2^5 > 10.",
    "The answer is 42, which lies between 40 and 50.", "The answer is 42 (2 to 3 times more).",
    "The answer is 42 - which is less than 50.", "Thus x^2 = 1764, x = 42", "Since 3 < 5, we get 42",
    "He needs 2 to 3 hours. So 42", "We have 2x = 84, hence x = 42.", "12:00 is too late, 42 are left.",
    "He has 42 because 42 > 41", "| total | 42 |",
]  # fmt: skip


@pytest.mark.parametrize("text", BESIDE + CLAUSES)
def test_a_number_is_read_from_its_own_clause(text):
    assert final_number(text) == 42


SCALES = {
    "$1.5M": 1_500_000,
    "$2B": 2 * 10**9,
    "$3 bn": 3 * 10**9,
    "2.5k": 2500,
    "5 hundred": 500,
    "3 hundred thousand": 300_000,
    "2 dozen": 24,
    "2 millions": 2_000_000,
    "1.5 x 10^3": 1500,
    "3 X 10⁴": 30_000,
    "10³": 1000,
    "10 000": 10_000,
    "1,00,000": 100_000,
    "12,34,567": 1_234_567,
    "0.(3)": 1 / 3,
    "0.1(6)": 1 / 6,
    "0.\\bar{3}": 1 / 3,
    "0.\\dot{3}": 1 / 3,
    "\\sfrac12": 0.5,
    "5 ½": 5.5,
    "5 and a half": 5.5,
    "答案是5万": 50_000,
}


@pytest.mark.parametrize("text", SCALES)
def test_a_scale_belongs_to_its_number(text):
    assert float(final_number(f"The answer is {text}.")) == SCALES[text]


@pytest.mark.parametrize(
    ("text", "number"), [("\\$1.2\\text{ million}", 1_200_000), ("5\\text{ dozen}", 60), ("\\$5k", 5000)]
)
def test_a_scale_in_a_box_is_read_too(text, number):
    assert final_number(f"\\boxed{{{text}}}") == number


UNITS = [
    r"\mbox{ cm}^2", r"\textrm{ cm}^2", r"\text{ N/m}^2", r"\text{ m s}^{-2}", r"\text{ ft.}^2", r"\text{cm$^2$}",
    r"\,\mathrm{m}^4", r"\ \text{cm}^{-1}", r"\text{ units}^2", r"\text{ m}^3/\text{s}", r"\ \mathrm{N\cdot m}",
    r"\text{ sq. ft}", r"^\circ\text{ C}", r"~\text{ft}", r"\text{ mi/hr}", r"\text{ J}", r" m",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_of_any_power_does_not_hide_its_number(unit):
    assert final_number(f"\\boxed{{5{unit}}}") == 5


def test_numbers_beside_each_other_are_all_found():
    assert all_numbers("1 2,000 3.5 and -4, 5%") == [1, 2000, 3.5, -4, 5]
