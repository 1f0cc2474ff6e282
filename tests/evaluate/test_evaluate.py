"""`interlace evaluate`: items, figures, going on where it was killed, two models side by side, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from small import recipe_of, texts_in
from watching import scored

import interlace
from interlace.base.errors import ConfigError, DataError, PromptTooLong
from interlace.base.schema import validate
from interlace.cli.main import run as command
from interlace.evaluate.ask import Questions
from interlace.evaluate.likelihood import encode_pair, likelihoods
from interlace.evaluate.run import kept_rows
from interlace.evaluate.suites import needles, recall
from interlace.evaluate.task import read_task
from interlace.evaluate.training import train_and_report
from interlace.evaluate.write import write_answers
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.study.tasks.prompts import FORMAL, formal
from interlace.train.loop import train
from interlace.train.recipe import Recipe

CHOICE = """\
kind = "choice"
data = "choices.jsonl"
prompt = "{{ question }}"
choices = "options"
right = "{{ options[label] }}"
normalise = "characters"
group = "{{ kind }}"
"""
ANSWER = """\
kind = "generate"
data = "answers.jsonl"
prompt = "the {{ word }}"
by = "pattern"
pattern = "fox"
max_tokens = 12
stop = ["jumps"]
format = "[0-9]"
"""


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def choices_of(count):
    options = [f"quick fox {i} jumps" for i in range(4)]
    some = [["slow", options[i % 4], "brown dog", "the"] for i in range(count)]
    return [
        {
            "question": f"the {'quick' if i % 3 else 'slow'} fox {i}",
            "options": some[i],
            "label": i % 4,
            "kind": "ab"[i % 2],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a trained model, another that was trained less, and two tasks."""
    folder = tmp_path_factory.mktemp("evaluated")
    plan = recipe_of(texts_in(folder / "texts"))
    train(validate(Recipe, plan, ""), folder / "base", scored)
    less = {**plan, "train": {**plan["train"], "tokens": 4 * 192}}
    less["data"] = {**plan["data"], "tokenizer": str(folder / "base/data/tokenizer.json")}
    train(validate(Recipe, less, ""), folder / "less", scored)
    written(folder / "choices.jsonl", choices_of(30))
    written(folder / "answers.jsonl", [{"word": w, "n": i} for i, w in enumerate(["quick", "slow", "red"] * 5)])
    (folder / "choose.toml").write_text(CHOICE)
    (folder / "say.toml").write_text(ANSWER)
    return folder


@pytest.fixture(scope="module")
def model(made):
    return interlace.load(made / "base")


def alone(model, prompt, answer):
    """(log-likelihood, whether greedy) of one continuation, read by itself."""
    ids = torch.tensor(prompt + answer)
    log_p = torch.log_softmax(model(ids)[0].float(), -1)[len(prompt) - 1 : -1]
    goal = torch.tensor(answer)
    return float(log_p.gather(1, goal[:, None]).sum()), bool((log_p.argmax(-1) == goal).all())


def test_likelihoods_are_those_of_single_reads(model):
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(300, (n,), generator=draw).tolist() for n in (1, 40, 7, 3)]
    answers = [
        [torch.randint(300, (n,), generator=draw).tolist() for n in lengths]
        for lengths in ((1,), (3, 1, 9), (2, 2), (5,))
    ]
    greedy = list(generate_tokens(model, prompts[1], max_tokens=4, sampling=Sampling(temperature=0)))
    answers[1].append(greedy)
    with torch.no_grad():
        for prompt, some, found in zip(prompts, answers, likelihoods(model, prompts, answers), strict=True):
            for answer, one in zip(some, found, strict=True):
                nats, best = alone(model, prompt, answer)
                assert one.nats == pytest.approx(nats, abs=2e-5)
                assert one.greedy == best
    assert likelihoods(model, prompts, answers)[1][-1].greedy


def test_pairs_are_cut_as_lm_eval_cuts_them(model):
    tokenizer = model.tokenizer
    before, own = encode_pair(tokenizer, "the quick ", "fox")
    assert tokenizer.decode(before) == "the quick"
    assert tokenizer.decode(before + own) == "the quick fox"
    assert encode_pair(tokenizer, "", "fox")[0] == [tokenizer.eos]


