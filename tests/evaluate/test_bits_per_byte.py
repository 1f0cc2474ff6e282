"""Bits per byte are what one works out by hand, whatever is packed with what, and cost the model nothing."""

from __future__ import annotations

import math

import pytest
import torch

from interlace.base.errors import ConfigError, DataError
from interlace.data.batches import IGNORE
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut, nats_of, score_text
from interlace.model.model import HybridLM
from interlace.model.presets import preset


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts").mkdir()
    for i in range(20):
        (folder / "texts" / f"{i:02}.txt").write_text(" ".join(f"wörter {i * j % 17} here" for j in range(40)))
    prepare(Sources([folder / "texts"]), "train:300", folder / "data", held_out_share=0.3)
    return Corpus.open(folder / "data")


@pytest.fixture
def model(corpus):
    model = HybridLM(preset("tiny-hybrid").replace(vocabulary=300, init_std=0.2))
    model.tokenizer = corpus.tokenizer
    return model


def test_nats_are_sums_of_minus_log_p():
    logits = torch.randn(7, 11)
    targets = torch.randint(11, (7,))
    want = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert nats_of(logits, targets) == pytest.approx(float(want), rel=1e-6)
    assert nats_of(torch.zeros(5, 8), torch.zeros(5, dtype=torch.int64)) == pytest.approx(5 * math.log(8))


def test_a_score_is_the_sum_over_rows_that_are_read_alone(corpus, model):
    """Row by row and document by document, each from nothing; bytes are those of the scored tokens."""
    held = HeldOut(corpus, 32, 256, rows=4)
    lengths = corpus.tokenizer.byte_lengths()
    nats, size, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in held.batches:
            for a, b in batch.segments.spans():
                logits = model.eval()(batch.tokens[a:b])[0]
                for place in range(a, b):
                    target = int(batch.targets[place])
                    if target != IGNORE and lengths[target] > 0:
                        nats -= float(torch.log_softmax(logits[place - a].double(), -1)[target])
                        size, count = size + int(lengths[target]), count + 1
    found = held.score(model)
    assert found["held_out_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["held_out_loss"] == pytest.approx(nats / count, rel=1e-5)


def test_the_same_rows_for_every_model_and_every_call(corpus, model):
    first, again = HeldOut(corpus, 32, 256), HeldOut(corpus, 32, 256)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first.batches, again.batches, strict=True))
    assert first.score(model) == first.score(model) == again.score(model)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_the_mode_it_was_in(corpus, model, training):
    model.train(training)
    HeldOut(corpus, 32, 64).score(model)
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())


def test_no_more_is_read_than_was_asked_for(corpus):
    held = HeldOut(corpus, 32, 100)
    assert sum(b.tokens.numel() for b in held.batches) <= 100
    assert HeldOut(corpus, 10**9, 10**9).batches  # a row is no longer than the split


def test_a_file_is_scored_as_one_sequence(corpus, model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("wörter here 12 " * 20)
    ids = torch.tensor(corpus.tokenizer.encode_text(file.read_text()))
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids[:-1])[0].double(), -1)
    nats = -float(log_p.gather(1, ids[1:, None]).sum())
    size = int(corpus.tokenizer.byte_lengths()[ids[1:]].sum())
    assert score_text(model, file) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_what_cannot_be_scored_is_named(model, tmp_path):
    (tmp_path / "one.txt").write_text("w")
    with pytest.raises(DataError, match="needs at least 2"):
        score_text(model, tmp_path / "one.txt")
    model.tokenizer = None
    with pytest.raises(ConfigError, match="no tokenizer"):
        score_text(model, tmp_path / "one.txt")
