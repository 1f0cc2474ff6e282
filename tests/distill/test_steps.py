"""What each step does with rows, against the simulated teacher where it asks one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import rows_of

from interlace.base.errors import DataError
from interlace.distill.desk import Answer
from interlace.distill.folder import DistillRun
from interlace.distill.report import agreement_rows
from interlace.distill.run import generate
from interlace.distill.steps.choose import language_of
from interlace.distill.steps.grade import Criterion, Grade, agreement
from interlace.distill.steps.sources import parts
from interlace.text.contamination import Index, Item, coverage, judged
from interlace.text.minhash import HASHES, bands, first_of_each, shingles, signature
from interlace.text.topics import distinct, topics
from interlace.text.words import words_of
from interlace.verify.structure import fitting


def outcome(run, step):
    """(rows that went on, rows that ended) of a step."""
    found = rows_of(run, step)
    return [r for r in found if r.state == "ok"], [r for r in found if r.state != "ok"]


def plain(tmp_path, steps, output='user = "{{ q }}"\nassistant = "a"', rows=None, teachers=""):
    """A recipe without a teacher, over rows of JSONL."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "r.toml"
    path.write_text(f'{teachers}[[steps]]\nkind = "jsonl"\npath = "in.jsonl"\n{steps}\n[output]\n{output}\n')
    return path