def test_answers_end_at_stop_strings_and_are_those_of_single_runs(model):
    prompts = [model.tokenizer.encode_text(f"the quick fox {i} jumps the") for i in range(5)]
    every = [("jumps",), (), (" fox 1", "s"), ("zzz",), ("jumps",)]
    sampling, seeds = Sampling(temperature=0.7), list(range(5))
    together = write_answers(model, prompts, [20] * 5, sampling, seeds, every)
    for i, (prompt, stops) in enumerate(zip(prompts, every, strict=True)):
        ids = list(generate_tokens(model, prompt, max_tokens=20, sampling=sampling, seed=i))
        text = model.tokenizer.decode(ids)
        cut = text[: min([text.find(s) for s in stops if s in text], default=len(text))]
        assert together[i].text == cut
        assert len(together[i].tokens) <= len(ids)
    assert together[0].ended
    assert len(together[0].tokens) < 20


def evaluated(*words):
    assert command(["evaluate", *map(str, words), "--json"]) == 0


def results_of(run):
    return json.loads((run / "results.json").read_text())


def test_two_models_side_by_side(made, tmp_path, capsys):
    out = tmp_path / "run"
    evaluated(
        made / "base",
        made / "less",
        "--tasks",
        made / "choose.toml",
        made / "say.toml",
        "--data",
        made / "texts",
        "--out",
        out,
    )
    shown = json.loads(capsys.readouterr().out)
    found = results_of(out)["tasks"]
    assert shown["tasks"] == found
    assert list(found) == ["data", "choose", "say"]
    texts = found["data"]["figures"]["bits_per_byte"]
    assert texts["models"][0]["value"] < texts["models"][1]["value"]
    assert 0 < texts["difference"]["low"] < texts["difference"]["value"] < texts["difference"]["high"]
    assert texts["difference"]["losses"] == 12
    assert set(found["data"]["by_position"]) == {"0", "256", "1024"}
    chosen = found["choose"]
    assert chosen["score"] == "characters"
    assert set(chosen["groups"]) == {"a", "b"}
    rows = [list(kept_rows(out / f"items/choose.{side}.jsonl")) for side in ("first", "second")]
    shares = [sum(row["score"] for row in some) / 30 for some in rows]
    figure = chosen["figures"]["characters"]
    assert [m["value"] for m in figure["models"]] == shares
    assert all(m["low"] <= m["value"] <= m["high"] and m["items"] == 30 for m in figure["models"])
    pairs = list(zip(*rows, strict=True))
    assert figure["difference"]["wins"] == sum(b["score"] > a["score"] for a, b in pairs)
    assert figure["difference"]["losses"] == sum(b["score"] < a["score"] for a, b in pairs)
    row = rows[0][3]
    assert row["prompt"] == "the slow fox 3"
    best = max(range(4), key=lambda i: row["nats"][i] / len(row["choices"][i]))
    assert row["picked"]["characters"] == best
    assert row["right"] == [3]
    said = next(iter(kept_rows(out / "items/say.first.jsonl")))["answers"][0]
    assert said["right"] == ("fox" in said["text"])
    assert "jumps" not in said["text"]
    page = (out / "report.html").read_text()
    assert "Item 0" in page
    assert page.count("<details>") == 45


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_to_the_same_figures(made, tmp_path, monkeypatch):
    words = [made / "base", "--tasks", made / "choose.toml", made / "say.toml", "--suites", "recall", "--limit", "12"]
    monkeypatch.setattr("interlace.evaluate.ask.ROWS", 5)
    evaluated(*words, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    for name, lines in (("choose.first", 7), ("say.first", 5), ("recall.first", 0)):
        file = tmp_path / f"run/items/{name}.jsonl"
        kept = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(kept[:lines]) + kept[lines][:20] * (lines > 0))  # cut off inside a line
    evaluated(*words, "--out", tmp_path / "run")
    assert results_of(tmp_path / "run") == results_of(tmp_path / "whole")
    for name in ("choose", "say", "recall"):
        file = f"items/{name}.first.jsonl"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_what_a_run_began_with_cannot_be_changed(made, tmp_path, capsys):
    for name in ("choices.jsonl", "choose.toml"):
        shutil.copy(made / name, tmp_path)
    words = ["evaluate", str(made / "base"), "--tasks", str(tmp_path / "choose.toml"), "--out", str(tmp_path / "run")]
    assert command(words) == 0
    assert command([*words, "--limit", "3"]) == 2
    assert "belongs to a different run" in capsys.readouterr().err
    written(tmp_path / "choices.jsonl", choices_of(31))
    assert command(words) == 2
    assert "is not what this run began with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": 9}, "right"),
        ({"options": []}, "choices: must be at least two texts"),
        ({"options": ["a"]}, "choices: must be at least two texts"),
        ({"options": ["a", " "]}, "choices: must be at least two texts"),
        ({"options": "ab"}, "the column 'options' must be a list"),
        ({"question": " "}, "prompt: is empty"),
        ({"options": ["x", "x"], "label": 0}, "is the text of several choices"),
        ({"options": ["1", "0"], "label": 0}, "the text of one choice and the number of another"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(made, tmp_path, row, said):
    written(tmp_path / "choices.jsonl", [*choices_of(2), {**choices_of(1)[0], **row}])
    (tmp_path / "choose.toml").write_text(CHOICE)
    with pytest.raises(DataError, match=rf"choices.jsonl:3: .*{said}"):
        read_task(tmp_path / "choose.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('by = "pattern"', 'by = "numbers"', "by: "),
        ('by = "pattern"', 'by = "numeric"', "gold: is needed to judge by 'numeric'"),
        ('by = "pattern"', "", "by: is needed"),
        ('pattern = "fox"', 'pattern = "("', "pattern: is no regular expression"),
        ("max_tokens = 12", "max_token = 12", "did you mean 'max_tokens'"),
        ("max_tokens = 12", "max_tokens = 12\nshots = 2", "shots_data: is needed"),
        ("max_tokens = 12", 'max_tokens = 12\nright = "a"', 'right: is of kind = "choice"'),
        ("max_tokens = 12", "max_tokens = 12\nsamples = 2", "samples: answers at temperature 0 are all the same"),
        ('data = "answers.jsonl"', 'data = "none.jsonl"', "none.jsonl: no such file"),
        ('prompt = "the {{ word }}"', 'prompt = "the {{ wrd }}"', "wrd"),
    ],
)
def test_task_files_that_break_a_rule(made, tmp_path, old, new, said):
    shutil.copy(made / "answers.jsonl", tmp_path)
    (tmp_path / "say.toml").write_text(ANSWER.replace(old, new))
    with pytest.raises((ConfigError, DataError), match=said) as error:
        read_task(tmp_path / "say.toml")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("label", "place"), [("quick fox 1 jumps", 1), ("B", 1), ("1", 1), (3, 3)])
