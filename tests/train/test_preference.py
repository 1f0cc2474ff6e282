"""Pairs of answers: reading them, the losses against the formulas in float64, references, and going on with a run."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from small import recipe_of, texts_in
from watching import scored

import interlace
from interlace.base.errors import ConfigError, DataError
from interlace.base.schema import validate
from interlace.data.batches import IGNORE, Batch, Pairs, parts
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.evaluate.training import train_and_report
from interlace.model.presets import PRESETS, preset
from interlace.train.loop import train
from interlace.train.objectives.preference import Preference, pair_log_probs
from interlace.train.recipe import ObjectiveSettings, Recipe

TINY = [name for name in PRESETS if name.startswith("tiny")]
KINDS = {
    "dpo": {"beta": 0.3},
    "dpo smoothed": {"kind": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    "dpo_norm": {"beta": 2.0, "label_smoothing": 0.2},
    "ipo": {"beta": 0.4},
    "simpo": {"beta": 2.0, "margin": 0.5},
    "dpo with sft": {"kind": "dpo", "beta": 0.3, "sft": 0.7},
}


def batch_of(vocabulary):
    """Three pairs of odd lengths, one with a prompt of one token, one whose answer holds a turn that is not learnt."""
    lengths = [(9, 5, 3), (1, 4, 7), (6, 8, 2)]
    total = sum(map(sum, lengths))
    tokens = torch.randint(vocabulary, (total,))
    learnt, place = torch.zeros(total, dtype=torch.bool), 0
    for prompt, better, worse in lengths:
        learnt[place + prompt : place + prompt + better + worse] = True
        place += prompt + better + worse
    learnt[-8:-5] = False
    segments = interlace.Segments.from_lengths([n for three in lengths for n in three])
    return Batch(tokens, torch.where(learnt, tokens, IGNORE), segments, pairs=torch.tensor([2, 0, 1]))


def by_the_formula(model, batch, reference, settings):
    """The mean loss, each answer read by itself after its prompt, in plain arithmetic."""
    offsets, losses = batch.segments.offsets.tolist(), []
    for pair, place in enumerate(batch.pairs.tolist()):
        a, b, c, d = offsets[3 * pair : 3 * pair + 4]
        sums, counts = [], []
        for begin, end in ((b, c), (c, d)):
            ids = torch.cat((batch.tokens[a:b], batch.tokens[begin:end]))
            goal = batch.targets[begin:end]
            log_p = torch.log_softmax(model(ids)[0], -1)[b - a - 1 : -1]
            kept = goal != IGNORE
            sums.append(log_p[torch.arange(len(goal)), goal.clamp(min=0)][kept].sum())
            counts.append(int(kept.sum()))
        C, R = sums if settings.kind == "simpo" else (s - r for s, r in zip(sums, reference[place], strict=True))
        c_mean, r_mean = C / counts[0], R / counts[1]
        beta, smooth = settings.beta, settings.label_smoothing
        if settings.kind == "ipo":
            loss = (c_mean - r_mean - 1 / (2 * beta)) ** 2
        else:
            x = beta * (C - R) if settings.kind == "dpo" else beta * (c_mean - r_mean) - settings.margin
            loss = (1 - smooth) * torch.log1p(torch.exp(-x)) + smooth * torch.log1p(torch.exp(x))
        losses.append(loss - settings.sft * sums[0] / counts[0])
    return torch.stack(losses).mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_losses_and_gradients_are_those_of_the_formulas(name, share):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid")).double()
    settings = ObjectiveSettings(**{"kind": name, **KINDS[name], "share_prompt": share})
    batch, reference = batch_of(model.config.vocabulary), -20 * torch.rand(3, 2, dtype=torch.float64)
    found = Preference(settings, reference)(model, batch)
    want = by_the_formula(model, batch, reference, settings)
    assert found.minimised.item() == pytest.approx(want.item(), rel=1e-9)
    ours, theirs = gradients(model, found.minimised), gradients(model, want)
    assert (ours - theirs).norm() < 1e-7 * theirs.norm()


@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_layer_reads_the_prompt_once(name):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name)).double()
    batch = batch_of(model.config.vocabulary)
    both = [pair_log_probs(model, batch, share_prompt=share) for share in (True, False)]
    assert torch.allclose(both[0].sums, both[1].sums, rtol=1e-9)
    weights = torch.tensor([[1.0, -0.5], [0.3, -0.2], [0.1, 0.7]]).double()
    ours, theirs = (gradients(model, (found.sums * weights).sum()) for found in both)
    assert (ours - theirs).norm() < 1e-8 * theirs.norm()


def test_parts_of_a_batch_add_up():
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid")).double()
    settings, batch = ObjectiveSettings(kind="dpo"), batch_of(model.config.vocabulary)
    objective = Preference(settings, -20 * torch.rand(3, 2, dtype=torch.float64))
    whole = objective(model, batch)
    some = [objective(model, part) for part in parts(batch, 5)]  # more parts than pairs: some are empty
    assert sum(x.value.item() for x in some) == pytest.approx(whole.value.item(), rel=1e-6)
    ours, theirs = (gradients(model, x) for x in (sum(x.minimised for x in some), whole.minimised))
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    for number, value in whole.more.items():
        assert float(sum(x.more[number] for x in some)) == pytest.approx(float(value), rel=1e-6)


def question(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(count):
    """Pairs in every form that is read."""
    found = []
    for i in range(count):
        ask, good, bad = f"how fast is fox {i % 17}?", f"the quick fox {i} jumps", f"slow {i * 7 % 13}"
        forms = (
            {"chosen": [question(ask), answer(good)], "rejected": [question(ask), answer(bad)]},
            {"prompt": ask, "chosen": good, "rejected": bad},
            {"prompt": [question(ask)], "chosen": [answer(good)], "rejected": [answer(bad)]},
        )
        found.append(forms[i % 3])
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a trained model, a folder of pairs prepared with its tokenizer, plain data of a recipe)."""
    folder = tmp_path_factory.mktemp("pairs")
    plan = recipe_of(texts_in(folder / "texts"))
    train(validate(Recipe, plan, ""), folder / "base", scored)
    source = written(folder / "pairs.jsonl", rows_of(90))
    tokenizer = str(folder / "base/data/tokenizer.json")
    prepare(Sources([source]), tokenizer, folder / "prepared", held_out_share=0.2)
    data = {"source": [str(folder / "prepared")], "tokenizer": tokenizer, "length": 96, "rows": 4}
    settings = {"start": str(folder / "base"), "tokens": 12 * 384, "evaluations": 3, "checkpoints": 4}
    settings |= {"learning_rate": 3e-3, "evaluation_tokens": 768, "precision": "float32"}
    return folder, {**plan, "data": data, "train": settings, "objective": {"kind": "dpo", "beta": 0.5}}


