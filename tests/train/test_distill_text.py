"""A teacher with another tokenizer: spans of text, what both say of them, and runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small import recipe_of, texts_in

import interlace
from interlace.base.errors import ConfigError
from interlace.base.schema import validate
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch
from interlace.data.tokenizer import Tokenizer
from interlace.model.presets import preset
from interlace.train.loop import train
from interlace.train.objectives.spans import AcrossTokenizers, Aligner, two_outcomes
from interlace.train.recipe import Recipe

TEXT = ["the quick fox jumps over the lazy dog, and so on: 12345 naïve façades; 日本語 and 🦊🦊 end\n"] * 30


@pytest.fixture(scope="module")
def tokenizers():
    """Two of bytes, which were learnt from other texts, and so cut words elsewhere."""
    other = ["over and over the dogs and the foxes naive 54321 日本 \n" * 20]
    return Tokenizer.train(TEXT, 320), Tokenizer.train(other, 300)


def bytes_of(tokenizer, ids):
    return [tokenizer.byte_lengths()[i].item() for i in ids]


@pytest.mark.parametrize("cut", [(0, 0), (3, 0), (0, 2), (25, 9)])
def test_spans_are_the_same_text_for_both(tokenizers, cut):
    """Wherever a piece of a text begins and ends, amid a character too."""
    ours, theirs = tokenizers
    ids = ours.encode(TEXT[0] * 2)
    ids = [*ids[cut[0] : len(ids) - cut[1]], *([ours.eos] if not cut[1] else [])]
    found = Aligner(ours, theirs).spans_of(ids)
    assert found is not None
    assert found.count > 10
    assert found.ours[0] == -1
    assert found.theirs[0] == -1
    for span in range(found.count):
        mine, other = (
            [i for i, s in zip(ids, found.ours, strict=True) if s == span],
            [i for i, s in zip(found.ids, found.theirs, strict=True) if s == span],
        )
        assert mine
        assert other
        assert sum(bytes_of(ours, mine)) == sum(bytes_of(theirs, other)) > 0
        if all(len(x) > 1 for x in (mine, other)):  # no shorter span has both borders
            inner = [
                set(torch.tensor(bytes_of(t, x)).cumsum(0)[:-1].tolist()) for t, x in ((ours, mine), (theirs, other))
            ]
            assert not inner[0] & inner[1]
    text = theirs.decode(found.ids)
    assert text in TEXT[0] * 2
    assert (found.ours >= 0).sum() > 0.7 * len(ids)


def test_what_cannot_be_aligned_has_no_spans(tokenizers):
    ours, theirs = tokenizers
    aligner = Aligner(ours, theirs)
    assert aligner.spans_of([]) is None
    assert aligner.spans_of([ours.eos]) is None
    assert aligner.spans_of(ours.encode("a")) is None
    broken = ours.encode("日本語")[1:2]
    assert aligner.spans_of(broken * 9) is None


def test_two_outcomes_are_the_formula_s():
    """Nearly certain and nearly impossible spans too: no NaN, and the slope of likely ones is right."""
    teacher = torch.tensor([-1e-9, -1e-3, -0.5, -5.0, -60.0, -800.0, -0.5, -800.0], dtype=torch.float64)
    student = torch.tensor(
        [-0.5, -2.0, -0.5, -1e-4, -2.0, -3.0, -800.0, -800.0], dtype=torch.float64, requires_grad=True
    )
    p, q = teacher.exp(), student.exp()
    want = torch.where(p > 0, p * (teacher - student), 0.0) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))
    found = two_outcomes(teacher, student)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-8)
    slopes = [torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (found, want)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=1e-8)
    low = two_outcomes(teacher.float(), student.detach().float())
    assert bool(low.isfinite().all())
    assert two_outcomes(torch.tensor([0.0]), torch.tensor([0.0])).item() == pytest.approx(0, abs=1e-5)


def models(tokenizers):
    torch.manual_seed(2)
    made = []
    for name, tokenizer in zip(("tiny-hybrid", "tiny-transformer"), tokenizers, strict=True):
        config = preset(name)
        model = interlace.HybridLM(config.model_copy(update={"vocabulary": tokenizer.vocabulary}))
        model.tokenizer = tokenizer
        made.append(model)
    made[1].eval().requires_grad_(False)
    return made


def batch_of(tokenizer):
    rows = [tokenizer.encode(TEXT[0] * 3)[:40], [*tokenizer.encode("so the dog jumps"), tokenizer.eos]]
    tokens = torch.tensor([i for row in rows for i in row])
    targets = torch.cat([torch.tensor([*row[1:], IGNORE]) for row in rows])
    targets[39] = tokenizer.encode(TEXT[0] * 3)[40]  # the text goes on in another row
    return Batch(tokens, targets, Segments.from_lengths([len(row) for row in rows]))


def test_loss_is_the_sum_over_spans(tokenizers):
    student, teacher = models(tokenizers)
    aligner, batch = Aligner(*tokenizers), batch_of(tokenizers[0])
    found = AcrossTokenizers(teacher, aligner, 0.7, 2.0)(student, batch)
    nats = spans = tokens = 0.0
    for (begin, end), more in zip(batch.segments.spans(), (True, False), strict=True):
        ids = [*batch.tokens[begin:end].tolist(), *([int(batch.targets[end - 1])] if more else [])]
        one = aligner.spans_of(ids)
        sums = []
        for model, its, belongs in ((student, ids, one.ours), (teacher, one.ids, one.theirs)):
            likely = model(torch.tensor(its))[0].detach().double().log_softmax(-1)[:-1]
            each = likely.gather(1, torch.tensor(its[1:])[:, None]).squeeze(1)
            where = torch.tensor(belongs[1:])
            sums.append(torch.zeros(one.count, dtype=torch.float64).index_add(0, where[where >= 0], each[where >= 0]))
            if model is student:
                nats -= float(each.sum())
                counts = torch.bincount(where[where >= 0], minlength=one.count)
        spans += float((counts * two_outcomes(sums[1] / 2, sums[0] / 2)).sum())
        tokens += int(counts.sum())
    whole = batch.counted
    assert found.more["aligned"].item() == pytest.approx(tokens / whole)
    assert found.more["divergence"].item() == pytest.approx(spans / whole, rel=1e-4)
    assert found.value.item() == pytest.approx((0.3 * nats + 0.7 * 4 * spans) / whole, rel=1e-4)
    gradients = torch.autograd.grad(found.minimised, [p for p in student.parameters() if p.requires_grad])
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_a_student_of_itself_has_nothing_to_learn(tokenizers):
    """Each span is then a token."""
    student, _ = models(tokenizers)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    aligner, batch = Aligner(tokenizers[0], tokenizers[0]), batch_of(tokenizers[0])
    found = AcrossTokenizers(teacher, aligner)(student, batch)
    assert found.more["aligned"].item() > 0.9
    assert abs(found.value.item()) < 1e-6
    gradients = torch.autograd.grad(found.minimised, [p for p in student.parameters() if p.requires_grad])
    assert max(float(g.abs().max()) for g in gradients) < 1e-5
    nothing = Batch(batch.tokens, torch.full_like(batch.targets, IGNORE), batch.segments)
    assert AcrossTokenizers(teacher, aligner)(student, nothing).value.item() == 0


def test_a_run_learns_from_a_teacher_with_another_tokenizer(tmp_path):
    plain = recipe_of(texts_in(tmp_path / "texts"))
    run = train(validate(Recipe, plain, ""), tmp_path / "teacher", lambda corpus: lambda model: {})
    plan = copy.deepcopy(plain)
    plan["data"]["tokenizer"] = "train:280"
    plan["objective"] = {"kind": "distill", "teacher": str(run.newest_good()), "align": "text", "soft": 0.5}
    rows = list(train(validate(Recipe, plan, ""), tmp_path / "run", lambda corpus: lambda model: {}).metrics())
    rows = [row for row in rows if "aligned" in row]
    assert rows[0]["aligned"] > 0.5
    assert rows[-1]["divergence"] < 0.8 * rows[0]["divergence"]
    assert math.isfinite(rows[-1]["loss"])
    for more, says in (
        ({"divergence": "reverse_kl"}, 'align: "text" needs'),
        ({"hidden": 1.0}, 'align: "text" needs'),
        ({"soft": 0.0}, "soft: is 0"),
    ):
        with pytest.raises(ConfigError) as error:
            validate(Recipe, {**plan, "objective": {**plan["objective"], **more}}, "")
        assert says in str(error.value)
