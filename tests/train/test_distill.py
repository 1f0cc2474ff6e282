"""A student learns its teacher's distribution: divergences against formulas in float64, estimates of them, and runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import interlace
from interlace.base.errors import CheckpointError, ConfigError, RunError
from interlace.base.schema import validate
from interlace.base.segments import Segments
from interlace.checkpoint.tensors import read_header
from interlace.data.batches import IGNORE, Batch
from interlace.evaluate.training import train_and_report
from interlace.model.memory import Alive
from interlace.model.presets import preset
from interlace.train.estimate import estimate
from interlace.train.loop import train
from interlace.train.objectives import distill as distilling
from interlace.train.objectives.distill import Distill, Drawn, Exact, Likeliest, Live, distilled_loss, projection_of
from interlace.train.objectives.divergence import divergence
from interlace.train.recipe import ObjectiveSettings, Recipe
from interlace.train.replay import replay

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl", "total_variation")
MIXTURE = 0.3


def kl(p, q):
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


def formula(kind, p, q, b=MIXTURE):
    """As it stands in the papers, of probabilities [rows, V] in float64."""
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    if kind == "jensen_shannon":
        middle = b * p + (1 - b) * q
        return b * kl(p, middle) + (1 - b) * kl(q, middle)
    if kind == "skew_kl":
        return kl(p, b * p + (1 - b) * q)
    if kind == "skew_reverse_kl":
        return kl(q, (1 - b) * p + b * q)
    return (p - q).abs().sum(-1) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_divergence_and_its_gradient_are_the_formula_s(kind, scale):
    """scale 30: most probabilities are below the least float32, some below the least float64."""
    teacher, student = (torch.randn(7, 50, dtype=torch.float64) * scale for _ in range(2))
    student[0] = teacher[0]
    student.requires_grad_()
    want = formula(kind, teacher.softmax(-1), student.softmax(-1))
    (slope,) = torch.autograd.grad(want.sum(), student)
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        given = (x.detach().to(dtype).log_softmax(-1) for x in (teacher, student))
        found, gradient = divergence(kind, *given, MIXTURE)
        torch.testing.assert_close(found.double(), want.detach(), rtol=close, atol=close)
        torch.testing.assert_close(gradient.double(), slope, rtol=close, atol=close * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_what_underflows_is_neither_lost_nor_not_a_number(kind):
    """A token that one side gives e^-200 or nothing at all: far below the least float32, and the slope is right."""
    teacher = torch.tensor([[0.0, -200.0, -3.0], [-200.0, 0.0, -1.0], [0.0, -math.inf, 0.0]]).log_softmax(-1)
    student = torch.tensor([[-200.0, 0.0, -1.0], [-200.0, 0.0, -1.0], [0.0, 0.0, 0.0]]).log_softmax(-1)
    found, gradient = divergence(kind, teacher, student, MIXTURE)
    assert not bool(found.isnan().any() | gradient.isnan().any())
    assert bool((found > -1e-6).all())
    assert bool(gradient.isfinite().all())
    assert bool((gradient.sum(-1).abs() < 1e-6 * gradient.abs().sum(-1) + 1e-6).all())
    wide = [x[0].double() for x in (teacher, student)]
    assert found[0].item() == pytest.approx(formula(kind, *(x.exp() for x in wide)).item(), rel=1e-5, abs=1e-6)
    if kind == "forward_kl":
        assert gradient[0, 0].item() == pytest.approx(-teacher[0, 0].exp().item(), abs=1e-6)


def case(vocabulary=40, tokens=37, rows=23, dtype=torch.float64):
    """hidden, head, the teacher's hidden and head, targets and shares."""
    hidden, head = torch.randn(rows, 8, dtype=dtype), torch.randn(vocabulary, 8, dtype=dtype)
    there, other = torch.randn(rows, 5, dtype=dtype), torch.randn(tokens + 6, 5, dtype=dtype)
    return hidden, head, there, other, torch.randint(tokens, (rows,)), torch.rand(rows, dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("soft", "temperature"), [(1.0, 1.0), (0.3, 1.0), (0.6, 2.5)])