def test_pairs_are_stored_with_their_prompt_once(made):
    corpus = Corpus.open(made[0] / "prepared")
    corpus.verify()
    split, decode = corpus.splits["train"], corpus.tokenizer.decode
    assert split.kind == "pair"
    pairs = Pairs(split, 4, 96, seed=0)
    batch = pairs.of(np.array([0, 5]))
    texts = [decode(ids.tolist()) for ids in batch.tokens.split(batch.segments.lengths)]
    for prompt, better, worse in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        assert prompt.startswith("<|user|>\nhow fast is fox")
        assert prompt.endswith("<|assistant|>\n")
        assert better.startswith("the quick fox")
        assert worse.startswith("slow")
    goals = batch.targets.split(batch.segments.lengths)
    assert all((g == IGNORE).all() for g in goals[::3])
    assert all((g != IGNORE).all() for g in (*goals[1::3], *goals[2::3]))
    seen = np.concatenate([pairs.batch(i).pairs.numpy() for i in range(pairs.per_epoch)])
    assert sorted(seen) == list(range(len(split.borders) - 1))
    assert all(pairs.batch(i).segments.total <= 4 * 96 for i in range(pairs.per_epoch))


def test_the_better_answers_become_preferred(made, tmp_path):
    run = train_and_report(validate(Recipe, made[1], ""), tmp_path / "run")
    rows = list(run.metrics())
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the model is its own reference
    scores = [row for row in rows if "held_out_wins" in row]
    assert scores[-1]["held_out_wins"] > scores[-1]["held_out_losses"]
    assert scores[-1]["held_out_loss"] < math.log(2)
    assert rows[-1]["margin"] > 0.1
    assert "held_out_bits_per_byte" in rows[-1]
    assert "pairs" in (run.path / "report.html").read_text()


