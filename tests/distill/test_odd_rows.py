"""A row that a step fails on ends alone, in steps that see all rows at once as well."""

from __future__ import annotations

import json

import pytest
from ledgers import rows_of
from says import completion, whole

from interlace.base.errors import ConfigError
from interlace.distill.run import generate
from interlace.distill.steps import choose, near

FAILS = "{{ 1 // (a - 1) }}"  # on the second row
STEPS = {
    "dedup": f"text = '{FAILS} of {{{{ a }}}}'",
    "dedup of the same": f"text = '{FAILS} of {{{{ a }}}}'\nthreshold = 1.0",
}


def recipe_of(tmp_path, kind, more, rows, *, teacher=""):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "r.toml"
    file.write_text(f"""{teacher}
[[steps]]
kind = "jsonl"
path = "in.jsonl"
[[steps]]
name = "odd"
kind = "{kind}"
{more}
[[steps]]
name = "after"
kind = "filter"
column = "t"
shortest = 1
[output]
user = "{{{{ t }}}}"
assistant = "x"
""")
    return file


@pytest.mark.parametrize("name", STEPS)
def test_a_template_that_fails_on_one_row_drops_it_alone(tmp_path, name):
    rows = [{"a": a, "t": "x"} for a in (0, 1, 2, 2)]
    file = recipe_of(tmp_path, name.split()[0], STEPS[name], rows)
    for _ in range(2):
        generate(file, tmp_path / "run")
    assert [r.state for r in rows_of(tmp_path / "run", "odd")] == ["ok", "dropped", "ok", "dropped"]
    found = rows_of(tmp_path / "run", "odd")
    assert "ZeroDivisionError" in found[1].reason
    assert found[3].values["near"] == found[2].key  # the numbers of rows are not shifted by the one that ended
    assert len(rows_of(tmp_path / "run", "after")) == 2


@pytest.mark.parametrize("module", [choose, near])
def test_an_error_of_what_a_row_holds_ends_it_alone(tmp_path, module, monkeypatch):
    kind, more, what = {
        choose: ("best", "vote = 't'", "_ballot"),
        near: ("dedup", "text = '{{ t }}'\nthreshold = 1.0", "digest"),
    }[module]
    right = getattr(module, what)

    def fails(text):
        if text == "odd":
            raise RecursionError("too deep")
        return right(text)

    monkeypatch.setattr(module, what, fails)
    rows = [{"t": t} for t in ("one", "odd", "three")]
    generate(recipe_of(tmp_path, kind, more, rows), tmp_path / "run")
    assert [(r.state, r.reason) for r in rows_of(tmp_path / "run", "odd")] == [
        ("ok", ""),
        ("failed", "the step failed on it: RecursionError: too deep"),
        ("ok", ""),
    ]


def test_a_template_that_is_unsafe_ends_the_run(tmp_path):
    loop = "text = '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ t }}'"
    with pytest.raises(ConfigError, match=r"steps\.odd\.text"):
        generate(recipe_of(tmp_path, "dedup", loop, [{"t": "x"}]), tmp_path / "run")


def test_a_score_beyond_all_numbers_is_the_highest_and_ends_nothing(says, recipe, tmp_path):
    huge = "1" + "0" * 400
    sim = says(lambda body, number: whole(completion(huge if number == 2 else "3")))
    steps = '[[steps]]\nkind = "best"\nhighest = "score"\n'
    file = recipe(sim.url, steps, rows=1, teacher="connections = 1")
    more = 'into = "score"\nsamples = 3\nschema = {type = "integer"}\nmax_tokens = 64'
    file.write_text(file.read_text().replace("max_tokens = 64", more).replace("{{ answer }}", "{{ score }}"))
    generate(file, tmp_path / "run")
    (kept,) = [r for r in rows_of(tmp_path / "run", "best") if r.state == "ok"]
    assert kept.values["score"] == int(huge)


def test_new_tasks_are_asked_for_with_the_first_seed_that_the_system_s_turn_does_not_fail_on(says, tmp_path):
    sim = says(whole(completion("1. Write a poem about rain\n2. Count the stars in winter\n3. Draw a map of a town")))
    teacher = f'[teachers.sim]\nmodel = "m"\nbase_url = "{sim.url}"\nlicence = "x"\nterms = "own"'
    more = 'teacher = "sim"\ncolumn = "t"\ncount = 3\nsystem = "{{ 1 // (a - 1) }}"'
    rows = [{"a": a, "t": f"Write about {a} things"} for a in (1, 2)]
    generate(recipe_of(tmp_path, "self_instruct", more, rows, teacher=teacher), tmp_path / "run")
    assert sim.asked[0]["messages"][0] == {"role": "system", "content": "1"}
    assert len(rows_of(tmp_path / "run", "odd")) == 3
