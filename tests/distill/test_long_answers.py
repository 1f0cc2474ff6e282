"""Answers made to be slow or large: each is read in a moment, or counts as wrong, and ends its own row at most."""

from __future__ import annotations

import gc
import time

import pytest
from says import completion, whole

from interlace.distill.folder import DistillRun
from interlace.distill.run import generate
from interlace.distill.steps.instruct import listed
from interlace.distill.steps.marks import read_marks
from interlace.distill.steps.refusals import is_refusal
from interlace.verify.code import code_of
from interlace.verify.numbers import all_numbers, final_number, same_number
from interlace.verify.structure import as_json

N = 8000
SECONDS = 1.0  # of the processor: each takes a few milliseconds where its time is linear, and minutes where it is not
NINES = "9" * 5000
HARD = {
    "a number and spaces": "1" + " " * N,
    "spaces": " " * N,
    "tabs": "\t" * N,
    "no-break spaces": "1" + "\u00a0" * N,
    "newlines": "\n" * N,
    "underscores by line": "_\n" * N,
    "a fraction far away": "1" + " " * N + "\\frac{1}{2}",
    "a power far away": "1" + " " * N + "\\times 10^2",
    "a power without end": "1 × 10 ^" + " " * N,
    "a box far away": "\\boxed" + " " * N + "{1}",
    "many boxes": "\\boxed{" * N,
    "the answer and stars": "answer" + "*" * N,
    "the answer and dots": "the answer is " + "." * N,
    "many answers": "the answer is " * (N // 10),
    "commas": "1," * N,
    "a slash and spaces": "1 /" + " " * N + "2",
    "halves": "½" * N,
    "halves and a digit": "½" * N + "1",
    "squares and a digit": "m²" * N + "1",
    "dashes": "-" * N,
    "dashes and spaces": "- " * N,
    "negations": "The answer is 5 " + "not " * N,
    "reasons": "because " * N,
    "signs of equality": "1 = " * N,
    "groups of digits": "100 " * N,
    "periods": "0.(1" * N,
    "tags": "<a" * N,
    "an open fence": "```json\n" + " " * N,
    "an open fence and newlines": "```json\n" + "\n" * N,
    "fences": "```\n" * N,
    "a list and newlines": "1. a" + "\n" * N,
    "a list and spaces": "1. a" + " " * N,
    "a long list": "1. a\n" * N,
    "brackets": "[" * N,
    "a criterion and quotes": ("a " + '"' * 9 + " " * 9) * (N // 10),
    "a criterion and numbers": "a: 9, " * (N // 5),
    "scores": "score: " * (N // 5),
    "bars": "| a " * (N // 3) + "\n" + "| 3 " * (N // 3),
    "courtesies": "I'm sorry, but " * (N // 10),
}


def marks(text):
    return read_marks(text, ["a", "b"], 4)


def seconds(work, text):
    gc.disable()  # a collection of all that thousands of tests have left takes a quarter of a second
    try:
        began = time.process_time()  # not the clock's, which other work beside the tests moves
        work(text)
        return time.process_time() - began
    finally:
        gc.enable()


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
@pytest.mark.parametrize("work", [final_number, as_json, listed, is_refusal, marks, code_of])
def test_what_reads_answers_in_our_process_takes_linear_time(work, text):
    small = text[: len(text) // 10] if work is not as_json else text[: len(text) // 4]
    assert seconds(work, small) < SECONDS / 4  # so that a quadratic one fails soon
    assert seconds(work, text) < SECONDS


@pytest.mark.parametrize(
    "text",
    [NINES, f"1/{NINES}", f"{NINES}/7", f"0.{NINES}", f"1e{NINES}", "1" + ",000" * 2000, f"1 1/{NINES}", f"-{NINES}",
     f"10^{{{NINES}}}", f"\\frac{{1}}{{{NINES}}}", f"1.5e-{NINES}", "9" * 200_000],
)  # fmt: skip
def test_a_number_of_thousands_of_digits_is_read_or_is_none(text):
    for said in (text, f"The answer is {text}.", f"\\boxed{{{text}}}"):
        assert seconds(all_numbers, said) < SECONDS
        assert same_number(said, "7")[0] is False


@pytest.mark.parametrize("text", [NINES, f"-{NINES}", f"{NINES[:400]}.{NINES[:400]}"])
def test_a_long_number_is_the_same_as_itself_and_no_other(text):
    assert same_number(f"The answer is {text}.", text)[0]
    assert not same_number(f"The answer is {text}1.", text)[0]


VERIFY = '[[steps]]\nname = "v"\nkind = "verify"\nby = "{}"\ngold = "7"\nseconds = 1.0\nwrong = "keep"\n'


@pytest.mark.parametrize("by", ["numeric", "symbolic", "exact"])
@pytest.mark.parametrize("text", [NINES, f"1/{NINES}", "1" + " " * 8000, "(" * 3000, "9**9**9**9"])
def test_an_answer_that_is_hard_to_read_ends_in_a_verdict_and_not_the_run(says, recipe, tmp_path, by, text):
    sim = says(
        lambda body, _: whole(completion(text if "What is 0 " in body["messages"][-1]["content"] else "It is 7"))
    )
    began = time.monotonic()
    generate(recipe(sim.url, VERIFY.format(by), rows=3), tmp_path / "run")
    assert time.monotonic() - began < 10
    folder = DistillRun(tmp_path / "run")
    ledger = folder.open_ledger()
    found = list(ledger.rows.ordered(folder.stages[-1].id, state=None))
    ledger.close()
    assert len(found) == 3
    if by != "exact":
        assert found[0].values.get("right") in (False, None)
        assert by != "numeric" or found[1].values["right"] is True