class Stop(Exception):
    pass


def unscored(corpus):
    """Training on pairs without held-out scores."""
    return lambda model: {}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_run_that_was_stopped_ends_with_the_same_weights(made, tmp_path, lora):
    plan = {**made[1], "train": {**made[1]["train"], **({"lora": lora} if lora else {})}}
    plan = validate(Recipe, plan, "")

    def stop(now, label, after):
        if now.label == label and now.done >= after:
            raise Stop

    train(plan, tmp_path / "whole", unscored)
    for label, after in (("reference", 2), ("training", 8)):
        with contextlib.suppress(Stop):
            train(plan, tmp_path / "run", unscored, lambda now, label=label, after=after: stop(now, label, after))
        if label == "reference":  # killed while a line was written
            with open(tmp_path / "run/reference/train.jsonl", "ab") as file:
                file.write(b'{"block": 2, "pai')
    train(plan, tmp_path / "run", unscored)
    last, name = "checkpoints/step-12", "adapter_model.safetensors" if lora else "model.safetensors"
    for file in (
        f"{last}/{name}",
        f"{last}/optimizer.safetensors",
        "reference/train.jsonl",
        "reference/held_out.jsonl",
    ):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
def test_the_reference_of_another_process_is_the_same(made, tmp_path):
    recipe = tmp_path / "plan.json"
    recipe.write_text(json.dumps(made[1]))
    script = (
        "import json, sys; from pathlib import Path\n"
        "from interlace.base.schema import validate; from interlace.train.recipe import Recipe\n"
        "from interlace.evaluate.training import train_and_report\n"
        "plan = json.loads(Path(sys.argv[1]).read_text())\n"
        "train_and_report(validate(Recipe, plan, ''), Path(sys.argv[2]))\n"
    )
    subprocess.run([sys.executable, "-c", script, recipe, tmp_path / "other"], check=True, capture_output=True)
    train(validate(Recipe, made[1], ""), tmp_path / "here", unscored)
    for name in ("train", "held_out"):
        both = [(tmp_path / run / f"reference/{name}.jsonl").read_bytes() for run in ("here", "other")]
        assert both[0] == both[1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"chosen": "b", "rejected": "c"}, "chosen is a text, and there is no prompt"),
        ({"chosen": [question("a"), answer("b")], "rejected": [question("c"), answer("d")]}, "no common prompt"),
        ({"chosen": [question("a"), answer("b")], "rejected": [question("a")]}, "nothing to learn"),
        (
            {"chosen": [question("a"), answer("b")], "rejected": [question("a"), answer("c"), question("d")]},
            "rejected must hold an assistant's answer to the common prompt, and end with one",
        ),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "prompt must be a text or a list"),
        ({"prompt": "a", "chosen": 5, "rejected": "c"}, "chosen must be a list of turns or a text"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(made, tmp_path, row, said):
    source = written(tmp_path / "pairs.jsonl", [*rows_of(6), row])
    with pytest.raises(DataError, match=rf"pairs.jsonl:7.*{said}"):
        prepare(Sources([source]), made[1]["data"]["tokenizer"], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": {"kind": "next_token"}}, "the data are pairs of answers"),
        ({"objective": {"kind": "dpoo"}}, "objective.kind"),
        ({"objective": {"kind": "dpo", "margin": 0.5}}, 'margin: is of kind = "simpo"'),
        ({"objective": {"kind": "simpo", "reference": "x"}}, 'reference: kind = "simpo" has none'),
        ({"data": {"length": 8}}, "none of 67 pairs has a prompt and an answer within 8 tokens"),
        ({"data": {"source": ["TEXTS"]}}, '"dpo" is of pairs of answers, but the data are texts'),
        ({"train": {"start": ""}}, 'kind = "dpo" compares with a model; set train.start'),
    ],
)
def test_settings_that_do_not_fit(made, tmp_path, change, said):
    plan = {**made[1], **{key: {**made[1].get(key, {}), **value} for key, value in change.items()}}
    if "objective" in change:
        plan["objective"] = change["objective"]
    if plan["data"]["source"] == ["TEXTS"]:
        plan["data"]["source"] = [str(made[0] / "texts")]
    with pytest.raises((ConfigError, DataError), match=said):
        train(validate(Recipe, plan, ""), tmp_path / "run", unscored)