def test_loss_and_gradients_are_the_formula_s(kind, soft, temperature, monkeypatch):
    """In blocks of rows; tokens that only pad one of the vocabularies are left out of both distributions."""
    monkeypatch.setattr(distilling, "block_rows", lambda device, vocabulary: 4 * distilling.SHARE)
    hidden, head, there, other, targets, shares = case()
    hidden.requires_grad_()
    head.requires_grad_()
    p = (there @ other.T)[:, :37].div(temperature).softmax(-1)
    q = (hidden @ head.T)[:, :37].div(temperature).softmax(-1)
    nats = cross_entropy(hidden @ head.T, targets, reduction="none")
    apart = formula(kind, p, q)
    want = (shares * ((1 - soft) * nats + soft * temperature**2 * apart)).sum()
    taught = Exact(there, other, temperature, kind, MIXTURE)
    how = {"soft": soft, "temperature": temperature, "tokens": 37}
    found, parts = distilled_loss(hidden, head, targets, shares, taught, **how)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        parts, torch.stack(((shares * nats).sum(), (shares * apart).sum())), rtol=1e-6, atol=1e-6
    )
    for a, b in zip(*(torch.autograd.grad(3 * x, (hidden, head)) for x in (found, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    low = [x.float() if x.is_floating_point() else x for x in (hidden, head, targets, shares)]
    rough = distilled_loss(*low, Exact(there.float(), other.float(), temperature, kind, MIXTURE), **how)[0]
    torch.testing.assert_close(rough.double(), want, rtol=1e-5, atol=1e-5)


def test_draws_give_the_gradient_in_expectation():
    """Of 400 caches of 8 draws each: the mean gradient lies within 4 standard errors of the whole distribution's."""
    hidden, head, there, other, targets, shares = case(tokens=40)
    hidden.requires_grad_()
    p = (there @ other[:40].T).softmax(-1)

    def gradient(taught):
        return torch.autograd.grad(distilled_loss(hidden, head, targets, shares, taught)[0], hidden)[0]

    want = gradient(Exact(there, other[:40]))
    found = []
    for _ in range(400):
        ids = torch.multinomial(p, 8, replacement=True)
        found.append(gradient(Drawn(ids, torch.full_like(ids, 1 / 8, dtype=torch.float64))))
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / 20
    assert bool(((mean - want).abs() < 4.5 * error + 1e-12).all())
    top = p.topk(8)
    cut = gradient(Drawn(top.indices, top.values / top.values.sum(-1, keepdim=True)))
    assert bool(((cut - want).abs() > 4.5 * error).float().mean() > 0.2)  # the likeliest alone are another distribution


def minimiser(taught_of, start, steps=400):
    """The distribution that training ends at, where a student can be any."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    eye, target, share = torch.eye(len(start)), torch.zeros(1, dtype=torch.int64), torch.ones(1)
    for _ in range(steps):
        optimizer.zero_grad()
        distilled_loss(logits[None], eye, target, share, taught_of())[0].backward()
        optimizer.step()
    return logits.detach().softmax(-1)


def test_the_likeliest_tokens_alone_teach_another_distribution():
    """On a known one with a long tail: draws end at it, the likeliest without the rest far from it, and with the rest
    at the right sum of the tail, not at its form."""
    p = torch.tensor([0.3, 0.15, *[0.55 * (i + 1) / 55 for i in range(10)]])
    start = torch.zeros(12)
    top = p.topk(2)
    ids, shares = torch.arange(12)[None], p[None]
    whole = minimiser(lambda: Drawn(ids, shares), start)
    draws = minimiser(
        lambda: Drawn(torch.multinomial(p, 64, replacement=True)[None], torch.full((1, 64), 1 / 64)), start
    )
    cut = minimiser(lambda: Drawn(top.indices[None], (top.values / top.values.sum())[None]), start)
    rest = minimiser(lambda: Likeliest(top.indices[None], top.values.log()[None]), start)
    apart = [float((x - p).abs().sum() / 2) for x in (whole, draws, cut, rest)]
    assert apart[0] < 1e-3
    assert apart[1] < 0.05
    assert apart[2] > 0.5  # all of the tail is gone
    others = [i for i in range(12) if i not in top.indices.tolist()]
    assert float(rest[others].sum()) == pytest.approx(float(p[others].sum()), abs=1e-3)
    assert 0.05 < apart[3] < 0.3  # the tail is as flat as it was at the start


def test_the_rest_counts_as_one_token():
    """Value and gradient against the formula; what is nearly nothing, and teachers whose rest is nothing."""
    teacher, student = torch.randn(9, 30, dtype=torch.float64) * 3, torch.randn(9, 30, dtype=torch.float64) * 3
    student.requires_grad_()
    top = teacher.log_softmax(-1).topk(5)
    p, q = top.values.exp(), student.softmax(-1)
    inside = q.gather(1, top.indices)
    pair = [torch.cat((x, 1 - x.sum(-1, keepdim=True)), dim=1) for x in (p, inside)]
    (want,) = torch.autograd.grad(kl(*pair).sum(), student)
    value, gradient = Likeliest(top.indices, top.values).compare(slice(0, 9), student.detach().log_softmax(-1))
    torch.testing.assert_close(value, kl(*pair).detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-9)
    sure = torch.tensor([[0.0, -200.0]])
    value, gradient = Likeliest(torch.tensor([[0, 1]]), sure).compare(slice(0, 1), torch.zeros(1, 4).log_softmax(-1))
    assert value.item() == pytest.approx(math.log(4), abs=1e-5)
    torch.testing.assert_close(gradient, torch.tensor([[-0.75, 0.25, 0.25, 0.25]]))


def test_memory_does_not_grow_with_the_vocabulary():
    """Beside the heads and their gradient, which do."""
    peaks = []
    for vocabulary in (20_000, 250_000):
        hidden, there = torch.randn(600, 4), torch.randn(600, 4)
        head, other = torch.randn(vocabulary, 4), torch.randn(vocabulary, 4)
        with Alive([hidden, there, head, other]) as alive:
            distilled_loss(hidden, head, torch.zeros(600, dtype=torch.int64), torch.ones(600), Exact(there, other))
        peaks.append(alive.peak)
    assert peaks[1] < 1.05 * peaks[0]


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
def test_a_student_of_itself_has_nothing_to_learn(name):
    torch.manual_seed(1)
    model = interlace.HybridLM(preset(name))
    tokens = torch.randint(61, (40,))
    batch = Batch(
        tokens, torch.where(torch.rand(40) < 0.2, IGNORE, tokens.roll(-1)), Segments.from_lengths([25, 1, 14])
    )
    for kind in KINDS:
        teacher = Live(copy.deepcopy(model).eval().requires_grad_(False), kind=kind)
        loss = Distill(teacher, tokens=61)(model, batch)
        assert abs(loss.value.item()) < 1e-6
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss.minimised, trained, allow_unused=True)
        assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-6, kind


def test_targets_without_a_token_and_weights_count_as_they_should():
    torch.manual_seed(1)
    student, teacher = (interlace.HybridLM(preset("tiny-hybrid")) for _ in range(2))
    teacher.eval().requires_grad_(False)
    tokens, segments = torch.randint(61, (30,)), Segments.from_lengths([12, 18])
    targets = tokens.roll(-1).where(torch.arange(30) % 3 > 0, IGNORE)
    weights = torch.rand(30)
    objective = Distill(Live(teacher), soft=0.7)
    p, q = (m(tokens, segments)[0].detach().double() for m in (teacher, student))
    each = 0.7 * kl(p.softmax(-1), q.softmax(-1)) + 0.3 * cross_entropy(q, targets.clamp(min=0), reduction="none")
    kept = targets != IGNORE
    found = objective(student, Batch(tokens, targets, segments))
    assert found.value.item() == pytest.approx(float(each[kept].mean()), rel=1e-5)
    found = objective(student, Batch(tokens, targets, segments, weights))
    share = weights.double()[kept] / weights.double()[kept].sum()
    assert found.value.item() == pytest.approx(float((each[kept] * share).sum()), rel=1e-5)
    none = objective(student, Batch(tokens, torch.full_like(targets, IGNORE), segments))
    none.minimised.backward()
    assert none.value.item() == 0


# Runs


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher with padding in its vocabulary, and a recipe of a smaller student."""
    from small import recipe_of, texts_in

    folder = tmp_path_factory.mktemp("taught")
    plain = recipe_of(texts_in(folder / "texts"))
    teacher = {**plain, "model": {**plain["model"], "depth": 4, "vocabulary": 320}}
    run = train_and_report(validate(Recipe, teacher, ""), folder / "teacher")
    checkpoint = str(run.newest_good())
    plain["data"] = {**plain["data"], "source": [str(folder / "teacher" / "data")]}
    del plain["data"]["tokenizer"]
    plain["train"] = {**plain["train"], "tokens": 12 * 192, "checkpoints": 3}
    return {**plain, "objective": {"kind": "distill", "teacher": checkpoint, "soft": 0.5, "temperature": 2.0}}


def test_a_run_learns_from_a_teacher_and_can_be_replayed(taught, tmp_path):
    run = train_and_report(validate(Recipe, taught, ""), tmp_path / "run")
    rows = [row for row in run.metrics() if "divergence" in row]
    assert rows[-1]["divergence"] < 0.8 * rows[0]["divergence"]
    assert rows[0]["loss"] == pytest.approx(0.5 * rows[0]["next_token_nats"] + 2 * rows[0]["divergence"], rel=1e-5)
    assert "held_out_bits_per_byte" in list(run.metrics())[-1]
    assert replay(run, 3).loss == next(row["loss"] for row in run.metrics() if row["step"] == 3)


def test_a_teacher_s_memory_and_work_are_counted(taught):
    plan = validate(Recipe, taught, "")
    with_teacher, alone = (estimate(p) for p in (plan, plan.model_copy(update={"objective": ObjectiveSettings()})))
    weights = 4 * interlace.sizes(interlace.load(plan.objective.teacher).config).total
    assert with_teacher.weight_bytes - alone.weight_bytes > weights
    assert with_teacher.peak_memory_bytes - alone.peak_memory_bytes > weights
    assert 1.3 < with_teacher.training_flops / alone.training_flops < 2  # a forward pass of twice the depth


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"kind": "distill"}, 'teacher: kind = "distill" learns from one'),
        ({"temperature": 2.0}, 'temperature: is of kind = "distill"'),
        ({"kind": "dpo", "teacher": "x"}, 'teacher: is of kind = "distill"'),
        ({"kind": "distill", "teacher": "x", "mixture": 0.1}, 'mixture: divergence = "forward_kl" has none'),
        ({"kind": "distill", "teacher": "x", "temperature": 0.0}, "temperature"),
        ({"kind": "distill", "teacher": "x", "soft": 1.5}, "soft"),
        ({"kind": "distill", "teacher": "x", "divergence": "kl"}, "divergence"),
    ],
)
def test_settings_that_do_not_fit_are_named(taught, objective, says):
    with pytest.raises(ConfigError) as error:
        validate(Recipe, {**taught, "objective": objective}, "")
    assert says in str(error.value)


