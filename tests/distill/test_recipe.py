"""Recipes that are wrong say what, where, and what to do; nothing is sent."""

from __future__ import annotations

import json

import pytest

from interlace.base.errors import ConfigError, DataError
from interlace.cli.main import run
from interlace.distill.estimate import estimate
from interlace.distill.recipe import build, read_recipe

TEACHER = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "licence": "x", "terms": "own"}
SEEDS = {"name": "seeds", "kind": "table", "columns": {"q": ["a", "b"]}}
ASK = {"name": "ask", "kind": "generate", "teacher": "t", "prompt": "{{ q }}"}
OUT = {"user": "{{ q }}", "assistant": "{{ answer }}"}


def table(*steps, output=None, teacher=None, **more):
    made = {"teachers": {"t": {**TEACHER, **(teacher or {})}}, "steps": list(steps) or [SEEDS, ASK]}
    return {**made, "output": OUT if output is None else output, **more}


GOOD = [SEEDS, ASK]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (table(stepz=[]), "stepz: unknown table; did you mean 'steps'?"),
        ({"output": OUT}, "steps: a recipe needs at least one table [[steps]]"),
        (table({"name": "x"}), "steps.x: has no kind; known: best"),
        (table({"kind": "generat"}), "steps.generat.kind: no step is called 'generat'; did you mean 'generate'?"),
        (table(SEEDS, {**ASK, "tempratur": 1}), "steps.ask.tempratur: unknown key; did you mean 'temperature'?"),
        (table(SEEDS, {**ASK, "temperature": -1}), "steps.ask.temperature"),
        (table(SEEDS, {**ASK, "teacher": "tt"}), "steps.ask.teacher: 'tt' is not in [teachers]; did you mean 't'?"),
        (table(ASK), "steps.ask: nobody feeds it"),
        (table(SEEDS, {**ASK, "from": "seed"}), "steps.ask.from: no step is called 'seed'; did you mean 'seeds'?"),
        (table({**SEEDS, "from": "ask"}, ASK), "steps.seeds.from: a step of kind 'table' makes rows of its own"),
        (
            table(SEEDS, {**ASK, "from": "two"}, {**ASK, "name": "two", "from": "ask"}),
            "steps: ask -> two -> ask take rows from each other in a circle",
        ),
        (table(SEEDS, ASK, ASK), "steps.ask: two steps are called 'ask'"),
        (
            table(SEEDS, {**ASK, "prompt": "{{ qq }}"}),
            "steps.ask.prompt: no column is called 'qq' here; did you mean 'q'?",
        ),
        (table(SEEDS, {**ASK, "prompt": "{% for %}"}), "steps.ask.prompt: is not a template: line 1"),
        (
            table(output={"user": "{{ q }}", "assistant": "{{ anwser }}"}),
            "output.assistant: no column is called 'anwser'",
        ),
        (table(output={"user": "{{ q }}"}), "output: needs templates user and assistant"),
        (table(output={**OUT, "from": "asks"}), "output.from: no step is called 'asks'; did you mean 'ask'?"),
        (table(output={**OUT, "keep": ["z"]}), "output.keep: no column is called 'z' here"),
        (table(teacher={"terms": "forbidden"}), "teachers.t.terms: forbid training other models on what it writes"),
        (table(teacher={"terms": "maybe"}), "teachers.t.terms"),
        (table(teacher={"licence": ""}), "teachers.t.licence"),
        (table(teacher={"base_url": "localhost:8000"}), "base_url: must be http://HOST"),
        (table(teacher={"base_url": "http://me:secret@host/v1"}), "base_url: holds a name, a password or a query"),
        (table(teacher={"kind": "local"}), "checkpoint: a local teacher needs the folder of its checkpoint"),
        (table(run={"max_cost": 1.0}), "teachers.t: run.max_cost needs price_in and price_out"),
        (table(run={"max_cost": -1.0}), "run.max_cost"),
        (table(SEEDS, {"kind": "verify", "by": "numeric"}), "gold: is needed to verify by 'numeric'"),
        (table(SEEDS, {"kind": "verify", "by": "pattern", "pattern": "("}), "pattern: is no regular expression"),
        (table(SEEDS, {"kind": "filter"}), "filter: asks for nothing"),
        (table(SEEDS, {"kind": "filter", "shortest": 3}), "column: names the text"),
        (
            table(SEEDS, {"kind": "filter", "column": "q", "shortest": 3, "longest": 2}),
            "longest: 2 is less than shortest = 3",
        ),
        (table(SEEDS, {"kind": "best"}), "highest, vote: name one of them"),
        (table(SEEDS, {"kind": "best", "highest": "score"}), "steps.best.highest: no column is called 'score' here"),
        (table({**SEEDS, "columns": {}}), "steps.seeds.columns"),
        (table({**SEEDS, "how": "rows", "columns": {"q": [1], "r": [1, 2]}}), "must be equally long"),
        (table({**SEEDS, "how": "sample"}), "count: says how many to draw"),
        (table(SEEDS, {"kind": "rewrite", "teacher": "t", "column": "q"}), "instruction"),
        (
            table(
                SEEDS,
                {
                    "kind": "grade",
                    "teacher": "t",
                    "answer": "{{ q }}",
                    "criteria": [{"name": "a", "text": "b", "weight": 0}],
                },
            ),
            "weight: must not be 0",
        ),
        (table(SEEDS, {"kind": "grade", "teacher": "t", "criteria": []}), "steps.grade.criteria"),
        (table(SEEDS, {**ASK, "teacher": ["t", "t"]}), "teacher: names one twice"),
        (table(SEEDS, {**ASK, "teacher": {"t": float("nan")}}), "weights must be positive"),
        (table(SEEDS, {**ASK, "schema": {"type": "strin"}}), "steps.ask.schema: is no JSON schema: type: 'strin'"),
        (
            table(SEEDS, {"kind": "verify", "by": "schema", "answer": "{{ q }}", "schema": {"type": 3}}, output=OUT),
            "steps.verify.schema: is no JSON schema",
        ),
        (table(SEEDS, {"kind": "evolve", "teacher": "t", "column": "q", "system": "{{ no }}"}), "steps.evolve.system"),
        (table(output={**OUT, "keep": ["id"]}), "output.keep: 'id' is written anyway"),
        (table(teacher={"base_url": "http://127.0.0.1:abc/v1"}), "base_url: must be http://HOST"),
        (table(teacher={"base_url": "http://127.0.0.1:99999/v1"}), "base_url: must be http://HOST"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(raw, said, tmp_path, templates):
    with pytest.raises(ConfigError) as error:
        build(raw, tmp_path, templates)
    assert said in str(error.value)


def test_a_key_that_stands_in_a_recipe_is_refused_and_not_repeated(tmp_path, templates):
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as error:
        build(table(teacher={"key": "sk-verySecret123"}), tmp_path, templates)
    assert "verySecret" not in str(error.value)


def test_terms_that_forbid_need_an_authorisation(tmp_path, templates):
    given = {"terms": "forbidden", "authorisation": "written leave of the owner, 2026-05-01"}
    assert build(table(teacher=given), tmp_path, templates).teachers["t"].authorisation


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "no such file"),
        ("", "holds no rows"),
        ('{"q": "a"}\nnonsense\n', ":2: is not JSON"),
        ('{"q": "a"}\n[1]\n', ":2: is a list, not an object"),
    ],
)
def test_inputs_are_read_before_anything_is_sent(lines, said, tmp_path, templates):
    if lines is not None:
        (tmp_path / "in.jsonl").write_text(lines)
    with pytest.raises(DataError) as error:
        build(table({"kind": "jsonl", "path": "in.jsonl"}, {**ASK, "prompt": "{{ q }}"}), tmp_path, templates)
    assert said in str(error.value)


