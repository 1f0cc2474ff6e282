"""How an answer ended: a closed list of good ends, and everything else is named."""

from __future__ import annotations

import pytest
from ledgers import rows_of
from says import completion, whole

from interlace.distill.run import generate
from interlace.distill.teachers.outcomes import content
from interlace.distill.teachers.questions import judge

CALL = [{"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]


def state_of(body):
    return judge(content(body))


def ended(run):
    """(state, reason) of every answer's row."""
    return [(r.state, r.reason) for r in rows_of(run)]


@pytest.mark.parametrize("finish", ["stop", "STOP", "eos", "eos_token", "stop_sequence", "end_turn", "COMPLETE", None])
def test_an_answer_that_ended_by_itself_is_good(finish):
    assert state_of(completion(finish=finish)) == ("ok", "")


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_an_answer_cut_off_is_truncated_under_each_name(finish):
    assert state_of(completion(finish=finish))[0] == "truncated"


@pytest.mark.parametrize("finish", ["content_filter", "SAFETY", "RECITATION", "refusal"])
def test_an_answer_stopped_by_a_filter_is_refused(finish):
    assert state_of(completion(finish=finish))[0] == "refused"


@pytest.mark.parametrize(
    "finish",
    ["error", "abort", "insufficient_system_resource", "load", "tool_calls", "function_call", "tool_use", "stopp", 7],
)
def test_an_end_that_is_not_known_as_good_is_not_and_is_named(finish):
    state, why = state_of(completion(text="Half an ans", finish=finish))
    assert state != "ok"
    assert str(finish) in why


@pytest.mark.parametrize(
    "more",
    [{"tool_calls": CALL}, {"function_call": {"name": "look_up", "arguments": "{}"}}],
)
@pytest.mark.parametrize("finish", ["stop", "tool_calls"])
def test_text_beside_a_call_of_a_tool_is_no_answer(more, finish):
    body = completion(text="Let me look that up.", finish=finish)
    body["choices"][0]["message"] |= more
    state, why = state_of(body)
    assert state == "unparsable"
    assert "tool" in why


@pytest.mark.parametrize(
    "nothing", [{"tool_calls": None}, {"tool_calls": []}, {"function_call": None}, {"refusal": None}]
)
def test_fields_that_are_there_and_empty_change_nothing(nothing):
    body = completion()
    body["choices"][0]["message"] |= nothing
    assert state_of(body) == ("ok", "")


@pytest.mark.parametrize(
    "broken",
    [
        completion(text="Half an ans", error={"message": "upstream went away", "code": 502}),
        completion(text="Half an ans", error="upstream went away"),
        completion(text="Half an ans", finish="error") | {"detail": "upstream went away"},
    ],
)
def test_an_error_beside_half_an_answer_is_tried_again(says, recipe, tmp_path, broken):
    sim = says(lambda _, number: whole(broken if number == 1 else completion()))
    found = generate(recipe(sim.url, rows=1), tmp_path / "run")
    assert ended(tmp_path / "run") == [("ok", "")]
    assert len(sim.asked) == 2
    assert found["spent"]["lost_requests"] == 1  # it may have been charged


def test_an_error_in_a_choice_that_never_goes_away_is_the_row_s_reason(says, recipe, tmp_path):
    body = completion(text="Half an ans", finish="error")
    body["choices"][0]["error"] = {"message": "upstream went away", "code": 502}
    sim = says(whole(body))
    generate(recipe(sim.url, rows=1, teacher="tries = 2"), tmp_path / "run")
    ((state, why),) = ended(tmp_path / "run")
    assert state == "failed"
    assert "upstream went away" in why


def test_an_empty_error_beside_choices_is_none(says, recipe, tmp_path):
    sim = says(whole(completion(error=None)))
    generate(recipe(sim.url, rows=2), tmp_path / "run")
    assert ended(tmp_path / "run") == [("ok", "")] * 2
    assert len(sim.asked) == 2
