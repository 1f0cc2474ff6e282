"""Figures of usage: neither too high nor too low, and no budget passed whatever they say."""

from __future__ import annotations

import pytest
from says import completion, whole

from interlace.distill.folder import DistillRun
from interlace.distill.ledger.records import Exhausted
from interlace.distill.run import generate, status

LONG = "It is seven, as was to be shown. " * 60  # about 2,000 letters
HIDDEN = 9500


def requests(run):
    """(counted, prompt tokens, answer tokens) of every request."""
    folder = DistillRun(run)
    ledger = folder.open_ledger()
    found = ledger.file.db.execute("SELECT counted, prompt_tokens, answer_tokens FROM requests").fetchall()
    ledger.close()
    return found


def counted(says, recipe, tmp_path, text, usage, rows=1):
    file = recipe(says(whole(completion(text, usage=usage))).url, rows=rows)
    file.write_text(file.read_text().replace("max_tokens = 64", "max_tokens = 1000"))
    generate(file, tmp_path / "run")
    return requests(tmp_path / "run")[0]


@pytest.mark.parametrize("usage", [(0, 0, 0), (20, 0, 20), (20, 1, 21), (0, 1, 1), None, {}, {"total_tokens": 0}])
def test_an_answer_of_2000_letters_took_more_than_a_hundred_tokens(says, recipe, tmp_path, usage):
    how, prompt, answer = counted(says, recipe, tmp_path, LONG, usage)
    assert how == "estimated"
    assert prompt > 0
    assert 100 < answer <= 1000


def test_an_answer_longer_than_was_asked_for_is_estimated_by_its_length(says, recipe, tmp_path):
    file = recipe(
        says(whole(completion(LONG * 20, usage=None))).url, rows=1
    )  # 40,000 letters where 64 tokens were asked
    generate(file, tmp_path / "run")
    assert requests(tmp_path / "run")[0][2] > 2000


@pytest.mark.parametrize("usage", [(20, 450, 470), (20, 450, 0), (20.0, 450.0, 470.0), (20, 450, None)])
def test_figures_that_can_be_are_believed(says, recipe, tmp_path, usage):
    assert counted(says, recipe, tmp_path, LONG, usage) == ("reported", 20, 450)


@pytest.mark.parametrize(
    "usage",
    [
        (20, 30, 20 + 30 + HIDDEN),
        {"prompt_tokens": 20, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": HIDDEN}},
        {"prompt_tokens": 20, "completion_tokens": 30 + HIDDEN, "total_tokens": 50 + HIDDEN},
    ],
)
def test_reasoning_that_is_not_shown_is_counted(says, recipe, tmp_path, usage):
    _, prompt, answer = counted(says, recipe, tmp_path, "It is 7.", usage)
    assert prompt == 20
    assert answer == 30 + HIDDEN


HELD = 50 + HIDDEN  # prompt and answer, with reasoning that is not shown
ODD = {
    "the total alone": {"total_tokens": HELD},
    "no prompt": {"completion_tokens": 30, "total_tokens": HELD},
    "a negative prompt": {"prompt_tokens": -1, "completion_tokens": 30, "total_tokens": HELD},
    "no answer": {"prompt_tokens": 20, "total_tokens": HELD},
    "an answer of null": {"prompt_tokens": 20, "completion_tokens": None, "total_tokens": HELD},
    "details, no prompt": {"completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": HIDDEN}},
    "details, no answer": {"prompt_tokens": 20, "output_tokens_details": {"reasoning_tokens": HIDDEN}},
    "reasoning beside": {"prompt_tokens": 20, "completion_tokens": 30, "reasoning_tokens": HIDDEN},
    "other names": {"input_tokens": 20, "output_tokens": 30 + HIDDEN, "total_tokens": HELD},
    "text": {"prompt_tokens": "20", "completion_tokens": "30", "total_tokens": f"{HELD}"},
    "far more": {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 250_000},
    "a long answer": {"prompt_tokens": 20, "completion_tokens": 250_000},
}


@pytest.mark.parametrize("usage", ODD.values(), ids=ODD)
def test_each_figure_counts_by_itself(says, recipe, tmp_path, usage):
    _, prompt, answer = counted(says, recipe, tmp_path, "It is 7.", usage)
    assert prompt + answer >= max(int(v) for v in [HIDDEN, *usage.values()] if isinstance(v, int | str))
    assert 0 < prompt < 50


@pytest.mark.parametrize("total", [10**12, -5, "many", True])
def test_a_total_that_cannot_be_is_passed_over(says, recipe, tmp_path, total):
    assert counted(says, recipe, tmp_path, "It is 7.", (20, 8, total))[1:] == (20, 8)


@pytest.mark.parametrize("limit", ["max_cost = 0.01", "max_tokens = 6000"])
def test_a_budget_binds_though_the_teacher_says_that_nothing_was_used(says, recipe, tmp_path, limit):
    sim = says(whole(completion(LONG, usage=(0, 0, 0))))
    file = recipe(sim.url, rows=60, run=limit)
    file.write_text(file.read_text().replace("max_tokens = 64", "max_tokens = 1000"))
    with pytest.raises(Exhausted, match=limit.split()[0]):
        generate(file, tmp_path / "run")
    assert len(sim.asked) < 20


@pytest.mark.parametrize("usage", [(20, 30, HELD), *(ODD[name] for name in ("the total alone", "text"))])
def test_reasoning_that_is_not_shown_passes_no_budget_by_more_than_its_first_request(says, recipe, tmp_path, usage):
    sim = says(whole(completion(usage=usage)))
    file = recipe(sim.url, rows=60, run="max_tokens = 50_000")
    for _ in range(3):
        with pytest.raises(Exhausted, match="max_tokens"):
            generate(file, tmp_path / "run")
    assert len(sim.asked) * (50 + HIDDEN) <= 50_000
    spent = status(tmp_path / "run")["spent"]
    assert spent["tokens"] == len(sim.asked) * (50 + HIDDEN)