def test_benchmarks_of_the_wrong_form_are_refused(tmp_path, templates):
    step = {"kind": "decontaminate", "text": "{{ q }}", "against": {"mine": "eval.jsonl"}, "columns": "question"}
    (tmp_path / "eval.jsonl").write_text('{"problem": "x"}\n')
    with pytest.raises(DataError, match=r"item 1 of benchmark 'mine' has no column 'question' \(it has problem"):
        build(table(SEEDS, step, output={"user": "{{ q }}", "assistant": "x"}), tmp_path, templates)


def test_a_step_is_known_by_what_it_says_and_what_feeds_it(tmp_path, templates):
    def ids(*steps, **more):
        return [s.id for s in build(table(*steps, **more), tmp_path, templates).stages.values()]

    plain = ids(*GOOD)
    assert ids(SEEDS, {**ASK, "name": "other"}, output={**OUT}) == plain
    hotter = ids(SEEDS, {**ASK, "temperature": 0.1})
    assert hotter[0] == plain[0]
    assert hotter[1] != plain[1]
    more = ids({**SEEDS, "columns": {"q": ["a", "b", "c"]}}, ASK)
    assert more[0] != plain[0]
    assert more[1] != plain[1]
    assert ids(*GOOD, teacher={"model": "n"})[1] != plain[1]
    assert ids(*GOOD, teacher={"price_in": 3.0}) == plain


