"""What one request meets is not what the account meets."""

from __future__ import annotations

import json
import threading

import pytest
from ledgers import rows_of
from says import completion, whole

from interlace.base.errors import ConfigError
from interlace.distill.run import generate
from interlace.distill.teachers.outcomes import flags

FLAGGED = {"error": {"message": "Input was flagged by moderation", "code": 403, "metadata": {"reasons": ["violence"]}}}
POLICY = {"error": {"message": "The response was filtered due to content management policy.", "code": "content_filter"}}
WALL = b"<html><head><title>Attention Required!</title></head><body>Sorry, you have been blocked</body></html>"
ROUTE = {"error": {"message": "No endpoints found that support this request", "code": 404}}


def ended(run):
    """(state, reason) of every answer's row."""
    return [(r.state, r.reason) for r in rows_of(run)]


def odd_one(status, body, which):
    """Refuses one question, and answers the others."""

    def reply(request, _):
        asked = request["messages"][-1]["content"]
        return whole(body, status=status) if asked == f"What is {which} + 7?" else whole(completion())

    return reply


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        ("403 Forbidden", FLAGGED, "flagged"),
        ("400 Bad Request", POLICY, "policy"),
        ("404 Not Found", ROUTE, "No endpoints"),
        (
            "402 Payment Required",
            {"error": {"message": "This request requires more credits, or fewer max_tokens"}},
            "fewer",
        ),
        ("451 Unavailable For Legal Reasons", {"error": {"message": "blocked"}}, "blocked"),
    ],
)
@pytest.mark.parametrize(("which", "connections"), [(0, 1), (7, 8)])
def test_a_question_that_is_refused_ends_its_row_alone(says, recipe, tmp_path, status, body, word, which, connections):
    sim = says(odd_one(status, body, which))
    file = recipe(sim.url, rows=8, teacher=f"connections = {connections}\ntries = 2")
    generate(file, tmp_path / "run")
    found = ended(tmp_path / "run")
    assert [s for s, _ in found].count("ok") == 7
    state, why = found[which]
    assert state in ("refused", "failed")
    assert word in why
    before = len(sim.asked)
    generate(file, tmp_path / "run")
    assert len(sim.asked) == before


@pytest.mark.parametrize("body", [FLAGGED, POLICY])
@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request"])
def test_a_flagged_question_is_refused_and_not_failed(says, recipe, tmp_path, status, body):
    sim = says(odd_one(status, body, 3))
    generate(recipe(sim.url, rows=4), tmp_path / "run")
    assert ended(tmp_path / "run")[3][0] == "refused"


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_a_key_that_may_do_nothing_ends_the_run_soon_and_loses_no_row(says, recipe, tmp_path, status):
    allowed = []
    refusal = whole({"error": {"message": "this key may not use the model"}}, status=status)
    sim = says(lambda *_: whole(completion()) if allowed else refusal)
    file = recipe(sim.url, rows=40)
    with pytest.raises(ConfigError, match="key"):
        generate(file, tmp_path / "run")
    assert len(sim.asked) < 30
    allowed.append(True)
    generate(file, tmp_path / "run")
    assert ended(tmp_path / "run") == [("ok", "")] * 40  # none was written down as failed


@pytest.mark.parametrize("status", ["401 Unauthorized", "402 Payment Required", "403 Forbidden"])
def test_what_begins_to_be_refused_amid_a_run_ends_it(says, recipe, tmp_path, status):
    refusal = whole({"error": {"message": "gone"}}, status=status)
    sim = says(lambda _, number: whole(completion()) if number <= 10 else refusal)
    with pytest.raises(Exception, match="gone"):
        generate(recipe(sim.url, rows=200, teacher="connections = 4"), tmp_path / "run")
    assert len(sim.asked) < 60


def number_of(body):
    """The row that a request came of."""
    return int(body["messages"][-1]["content"].split()[2])


def states(run):
    return [state for state, _ in ended(run)]


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "451 Blocked", "402 Payment Required"])
@pytest.mark.parametrize("body", [WALL, {"error": {"message": "blocked"}}])
def test_refusals_that_come_before_the_first_answer_end_their_rows_alone(says, recipe, tmp_path, status, body):
    refused, all_out = [], threading.Event()

    def reply(request, _):
        if number_of(request) < 3:
            refused.append(request)
            if len(refused) >= 3:
                all_out.set()
            return whole(body, status=status)
        all_out.wait(10)
        return whole(completion())

    generate(recipe(says(reply).url, rows=20, teacher="connections = 64\ntries = 2"), tmp_path / "run")
    assert states(tmp_path / "run") == ["failed"] * 3 + ["ok"] * 17
    assert "<" not in ended(tmp_path / "run")[0][1]