# --- sources ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab \n", max_size=600), st.integers(5, 80))
def test_parts_hold_all_words_in_order_and_are_not_long(text, characters):
    found = list(parts(text, characters))
    assert all(len(p) <= 1.25 * characters + 1 for p in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_a_text_is_cut_as_asked_and_conversations_are_no_texts(tmp_path):
    (tmp_path / "t.txt").write_text("one two three\n" * 20_000)
    end = '[output]\nuser = "{{ text }}"\nassistant = "{{ text }}"\n'
    (tmp_path / "r.toml").write_text(f'[[steps]]\nkind = "text"\npath = "t.txt"\ncharacters = 100000\n{end}')
    generate(tmp_path / "r.toml", tmp_path / "run")
    assert [len(r.values["text"]) > 90_000 for r in outcome(tmp_path / "run", "text")[0]] == [True, True, False]
    (tmp_path / "m.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    (tmp_path / "r.toml").write_text(f'[[steps]]\nkind = "text"\npath = "m.jsonl"\n{end}')
    with pytest.raises(DataError, match=r"steps\.text: m\.jsonl:1 holds messages and no 'text'; set field"):
        generate(tmp_path / "r.toml", tmp_path / "other")


def test_tables_combine_columns(tmp_path):
    base = (
        '[[steps]]\nname = "s"\nkind = "table"\nhow = "{}"\n{}\n[steps.columns]\na = [1, 2, 3]\nb = ["x", "y", "z"]\n'
    )
    end = '[output]\nuser = "{{ a }}"\nassistant = "{{ b }}"\n'
    for how, more, count in (("product", "", 9), ("rows", "", 3), ("sample", "count = 20", 20)):
        (tmp_path / "r.toml").write_text(base.format(how, more) + end)
        generate(tmp_path / "r.toml", tmp_path / how)
        rows, _ = outcome(tmp_path / how, "s")
        assert len(rows) == count
    (tmp_path / "r.toml").write_text(base.format("sample", "count = 20") + end)
    generate(tmp_path / "r.toml", tmp_path / "again")
    assert [r.values for r in rows] == [r.values for r in outcome(tmp_path / "again", "s")[0]]


THREE = 'kind = "generate"\nfrom = "seeds"\nteacher = "sim"\nprompt = "{{ a }} + 1"\nsamples = 3\n'

# --- asking -------------------------------------------------------------------------------------------------------


def test_samples_are_rows_and_reasoning_stays_apart(server, recipe, tmp_path):
    sim = server()
    step = '[[steps]]\nname = "more"\n' + THREE
    file = recipe(sim.url, step, rows=4)
    generate(file, tmp_path / "run")
    rows, _ = outcome(tmp_path / "run", "more")
    assert [r.key for r in rows][:4] == ["000000000.000", "000000000.001", "000000000.002", "000000001.000"]
    assert rows[0].values["reasoning"] == "0 plus 1 makes 1."
    assert rows[0].values["answer"] == "The answer is 1."
    assert sim.stats()["counts"]["received"] == 4 + 12  # samples of one question are asked for one by one


@pytest.mark.parametrize(
    ("message", "answer", "reasoning"),
    [
        ({"content": "a", "reasoning_content": "r"}, "a", "r"),
        ({"content": "<think>\nr\n</think>\n\na"}, "a", "r"),
        ({"content": "r</think>a"}, "a", "r"),
        ({"content": "<think>r"}, "", "r"),
        ({"content": [{"type": "text", "text": "a"}]}, "a", ""),
    ],
)
def test_reasoning_is_found_in_a_field_or_between_tags(message, answer, reasoning):
    from interlace.distill.teachers.outcomes import content
    from interlace.distill.teachers.questions import split_reasoning

    assert split_reasoning(content({"choices": [{"message": message}]})) == (answer, reasoning)


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def test_structured_answers_fit_or_say_why():
    assert fitting('{"n": 3}', SCHEMA) == ({"n": 3}, "")
    assert fitting('```json\n{"n": 3}\n```', SCHEMA) == ({"n": 3}, "")
    assert "is not JSON" in fitting("three", SCHEMA)[1]
    assert fitting('{"n": "3"}', SCHEMA)[1].startswith("n: '3' is not of type")
    assert "required property" in fitting("{}", SCHEMA)[1]


class Scripted:
    """Answers in turn, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    async def ask(self, teachers, question):
        self.asked.append((tuple(teachers), question))
        text = self.texts.pop(0)
        return text if isinstance(text, Answer) else Answer("ok", text, "", "", teachers[0], (f"k{len(self.asked)}",))


def alone(step, values, client, tmp_path):
    """What a step makes of one row."""
    import asyncio

    from interlace.distill.desk import Desk
    from interlace.distill.ledger.records import Row
    from interlace.sandbox.templates import Templates

    templates = Templates()
    desk = Desk(step.name or step.kind, tmp_path, 0, templates, client)
    try:
        return asyncio.run(step.one(Row(1, "000000000", "ok", "", values), desk))
    finally:
        templates.close()
        desk.close()


def step_of(kind, **table):
    from interlace.base.schema import validate
    from interlace.distill.steps.registry import KINDS

    return validate(KINDS[kind], {"kind": kind, "name": kind, **table}, kind)


def test_an_answer_that_does_not_fit_is_asked_for_again_with_what_is_wrong(tmp_path):
    step = step_of("generate", teacher="t", prompt="q", schema=SCHEMA, repairs=2)
    client = Scripted("three", '{"n": "3"}', '{"n": 3}')
    (out,) = alone(step, {}, client, tmp_path)
    assert out.values["answer"] == {"n": 3}
    assert out.values["answer_repairs"] == 2
    last = client.asked[-1][1].messages
    assert [m["role"] for m in last] == ["user", "assistant", "user"]
    assert "'3' is not of type 'integer'" in last[-1]["content"]
    (out,) = alone(step, {}, Scripted("x", "y", "z"), tmp_path)
    assert (out.state, "2 repairs did not help" in out.reason) == ("unparsable", True)


def test_refusals_in_words_and_truncated_answers(tmp_path):
    step = step_of("generate", teacher="t", prompt="q")
    (out,) = alone(step, {}, Scripted("I'm sorry, but I can't help with that."), tmp_path)
    assert out.state == "refused"
    (out,) = alone(step, {}, Scripted("I can't help " + "but wonder. " * 60), tmp_path)
    assert out.state == "ok"
    cut = Answer("truncated", "half an ans", "", "the answer reached max_tokens", "t", "k")
    assert alone(step, {}, Scripted(cut), tmp_path)[0].state == "truncated"
    kept = step_of("generate", teacher="t", prompt="q", keep_truncated=True)
    assert alone(kept, {}, Scripted(cut), tmp_path)[0].values["answer"] == "half an ans"


def test_rewriting_replaces_a_column(tmp_path):
    step = step_of("rewrite", teacher="t", column="text", instruction="Make it short.")
    client = Scripted("short")
    (out,) = alone(step, {"text": "long <b>text</b>"}, client, tmp_path)
    assert out.values["text"] == "short"
    assert "Make it short." in client.asked[0][1].messages[0]["content"]
    assert "<text>\nlong <b>text</b>\n</text>" in client.asked[0][1].messages[0]["content"]


def test_evolving_goes_on_from_the_last_round(tmp_path):
    step = step_of("evolve", teacher="t", column="task", rounds=2, every=True)
    client = Scripted("harder", "hardest")
    outs = alone(step, {"task": "easy"}, client, tmp_path)
    assert [o.values["task"] for o in outs] == ["harder", "hardest"]
    assert "harder" in client.asked[1][1].messages[0]["content"]
    (out,) = alone(step_of("evolve", teacher="t", column="task"), {"task": "easy"}, Scripted(" easy "), tmp_path)
    assert out.reason == "the task came back as it was"


def test_self_instruct_makes_new_tasks_from_few(server, tmp_path):
    sim = server()
    teacher = f'[teachers.sim]\nmodel = "m"\nbase_url = "{sim.url}"\nlicence = "x"\nterms = "own"\n'
    step = '[[steps]]\nname = "new"\nkind = "self_instruct"\nteacher = "sim"\ncolumn = "q"\ncount = 33\nat_once = 3\n'
    rows = [{"q": f"Write about topic {i} in {i} words", "other": 1} for i in range(5)]
    file = plain(tmp_path, step, rows=rows, teachers=teacher)
    generate(file, tmp_path / "run")
    made, ended = outcome(tmp_path / "run", "new")
    assert len(made) == 33
    assert len({r.values["q"] for r in made}) == 33
    assert all(set(r.values) == {"q"} for r in made)
    generate(file, tmp_path / "other")
    assert [r.values for r in outcome(tmp_path / "other", "new")[0]] == [r.values for r in made]
    assert {r.reason for r in ended} <= {"like an earlier task", "more than were wanted"}


@pytest.mark.slow
def test_an_answer_that_a_schema_s_pattern_hangs_on_ends_its_row(tmp_path):
    from interlace.distill.steps.ask import Generate

    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    step = Generate(name="g", kind="generate", teacher="t", prompt="{{ q }}", schema=schema, repairs=0)
    (out,) = alone(step, {"q": "x"}, Scripted(json.dumps({"a": "a" * 60 + "b"})), tmp_path)
    assert out.state == "unparsable"
    assert "took longer than 5 seconds" in out.reason


def test_keys_that_an_endpoint_does_not_take_are_left_out():
    from interlace.distill.steps.ask import Generate

    step = Generate(kind="generate", teacher="t", prompt="p", omit=["temperature"], extra={"max_completion_tokens": 9})
    assert step.sampling() == {"max_completion_tokens": 9}


@pytest.mark.parametrize(
    ("row", "ended"),
    [
        ({"answer": "x = 1", "tests": None}, "tests is empty"),
        ({"answer": "x = 1", "tests": ""}, "tests is empty"),
        ({"answer": "x = 1", "tests": "assert x == 1"}, ""),
    ],
)
def test_nothing_is_right_that_is_held_against_nothing(tmp_path, row, ended):
    from interlace.distill.steps.verify import Verify

    (out,) = alone(Verify(kind="verify", by="python", tests="{{ tests }}"), row, None, tmp_path)
    assert (out.state, out.reason) == (("dropped", ended) if ended else ("ok", ""))


def test_votes_count_numbers_that_are_the_answer_alone():
    from interlace.distill.steps.choose import _ballot, _number

    assert _ballot("It is 12 km, so the answer is 12.") == _ballot("12")
    assert _ballot("Paris, which has 2 airports.") != _ballot("London, which has 2 airports.")
    assert _ballot("Paris ") == _ballot("paris")
    assert [_number(x) for x in (1, "0.9", "none", None, float("nan"))] == [1, 0.9, *[float("-inf")] * 3]
    assert [_number(x) for x in (10**400, -(10**400), "1" * 5000)] == [float(x) for x in ("inf", "-inf", "inf")]


def test_signs_of_arithmetic_are_words_and_so_are_letters_without_spaces():
    assert words_of("1 - 2 is 5-3, well-known") == ("1", "-", "2", "is", "5", "-", "3", "well", "known")
    assert words_of("你好 world") == ("你", "好", "world")
    assert shingles("1 + 2", 3) != shingles("1 - 2", 3)


# --- grading ------------------------------------------------------------------------------------------------------

CRITERIA = [
    {"name": "true", "text": "It is true.", "weight": 3.0},
    {"name": "padding", "text": "It pads.", "weight": -1.0},
]


def test_scores_run_from_all_faults_to_all_merits():
    grade = Grade(kind="grade", teacher=("j",), criteria=tuple(Criterion(**c) for c in CRITERIA))
    assert grade.score({"true": 4, "padding": 0}) == 1.0
    assert grade.score({"true": 0, "padding": 4}) == 0.0
    assert grade.score({"true": 4, "padding": 4}) == 0.75
    assert grade.score({"true": 2, "padding": 0}) == pytest.approx(0.625)


def test_what_a_judge_leaves_out_is_missing_and_asked_for_again_and_never_zero(tmp_path):
    step = step_of("grade", teacher="j", answer="{{ a }}", criteria=CRITERIA, tries=3)
    client = Scripted('{"true": 4}', "broken", '{"true": 0, "padding": 1}')
    (out,) = alone(step, {"a": "x"}, client, tmp_path)
    assert out.values["score_marks"] == {"j": {"true": 4, "padding": 1}}  # the first mark stands
    assert [q.sample for _, q in client.asked] == [0, 1, 2]
    (out,) = alone(step, {"a": "x"}, Scripted('{"true": 4}', '{"true": 9}', "{}"), tmp_path)
    assert (out.state, out.reason) == ("unparsable", "judge j gave no mark for padding in 3 tries")
    assert "score" not in out.values


def test_criteria_can_be_asked_for_one_by_one_and_by_several_judges(tmp_path):
    step = step_of("grade", teacher=["j", "k"], answer="{{ a }}", criteria=CRITERIA, jointly=False, least=0.9)
    marks = {("j", "true"): 4, ("j", "padding"): 0, ("k", "true"): 4, ("k", "padding"): 4}

    class Judges(Scripted):
        async def ask(self, teachers, question):
            name = next(iter(question.schema["properties"]))
            self.texts = [json.dumps({name: marks[teachers[0], name]})]
            return await super().ask(teachers, question)

    client = Judges()
    (out,) = alone(step, {"a": "x"}, client, tmp_path)
    assert out.reason == "score below 0.9"
    assert out.values["score"] == pytest.approx((1 + 0.75) / 2)
    assert len(client.asked) == 4
    assert step.requests(10) == 40


@pytest.mark.parametrize(
    ("pairs", "same", "kappa"),
    [
        ([(0, 0), (4, 4), (2, 2)], 1.0, 1.0),
        ([(0, 4), (4, 0)], 0.0, -1.0),
        ([(3, 3)] * 5, 1.0, 1.0),
        ([(0, 0), (0, 4), (4, 0), (4, 4)], 0.5, 0.0),
    ],
)
def test_agreement_is_cohens(pairs, same, kappa):
    found = agreement(pairs, 4)
    assert (found["same"], found["kappa"]) == (same, pytest.approx(kappa))


def test_the_agreement_of_two_judges_is_reported(server, tmp_path):
    sim = server()
    about = f'base_url = "{sim.url}"\nlicence = "x"\nterms = "own"\n'
    teachers = f'[teachers.j]\nmodel = "j"\n{about}[teachers.k]\nmodel = "k"\n{about}'
    step = '[[steps]]\nname = "g"\nkind = "grade"\nteacher = ["j", "k"]\nanswer = "{{ q }}"\n'
    step += '[[steps.criteria]]\nname = "clear"\ntext = "It is clear."\n'
    generate(plain(tmp_path, step, rows=[{"q": f"answer {i}"} for i in range(30)], teachers=teachers), tmp_path / "run")
    folder = DistillRun(tmp_path / "run")
    ledger = folder.open_ledger()
    (row,) = agreement_rows(folder, ledger, "g")
    ledger.close()
    assert row[:3] == ["clear", "j, k", "30"]
    assert row[3] == "100%"  # the simulator marks by the text alone


# --- choosing -----------------------------------------------------------------------------------------------------


def test_the_best_of_samples_goes_on():
    from interlace.distill.ledger.records import Row

    best = step_of("best", highest="score")
    family = [
        Row(i, f"000000001.{i:03}", "ok", "", {"score": s, "answer": a})
        for i, (s, a) in enumerate([(0.2, "12"), (0.9, "The answer is 13"), (None, "13.0"), (0.9, "about 13")])
    ]
    assert [r.id for r in best._ranked([(r, best._weight(r)) for r in family])] == [1, 3, 0, 2]
    vote = step_of("best", vote="answer")
    assert vote._ranked([(r, vote._weight(r)) for r in family])[0].id == 1


def test_best_keeps_one_of_each_family(server, recipe, tmp_path):
    sim = server()
    step = '[[steps]]\nname = "many"\n' + THREE
    step += '[[steps]]\nname = "one"\nkind = "best"\nvote = "answer"\n'
    generate(recipe(sim.url, step, rows=5), tmp_path / "run")
    kept, ended = outcome(tmp_path / "run", "one")
    assert [r.key for r in kept] == [f"{i:09}.000" for i in range(5)]
    assert len(ended) == 10


def test_filters_name_the_rule_that_a_row_broke(tmp_path):
    rows = [
        {"q": "short"},
        {"q": "x" * 300},
        {"q": "A sentence with a secret in it, long enough."},
        {"q": "No digits in this one here."},
    ]
    rows.append({"q": "This one is right, and it has the digit 7."})
    step = '[[steps]]\nname = "f"\nkind = "filter"\ncolumn = "q"\nshortest = 10\nlongest = 200\npattern = "[0-9]"\n'
    step += 'without = "secret"\n[[steps]]\nname = "w"\nkind = "filter"\nwhere = "{{ q|length > 1000 }}"\n'
    generate(plain(tmp_path, step, rows=rows), tmp_path / "run")
    kept, ended = outcome(tmp_path / "run", "f")
    assert [r.values["q"] for r in kept] == [rows[-1]["q"]]
    assert [r.reason for r in ended] == [
        "shorter than 10 characters",
        "longer than 200 characters",
        "the pattern is not found",
        "the pattern is not found",
    ]
    assert outcome(tmp_path / "run", "w")[1][0].reason == "where is not true"


def test_a_pattern_that_does_not_end_drops_its_row_and_not_the_run(tmp_path):
    step = '[[steps]]\nname = "f"\nkind = "filter"\ncolumn = "q"\npattern = "(a+)+$"\nseconds = 0.5\n'
    generate(plain(tmp_path, step, rows=[{"q": "a" * 60 + "b"}, {"q": "aaa"}]), tmp_path / "run")
    kept, ended = outcome(tmp_path / "run", "f")
    assert [r.values["q"] for r in kept] == ["aaa"]
    assert "took longer than 0.5 seconds" in ended[0].reason


def test_languages():
    assert language_of("The quick brown fox jumps over the lazy dog, and then it sleeps.") == "en"
    assert language_of("Der schnelle braune Fuchs springt über den faulen Hund und schläft dann.") == "de"


def test_programs_are_verified_in_the_cage(tmp_path):
    rows = [
        {"q": "good", "code": "```python\ndef f(x): return x + 1\n```"},
        {"q": "bad", "code": "def f(x): return x"},
        {"q": "evil", "code": "import os\nos.fork()\ndef f(x): return x + 1"},
        {"q": "slow", "code": "while True: pass"},
    ]
    step = '[[steps]]\nname = "v"\nkind = "verify"\nby = "python"\nanswer = "{{ code }}"\n'
    step += 'tests = "assert f(1) == 2"\nseconds = 1\n'
    generate(plain(tmp_path, step, rows=rows), tmp_path / "run")
    kept, ended = outcome(tmp_path / "run", "v")
    assert [r.values["q"] for r in kept] == ["good"]
    assert [r.reason for r in ended] == ["wrong by python: failed", "wrong by python: failed", "wrong by python: time"]
    assert ended[0].values["right_why"] == "failed: AssertionError: "


# --- near ---------------------------------------------------------------------------------------------------------


def jaccard(a, b):
    return len(a & b) / len(a | b)


def test_signatures_estimate_jaccard():
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8, 0.95):
        both = [f"w{i}" for i in range(int(share * 400))]
        a = {*both, *(f"a{i}" for i in range((400 - len(both)) // 2))}
        b = {*both, *(f"b{i}" for i in range((400 - len(both)) // 2))}
        found = np.mean(
            [
                (signature({f"{s}{x}" for x in a}) == signature({f"{s}{x}" for x in b})).mean()
                for s in rng.integers(1e9, size=8)
            ]
        )
        assert found == pytest.approx(jaccard(a, b), abs=0.04)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=12), max_size=40), st.sampled_from([0.5, 0.8, 1.0]))
def test_near_rows_are_those_a_slow_search_over_signatures_finds(texts, threshold):
    signed = np.array([signature(shingles(" ".join(map(str, t)), 2)) for t in texts], dtype=np.uint32).reshape(
        -1, HASHES
    )
    near = first_of_each(signed, threshold)
    kept = []
    for row in range(len(texts)):
        agree = [(signed[k] == signed[row]).mean() for k in kept]
        slow = any(a >= threshold for a in agree)
        if near[row] >= 0:
            assert slow
            assert (signed[near[row]] == signed[row]).mean() >= threshold
        else:
            if slow:  # bands miss a pair at the threshold now and then, never one that is equal
                assert max(agree) < min(1.0, threshold + 0.15)
            kept.append(row)


def test_bands_find_what_is_at_the_threshold():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9):
        width = HASHES // bands(threshold)
        assert 1 - (1 - threshold**width) ** bands(threshold) > 0.95


def test_dedup_keeps_the_first_of_near_rows(tmp_path):
    text = "A farmer has seventeen sheep and sells nine of them to a neighbour for forty coins each on Monday"
    rows = [{"q": text}, {"q": "Something else entirely, on another topic, with other words in it"}]
    rows += [{"q": text.upper() + "!"}, {"q": text.replace("Monday", "Friday")}]
    step = '[[steps]]\nname = "d"\nkind = "dedup"\ntext = "{{ q }}"\nthreshold = 0.7\n'
    generate(plain(tmp_path, step, rows=rows), tmp_path / "run")
    kept, ended = outcome(tmp_path / "run", "d")
    assert [r.key for r in kept] == ["000000000", "000000001"]
    assert [r.values["near"] for r in ended] == ["000000000", "000000000"]


def test_benchmark_items_are_found_also_reworded(tmp_path):
    items = [
        {
            "question": "Weng earns twelve dollars an hour for babysitting. Yesterday she did fifty minutes. How much?",
            "answer": "#### 10",
        },
        {"question": "What is two plus two?", "answer": "4"},
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    rows = [
        {"q": "WENG earns twelve dollars an hour, for babysitting... yesterday she did fifty minutes!", "a": "x"},
        {"q": "A nurse earns twelve dollars an hour for night shifts. Tomorrow she works nine hours.", "a": "108"},
        {"q": "Please: what is two plus two?", "a": "4"},
        {"q": "What is two plus three?", "a": "5"},
    ]
    step = '[[steps]]\nname = "c"\nkind = "decontaminate"\ntext = "{{ q }}"\nanswer = "{{ a }}"\ncolumns = "question"\n'
    step += 'answers = "answer"\n[steps.against]\nmine = "eval.jsonl"\n'
    generate(plain(tmp_path, step, rows=rows), tmp_path / "run")
    kept, ended = outcome(tmp_path / "run", "c")
    assert [r.key for r in kept] == ["000000001", "000000003"]
    assert [r.values["contamination"]["item"] for r in ended] == [1, 2]
    assert ended[0].reason == "holds an item of mine"


def test_an_answer_that_agrees_lowers_the_threshold():
    words = words_of("one two three four five six seven eight nine ten eleven twelve")
    index = Index([Item("b", 1, words, "42")])
    row = "zero one two three four five something else and more of it"
    assert coverage(words, set()) == 0
    assert index.nearest(row).coverage == pytest.approx(5 / 12)
    assert not judged(index.nearest(row, "7"), 0.5, 0.35)
    assert judged(index.nearest(row, "so it is 42"), 0.5, 0.35)
    assert index.nearest("nothing in common") is None


# --- what texts are about -----------------------------------------------------------------------------------------


def test_topics_part_what_is_different():
    rng = np.random.default_rng(0)
    fields = (["sheep", "farmer", "barn", "wool", "tractor"], ["planet", "orbit", "moon", "rocket", "comet"])
    texts = [" ".join(rng.choice(fields[i % 2], 6)) for i in range(60)]
    found = topics(texts)
    for topic in found:
        sides = [t % 2 for t in topic.texts]
        assert max(sides.count(0), sides.count(1)) / len(sides) > 0.95
        assert set(topic.words[:3]) <= set(fields[sides[0]])
    assert topics(texts[:10]) == []
    assert topics(["same words here"] * 40) == []


def test_distinct_runs():
    assert distinct(["a b a b", "a b"], 2) == [(1, 2, 6), (2, 2, 4)]