def test_a_right_choice_is_its_text_its_letter_or_its_number(made, tmp_path, label, place):
    written(tmp_path / "choices.jsonl", [{**choices_of(2)[1], "said": label}])
    (tmp_path / "choose.toml").write_text(CHOICE.replace("{{ options[label] }}", "{{ said }}"))
    assert read_task(tmp_path / "choose.toml").items[0].right == (place,)


def test_shots_and_conversations_stand_before_a_prompt(made, tmp_path, model):
    shutil.copy(made / "choices.jsonl", tmp_path)
    (tmp_path / "choose.toml").write_text(CHOICE + 'shots = 2\nshots_data = "choices.jsonl"\n')
    asked = Questions(read_task(tmp_path / "choose.toml", 1), model).asked
    assert [one.text for one in asked] == [  # rows that are shots are not asked
        "the slow fox 0 slow\n\nthe quick fox 1 quick fox 1 jumps\n\nthe quick fox 2"
    ]
    chat = CHOICE + 'shots = 1\nshots_data = "choices.jsonl"\nchat = true\nsystem = "Be quick."\n'
    (tmp_path / "choose.toml").write_text(chat)
    asked = Questions(read_task(tmp_path / "choose.toml", 1), model).asked[0]
    assert asked.text.startswith("<|system|>\nBe quick.")
    assert asked.text.endswith("<|user|>\nthe quick fox 1\n<|assistant|>\n")
    assert model.tokenizer.decode(asked.choices[1]) == "quick fox 1 jumps"