@pytest.mark.parametrize("connections", [1, 8])
@pytest.mark.parametrize("which", [range(10, 14), range(20, 40)])
def test_neighbours_that_are_refused_amid_a_run_end_their_rows_alone(says, recipe, tmp_path, connections, which):
    blocked = whole({"error": {"message": "blocked by guardrail"}}, status="403 Forbidden")
    sim = says(lambda body, _: blocked if number_of(body) in which else whole(completion()))
    generate(recipe(sim.url, rows=60, teacher=f"connections = {connections}"), tmp_path / "run")
    assert states(tmp_path / "run") == ["refused" if i in which else "ok" for i in range(60)]


def test_a_teacher_that_answered_once_is_known_at_the_next_start(says, recipe, tmp_path):
    sim = says(lambda body, _: whole(WALL, status="403 Forbidden") if number_of(body) >= 4 else whole(completion()))
    generate(recipe(sim.url, rows=4), tmp_path / "run")
    generate(recipe(sim.url, rows=10, teacher="tries = 1"), tmp_path / "run")
    assert states(tmp_path / "run") == ["ok"] * 4 + ["failed"] * 6


@pytest.mark.parametrize(
    ("body", "run"),
    [
        ({"message": "Your key has no access to omni-moderation-latest", "code": "model_not_allowed"}, ""),
        ({"message": "This account has been flagged for suspicious activity; contact support."}, ""),
        ({"message": "Your organization was flagged by our safety system."}, ""),
        ({"message": "Your request was blocked by our content policy."}, ""),
        ({"message": "Your request was blocked by our content policy."}, "max_tokens = 100_000"),
    ],
)
def test_an_account_that_is_refused_ends_the_run_whatever_the_words(says, recipe, tmp_path, body, run):
    allowed = []
    refusal = whole({"error": body}, status="403 Forbidden")
    sim = says(lambda *_: whole(completion()) if allowed else refusal)
    file = recipe(sim.url, rows=12, run=run)
    with pytest.raises(ConfigError, match=r"different questions in a row were refused \(403.*key may use model 'sim'"):
        generate(file, tmp_path / "run")
    allowed.append(True)
    generate(file, tmp_path / "run")
    assert states(tmp_path / "run") == ["ok"] * 12


def test_a_question_alone_ends_no_run_though_its_key_may_do_nothing(says, recipe, tmp_path):
    sim = says(whole({"error": {"message": "no"}}, status="403 Forbidden"))
    generate(recipe(sim.url, rows=2, teacher="tries = 2"), tmp_path / "run")
    assert states(tmp_path / "run") == ["failed"] * 2


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ({"message": "no", "code": "content_filter"}, (True, True)),
        ({"message": "no", "type": "moderation_error"}, (True, True)),
        ({"message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, (True, True)),
        ({"message": "no", "metadata": {"flagged_input": "x"}}, (True, True)),
        ({"message": "Output blocked by content filtering policy", "type": "invalid_request_error"}, (False, True)),
        ("Your prompt was flagged as potentially violating our usage policy.", (False, True)),
        ({"message": "too long: 'how does content moderation work?'"}, (False, False)),
        ({"message": "too long: 'I don't like moderation' is 9 tokens"}, (False, False)),
        ({"message": 'cannot read "flagged'}, (False, False)),
        ({"message": "prompt: what is moderation", "code": "context_length_exceeded"}, (False, False)),
        ({"message": "This account has been flagged"}, (False, False)),
        ({"message": "no access to omni-moderation-latest"}, (False, False)),
    ],
)
def test_codes_are_read_before_words_and_no_words_between_quotes(error, found):
    assert flags(json.dumps({"error": error})) == found


def test_no_first_rows_end_the_run_at_every_start(says, recipe, tmp_path):
    sim = says(lambda body, _: whole(WALL, status="403 Forbidden") if number_of(body) < 20 else whole(completion()))
    file = recipe(sim.url, rows=60, teacher="tries = 2\nconnections = 4")
    with pytest.raises(ConfigError, match="16 different questions"):
        generate(file, tmp_path / "run")
    generate(file, tmp_path / "run")
    assert states(tmp_path / "run") == ["failed"] * 20 + ["ok"] * 40