def test_a_teacher_that_does_not_fit_is_refused(taught, tmp_path, caplog):
    plan = copy.deepcopy(taught)
    plan["objective"]["teacher"] = str(tmp_path / "none")
    with pytest.raises(CheckpointError, match="none"):
        train(validate(Recipe, plan, ""), tmp_path / "a", lambda corpus: lambda model: {})
    other = interlace.load(taught["objective"]["teacher"])
    other.config = other.config.model_copy(update={"max_positions": 40})
    interlace.save(other, tmp_path / "short")
    plan["objective"]["teacher"] = str(tmp_path / "short")
    with pytest.raises(ConfigError, match="reads at most 40 tokens, and data.length is 48"):
        train(validate(Recipe, plan, ""), tmp_path / "b", lambda corpus: lambda model: {})
    texts = taught["data"]["source"][0] + "/../../texts"
    plan = {**copy.deepcopy(taught), "data": {**taught["data"], "source": [texts], "tokenizer": "train:290"}}
    with pytest.raises(ConfigError, match="has another tokenizer than the data"):
        train(validate(Recipe, plan, ""), tmp_path / "c", lambda corpus: lambda model: {})
    plan = copy.deepcopy(taught)
    plan["train"]["start"] = plan["objective"]["teacher"]
    plan["model"] = None
    with pytest.raises(RunError, match="teacher"):
        swapped_teacher(taught, tmp_path)