def test_one_row_holds_a_pair_however_long_its_prompt(made, tmp_path):
    """A prompt counts twice: a pair may pass rows x length tokens, and is a batch of its own."""
    rows = [{"prompt": "fox " * (20 + i), "chosen": f"jumps {i}", "rejected": "no"} for i in range(12)]
    prepare(Sources([written(tmp_path / "p.jsonl", rows)]), made[1]["data"]["tokenizer"], tmp_path / "out")
    split = Corpus.open(tmp_path / "out").splits["train"]
    longest = int(max(np.diff(split.borders)))
    pairs = Pairs(split, 1, longest, seed=0)
    assert pairs.left_out == 0
    seen = np.concatenate([pairs.batch(i).pairs.numpy() for i in range(pairs.per_epoch)])
    assert sorted(seen) == list(range(len(split.borders) - 1))


def test_a_prompt_that_both_sides_hold_is_not_read_twice(made, tmp_path):
    system = {"role": "system", "content": "be quick"}
    rows = [
        {
            "prompt": " hi ",
            "chosen": [system, question("hi"), answer(f"a{i}")],
            "rejected": [system, question("hi"), answer("b")],
        }
        for i in range(6)
    ]
    prepare(Sources([written(tmp_path / "p.jsonl", rows)]), made[1]["data"]["tokenizer"], tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    text = corpus.tokenizer.decode(corpus.splits["train"].read(0, int(corpus.splits["train"].borders[1])).tolist())
    assert text.count("hi") == 1
    wrong = [
        *rows,
        {"prompt": "ho", "chosen": [question("hi"), answer("a")], "rejected": [question("hi"), answer("b")]},
    ]
    with pytest.raises(DataError, match="is not the last of prompt"):
        prepare(Sources([written(tmp_path / "q.jsonl", wrong)]), made[1]["data"]["tokenizer"], tmp_path / "other")


def test_rows_with_messages_and_pairs_are_what_is_asked_for(made, tmp_path):
    rows = [{**row, "messages": [question("hi"), answer(f"quick {i}")]} for i, row in enumerate(rows_of(9))]
    source = written(tmp_path / "p.jsonl", rows)
    kinds = {kind: next(iter(Sources([source], kind=kind))).kind for kind in ("auto", "conversations", "pairs")}
    assert kinds == {"auto": "conversation", "conversations": "conversation", "pairs": "pair"}


def test_more_pairs_of_a_block_are_computed_when_longer_ones_are_read(made, tmp_path):
    """The reference of pairs that were read already stays as it was."""
    rows = [{"prompt": "fox", "chosen": f"quick {i} " * (1 + 9 * (i % 2)), "rejected": "no"} for i in range(40)]
    data = {**made[1]["data"], "source": [str(written(tmp_path / "p.jsonl", rows))], "held_out": 0.2}
    plan = {**made[1], "data": {**data, "length": 40}}
    train(validate(Recipe, plan, ""), tmp_path / "run", unscored)
    first = (tmp_path / "run/reference/train.jsonl").read_bytes()
    longer = {**plan, "data": {**data, "length": 120}, "train": {**plan["train"], "tokens": 20 * 384}}
    run = train(validate(Recipe, longer, ""), tmp_path / "run", unscored, changes=["data.length", "train.tokens"])
    assert (tmp_path / "run/reference/train.jsonl").read_bytes().startswith(first)
    assert not any("skipped" in row for row in run.metrics())


def test_a_reference_with_another_tokenizer_is_refused(made, tmp_path):
    other = interlace.HybridLM(interlace.load(made[0] / "base").config)
    other.tokenizer = Tokenizer.train(iter(["another text of words " * 20]), 300)
    interlace.save(other, tmp_path / "other")
    plan = {**made[1], "objective": {**made[1]["objective"], "reference": str(tmp_path / "other")}}
    with pytest.raises(ConfigError, match="objective.reference: .* has another tokenizer"):
        train(validate(Recipe, plan, ""), tmp_path / "run", unscored)
