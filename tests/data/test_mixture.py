"""Mixtures and packs: shares as the weights say, each source read in order, batches a function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interlace.base.errors import ConfigError, DataError
from interlace.base.schema import validate
from interlace.cli.main import run
from interlace.data.batches import IGNORE, batches
from interlace.data.mixture import BLOCK, Ingredient, Mixture, joined
from interlace.data.tokens import TokenSplit
from interlace.train.recipe import DataSettings

LENGTH = 8


def split(first, sizes, learnt=None):
    """Documents of rising tokens, so that each token tells where it comes from."""
    tokens = np.arange(first, first + sum(sizes), dtype=np.int64)
    return TokenSplit([tokens], np.array([0, len(tokens)]), np.cumsum([0, *sizes]), learnt)


def mixture(weights, epochs=None, rows=4, seed=0, sizes=None):
    sizes = sizes or [[40] * 20] * len(weights)
    epochs = epochs or [None] * len(weights)
    parts = [
        Ingredient(f"s{i}", split(i * 100_000, sizes[i]), w, e)
        for i, (w, e) in enumerate(zip(weights, epochs, strict=True))
    ]
    return Mixture(parts, rows, LENGTH, seed)


def sources_of(batch):
    return batch.tokens.view(-1, LENGTH)[:, 0] // 100_000


def test_rows_are_shared_out_as_the_weights_say():
    weights = np.array([0.7, 0.299, 0.001])
    read = mixture(list(weights), rows=8)
    drawn = torch.cat([sources_of(read.batch(step)) for step in range(8 * BLOCK)])
    for blocks in range(1, 65):
        found = np.bincount(drawn[: blocks * BLOCK], minlength=3)
        assert np.abs(found - weights * blocks * BLOCK).max() <= 1
    first, second = drawn[:BLOCK], drawn[BLOCK : 2 * BLOCK]
    assert not torch.equal(first, second)


def test_each_source_is_read_whole_before_it_is_read_again():
    read = mixture([3.0, 1.0], sizes=[[50] * 40, [13] * 20])
    seen = {0: [], 1: []}
    for step in range(200):
        batch = read.batch(step)
        for row, source in zip(batch.tokens.view(-1, LENGTH), sources_of(batch), strict=True):
            seen[int(source)].append(tuple(row.tolist()))
    for number, rows in seen.items():
        whole = (split(0, [50] * 40).count if not number else 260) - 1
        epoch = whole // LENGTH
        assert len(rows) > 2 * epoch
        tokens = [t for row in rows[:epoch] for t in row]
        assert len(set(tokens)) == len(tokens)
        assert rows[:epoch] != rows[epoch : 2 * epoch]


def test_a_batch_is_a_function_of_seed_and_step():
    read, other = mixture([1.0, 2.0]), mixture([1.0, 2.0])
    later = other.batch(700)
    for step in (0, 5, 255, 256, 700):
        assert torch.equal(read.batch(step).tokens, mixture([1.0, 2.0]).batch(step).tokens)
    assert torch.equal(read.batch(700).tokens, later.tokens)
    assert not torch.equal(mixture([1.0, 2.0], seed=1).batch(0).tokens, read.batch(0).tokens)


def test_a_source_that_has_been_read_ends_and_the_others_go_on():
    read = mixture([1.0, 1.0], epochs=[2, None], rows=4)
    rows = 2 * ((800 - 1) // LENGTH)
    drawn = torch.cat([sources_of(read.batch(step)) for step in range(768)])
    assert int((drawn == 0).sum()) == rows
    assert (drawn[2 * rows + BLOCK :] == 1).all()
    ((name, step),) = read.ends(768)
    assert name == "s0"
    assert (drawn[4 * (step - 1) : 4 * step] == 0).any()
    assert (drawn[4 * step :] == 1).all()
    assert read.ends(step - 1) == []


def test_where_all_sources_end_so_does_the_mixture():
    read = mixture([1.0, 5.0], epochs=[1, 0.5])
    rows = 99 + 49
    assert read.steps == rows // 4
    seen = torch.cat([sources_of(read.batch(step)) for step in range(read.steps)])
    assert len(seen) == rows // 4 * 4
    with pytest.raises(DataError, match=f"all sources end after {rows // 4} steps"):
        read.batch(read.steps)


@pytest.mark.parametrize(
    ("weights", "epochs"),
    [
        ([1.0, 0.001, 5.0], [2, 0.02, None]),  # a share of a row in 1,000, which ends after two
        ([3.0, 0.0, 1.0], [1, 1, 1]),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 3]),  # two that end at once
        ([0.3, 0.7, 1e-9], [7, 0.3, 0.5]),
    ],
)
def test_each_source_ends_where_it_is_said_to(weights, epochs):
    read = mixture(weights, epochs)
    steps = min(read.steps, 600)
    drawn = torch.cat([sources_of(read.batch(step)) for step in range(steps)])
    said = dict(read.ends(steps))
    for number, (weight, most) in enumerate(zip(weights, epochs, strict=True)):
        places = torch.nonzero(drawn == number)
        limit = int(most * 99) if most and weight else None
        assert limit is None or len(places) <= limit
        assert said.get(f"s{number}") == (int(places[-1]) // 4 + 1 if len(places) == limit else None)
        assert weight or not len(places)


def test_a_source_without_a_row_is_named():
    with pytest.raises(DataError, match=r"data\.mixture\.s0\.epochs: 0.001 of 99 rows is none"):
        mixture([1.0, 1.0], epochs=[0.001, None])


def test_joined_splits_are_read_one_after_the_other():
    one, two = split(0, [5, 3]), split(100, [4])
    both = joined([one, two])
    assert both.borders.tolist() == [0, 5, 8, 12]
    assert both.read(6, 10).tolist() == [6, 7, 100, 101]


@pytest.mark.parametrize("sizes", [[5, 12, 3, 31, 8, 1, 9], [40], [8, 8, 8, 8]])
def test_packs_hold_whole_documents_and_every_token_once(sizes):
    read = batches(split(0, sizes), 2, LENGTH, 0, "documents")
    tokens, targets = [], []
    for step in range(read.per_epoch):
        batch = read.batch(step)
        assert batch.tokens.numel() <= 2 * LENGTH
        assert max(batch.segments.lengths) <= LENGTH
        tokens += batch.tokens.tolist()
        targets += batch.targets.tolist()
    assert sorted(tokens) == list(range(sum(sizes)))
    ends = set(np.cumsum(sizes) - 1)
    for token, target in zip(tokens, targets, strict=True):  # a piece's last token knows what comes next
        assert target == (IGNORE if token in ends else token + 1)


def test_a_long_document_is_refused_where_that_is_asked_for():
    with pytest.raises(DataError, match=r"1 documents have more than 8 tokens, the longest 31; raise data\.length"):
        batches(split(0, [5, 31]), 2, LENGTH, 0, "documents", "refuse")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"mixture": {"a": {"source": "x", "weight": -1.0}}},
            "mixture.a.weight: input should be greater than or equal",
        ),
        ({"mixture": {"a": {"source": "x", "weight": 0.0}}}, "the weights sum to nothing"),
        ({"mixture": {"a": {"source": "x"}}, "source": "y"}, "leave one of them out"),
        ({}, "give one of them"),
        ({"mixture": {"a": {"source": "x"}}, "packing": "documents"}, "a mixture is of rows"),
        ({"mixture": {"a": {"source": "x", "epoch": 2}}}, "did you mean 'epochs'?"),
        ({"mixture": {"../a": {"source": "x"}}}, "should match pattern"),
        ({"source": "x", "long": "refuse"}, 'long: is for packing = "documents"'),
    ],
)
def test_bad_mixtures_are_named(change, words):
    with pytest.raises(ConfigError) as caught:
        validate(DataSettings, change, "data")
    assert words in str(caught.value)


def test_a_run_on_a_mixture(recipe, texts, tmp_path, capsys, caplog):
    import tomli_w

    other = tmp_path / "other"
    other.mkdir()
    for i in range(4):
        (other / f"{i}.txt").write_text(f"another text {i} " * 60)
    assert run(["data", "prepare", str(texts), "--tokenizer", "train:300", "--out", str(tmp_path / "one")]) == 0
    words = ["--tokenizer", str(tmp_path / "one/tokenizer.json"), "--held-out", "0.3"]
    assert run(["data", "prepare", str(other), *words, "--out", str(tmp_path / "two")]) == 0
    recipe["data"] = {
        "length": 48,
        "rows": 4,
        "mixture": {"one": {"source": str(tmp_path / "one"), "weight": 3.0}, "two": {"source": str(tmp_path / "two")}},
    }
    file = tmp_path / "plan.toml"
    file.write_text(tomli_w.dumps(recipe))
    assert run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    assert "mixture of one (75%)" in (tmp_path / "run/report.html").read_text()
    assert run(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    few = ["train", str(file), "data.mixture.two.epochs=0.5", "--out"]
    caplog.clear()
    assert run([*few, str(tmp_path / "few")]) == 0
    assert "data.mixture.two: ends by step" in caplog.text
    capsys.readouterr()
    assert run([*few, str(tmp_path / "x"), "data.mixture.two.source=nowhere"]) == 2
    assert "data.mixture.two: nowhere: no such file or folder" in capsys.readouterr().err
    assert run([*few, str(tmp_path / "y"), "data.mixture.one.epochs=0.01"]) == 2
    assert "all sources end after" in capsys.readouterr().err