def swapped_teacher(taught, tmp_path):
    """A run whose teacher is another one when it goes on."""
    teacher = interlace.load(taught["objective"]["teacher"])
    interlace.save(teacher, tmp_path / "teacher")
    plan = copy.deepcopy(taught)
    plan["objective"]["teacher"] = str(tmp_path / "teacher")
    plan = validate(Recipe, plan, "")

    class Stop(Exception):
        pass

    def stop(now):
        if now.label == "training" and now.done >= 5:
            raise Stop

    with pytest.raises(Stop):
        train(plan, tmp_path / "run", lambda corpus: lambda model: {}, stop)
    with torch.no_grad():
        teacher.blocks[0].mlp.up.weight.mul_(2)
    import shutil

    shutil.rmtree(tmp_path / "teacher")
    interlace.save(teacher, tmp_path / "teacher")
    train(plan, tmp_path / "run", lambda corpus: lambda model: {})


def test_hidden_states_are_matched_by_a_learnt_projection(taught, tmp_path):
    """Their distance shrinks; the projection is part of a checkpoint, so that a run goes on to the same bits."""
    plan = copy.deepcopy(taught)
    plan["objective"] |= {"hidden": 0.5, "soft": 0.8}
    plan["train"] |= {"optimizer": "muon", "learning_rate": 3e-3}
    plan = validate(Recipe, plan, "")
    whole = train(plan, tmp_path / "whole", lambda corpus: lambda model: {})
    rows = [row for row in whole.metrics() if "hidden_distance" in row]
    assert rows[-1]["hidden_distance"] < 0.9 * rows[0]["hidden_distance"]
    parts = 0.2 * rows[0]["next_token_nats"] + 0.8 * 4 * rows[0]["divergence"] + 0.5 * rows[0]["hidden_distance"]
    assert rows[0]["loss"] == pytest.approx(parts, rel=1e-5)

    class Stop(Exception):
        pass

    def stop(now):
        if now.label == "training" and now.done >= 9:
            raise Stop

    with pytest.raises(Stop):
        train(plan, tmp_path / "run", lambda corpus: lambda model: {}, stop)
    train(plan, tmp_path / "run", lambda corpus: lambda model: {})
    for name in ("model.safetensors", "optimizer.safetensors"):
        both = [(tmp_path / run / "checkpoints" / "step-12" / name).read_bytes() for run in ("whole", "run")]
        assert both[0] == both[1], name
    found = read_header(tmp_path / "run" / "checkpoints" / "step-12" / "optimizer.safetensors")
    assert "value/objective.projection" in found