def test_a_step_that_draws_is_known_by_its_name_too(tmp_path, templates):
    def ids(name, how):
        seeds = {**SEEDS, "name": name, "how": how, **({"count": 5} if how == "sample" else {})}
        return [s.id for s in build(table(seeds, ASK), tmp_path, templates).stages.values()]

    assert ids("seeds", "product") == ids("other", "product")
    assert ids("seeds", "sample") != ids("other", "sample")


def test_an_estimate_knows_the_words_that_a_step_brings(tmp_path, templates):
    steps = [
        {"kind": k, "teacher": "t", "column": "q", **more}
        for k, more in (("evolve", {}), ("self_instruct", {"count": 9}))
    ]
    for step in steps:
        raw = table(
            SEEDS, step, output={"user": "{{ q }}", "assistant": "x"}, teacher={"price_in": 1.0, "price_out": 1.0}
        )
        found = estimate(build(raw, tmp_path, templates))[1]
        assert found.prompt_tokens > 60 * found.requests
        assert found.most > found.cost > 0


def test_an_estimate_counts_rows_requests_and_cost(tmp_path, templates):
    raw = table(SEEDS, {**ASK, "samples": 3, "max_tokens": 100}, teacher={"price_in": 1.0, "price_out": 10.0})
    seeds, ask = estimate(build(raw, tmp_path, templates))
    assert (seeds.rows, ask.rows, ask.requests, ask.answer_tokens) == (2, 6, 6, 600)
    assert ask.most == pytest.approx(600 * 10e-6, rel=0.01)
    assert ask.cost == pytest.approx(ask.most / 2, rel=0.02)
    assert estimate(build(raw, tmp_path, templates), limit=1)[1].requests == 3


def test_the_verb_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "r.toml").write_text("[[steps]]\nkind = 'tabel'\n")
    assert run(["distill", "generate", str(tmp_path / "r.toml")]) == 2
    assert capsys.readouterr().err == "interlace: steps.tabel.kind: no step is called 'tabel'; did you mean 'table'?\n"
    assert run(["distill", "status", str(tmp_path)]) == 2
    assert "holds no run.toml" in capsys.readouterr().err
    assert run(["distill", "generate", str(tmp_path / "none.toml")]) == 2
    assert "no such recipe" in capsys.readouterr().err


def test_a_dry_run_sends_nothing(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(
        '[teachers.t]\nmodel = "m"\nbase_url = "http://127.0.0.1:9/v1"\nlicence = "x"\nterms = "own"\n'
        "price_in = 1\nprice_out = 1\n"
        '[[steps]]\nname = "seeds"\nkind = "table"\ncolumns = {q = ["a", "b"]}\n'
        '[[steps]]\nname = "ask"\nkind = "generate"\nteacher = "t"\nprompt = "{{ q }}"\n'
        '[output]\nuser = "{{ q }}"\nassistant = "{{ answer }}"\n'
    )
    assert run(["distill", "generate", str(tmp_path / "r.toml"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["requests"] == 2
    assert not (tmp_path / "runs").exists()
    assert read_recipe(tmp_path / "r.toml", ["run.seed=4"]).run.seed == 4