def test_a_prompt_beyond_the_context_is_refused_or_cut(made, tmp_path, model):
    written(tmp_path / "answers.jsonl", [{"word": "fox " * 200}])
    (tmp_path / "say.toml").write_text(ANSWER)
    short = interlace.HybridLM(model.config.replace(max_positions=64))
    short.tokenizer = model.tokenizer
    with pytest.raises(PromptTooLong, match=r'say: item 0: a prompt of .* set long = "cut"'):
        Questions(read_task(tmp_path / "say.toml"), short)
    (tmp_path / "say.toml").write_text(ANSWER + 'long = "cut"\n')
    assert len(Questions(read_task(tmp_path / "say.toml"), short).asked[0].prompt) == 64 - 12


def test_an_answer_of_code_is_run_against_its_tests(made, tmp_path):
    from interlace.evaluate.judge import Judge
    from interlace.sandbox import cage

    if cage.available():
        pytest.skip(cage.available())
    row = {"prompt": "def f(x):\n", "test": "def check(g):\n    assert g(2) == 4\n", "entry_point": "f"}
    written(tmp_path / "code.jsonl", [row])
    (tmp_path / "code.toml").write_text(
        'kind = "generate"\ndata = "code.jsonl"\nprompt = "{{ prompt }}"\nby = "python"\n'
        'answer = "{{ prompt }}{{ answer }}"\ntests = "{{ test }}\\n\\ncheck({{ entry_point }})"\n'
    )
    task = read_task(tmp_path / "code.toml")
    judge = Judge(task)
    assert judge(task.items[0], "    return x * 2\n").right
    assert judge(task.items[0], "    return x + 3\n").right is False
    judge.close()


def test_suites_are_made_from_a_seed(model):
    hidden = needles(model.tokenizer, [300, 700], seed=3, each=2)
    again = needles(model.tokenizer, [300, 700], seed=3, each=2)
    assert hidden == again
    assert hidden != needles(model.tokenizer, [300, 700], seed=4, each=2)
    for item, length in zip(hidden.items, (300, 300, 700, 700), strict=True):
        assert 0.8 * length < len(model.tokenizer.encode(item.prompt)) < 1.2 * length
        name = item.prompt.rpartition("The code of ")[2].removesuffix(" is")
        assert f"The code of {name} is {item.choices[item.right[0]]}." in item.prompt
        assert all(item.prompt.count(choice) == 1 for choice in item.choices)
    for item in recall(model.tokenizer, 0, 2).items:
        name = item.prompt.rpartition("\n\n")[2].removesuffix(":")
        assert f"{name}: {item.choices[item.right[0]]}\n" in item.prompt + "\n"
        assert len(item.choices) == 8
    for task in formal(FORMAL, 0, 2):
        for item in task.items:
            assert 2 <= len(item.choices) <= 8
            assert item.prompt.endswith((" ->", " ="))


def test_a_run_of_training_asks_tasks_and_writes_samples(made, tmp_path):
    plan = recipe_of(made / "texts")
    plan["data"]["tokenizer"] = str(made / "base/data/tokenizer.json")
    plan["train"] |= {
        "start": str(made / "less"),
        "tasks": [str(made / "choose.toml")],
        "task_items": 10,
        "prompts": ["the quick"],
        "prompt_tokens": 8,
        "evaluations": 2,
        "precision": "float32",
    }
    run = train_and_report(validate(Recipe, plan, ""), tmp_path / "run")
    asked = [row for row in run.metrics() if "tasks.choose" in row]
    assert [row["step"] for row in asked] == [10, 20]
    rows = {name: list(kept_rows(tmp_path / f"run/evaluations/{name}/choose.jsonl")) for name in ("start", "step-20")}
    assert asked[-1]["tasks.choose"] == sum(row["score"] for row in rows["step-20"]) / 10
    wins = sum(b["score"] > a["score"] for a, b in zip(rows["start"], rows["step-20"], strict=True))
    assert asked[-1]["tasks.choose_wins"] == wins
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [(s["step"], s["prompt"]) for s in samples] == [(10, "the quick"), (20, "the quick")]
    page = (tmp_path / "run/report.html").read_text()
    assert "Written on the way" in page
    assert "choose wins" in page
    evaluated(
        last_checkpoint(tmp_path / "run"), "--tasks", made / "choose.toml", "--limit", "10", "--out", tmp_path / "again"
    )
    again = list(kept_rows(tmp_path / "again/items/choose.first.jsonl"))
    assert [r["picked"] for r in again] == [r["picked"] for r in rows["step-20"]]  # one definition of the model


def last_checkpoint(run):
    return run / "checkpoints/step-20"