def test_the_distance_of_hidden_states_is_the_formula_s():
    torch.manual_seed(1)
    student, teacher = interlace.HybridLM(preset("tiny-hybrid")), interlace.HybridLM(preset("tiny-kimi"))
    teacher.eval().requires_grad_(False)
    projection = projection_of(student.config.width, teacher.config.width, 0, torch.device("cpu"))
    tokens = torch.randint(61, (30,))
    batch = Batch(tokens, tokens.roll(-1), Segments.from_lengths([12, 18]))
    loss = Distill(Live(teacher), 0.0, tokens=61, hidden=2.0, projection=projection)(student, batch)
    ours, theirs = (m.read(tokens, batch.segments).hidden.double() for m in (student, teacher))
    apart = (ours @ projection.double().T - theirs).square().sum(-1) / theirs.square().sum(-1)
    assert loss.more["hidden_distance"].item() == pytest.approx(apart.mean().item(), rel=1e-5)
    want = torch.autograd.grad(2 * apart.mean(), projection)[0]
    nats = cross_entropy(student.logits(student.read(tokens, batch.segments).hidden), batch.targets)
    assert loss.value.item() == pytest.approx((nats + 2 * apart.mean()).item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss.minimised, projection)[0], want, rtol=1e-4, atol=1e-6)
