"""What one request meets is not what the account meets."""

from __future__ import annotations

import pytest
from ledgers import rows_of
from says import completion, whole

from interlace.base.errors import ConfigError
from interlace.distill.run import generate

FLAGGED = {"error": {"message": "Input was flagged by moderation", "code": 403, "metadata": {"reasons": ["violence"]}}}
POLICY = {"error": {"message": "The response was filtered due to content management policy.", "code": "content_filter"}}
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
