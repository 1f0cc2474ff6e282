"""A teacher on disk: records are what it says there, in any order of reading; damage and mistakes are named."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from small import recipe_of, texts_in

import interlace
from interlace.base.errors import ConfigError, DataError, RunError
from interlace.base.schema import validate
from interlace.cli.main import run
from interlace.data.batches import IGNORE, batches
from interlace.data.tokens import Corpus
from interlace.evaluate.training import train_and_report
from interlace.train.cache import write
from interlace.train.cache.cache import Cache, Cached
from interlace.train.cache.facts import Records
from interlace.train.cache.shards import borders_of, learnt_places
from interlace.train.cache.write import Writer
from interlace.train.loop import train
from interlace.train.recipe import Recipe

KINDS = {
    "draws": Records(amount=20),
    "top_k": Records(kind="top_k", amount=7),
    "hidden": Records(kind="hidden", amount=0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher's checkpoint, its data, and caches of three kinds in many small shards, read in small parts."""
    folder = tmp_path_factory.mktemp("cache")
    plain = recipe_of(texts_in(folder / "texts"))
    plain["train"]["tokens"] = 4 * 192
    teacher = train_and_report(validate(Recipe, plain, ""), folder / "teacher")
    found = {"teacher": str(teacher.newest_good()), "data": folder / "teacher" / "data", "plain": plain}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "borders_of", lambda split: borders_of(split, 700))
        patch.setattr(write, "PART", 128)
        for kind, records in KINDS.items():
            Writer(found["teacher"], found["data"], records).run(folder / kind)
            found[kind] = folder / kind
    return found


def said(made, split, document):
    """log-probabilities [tokens, V] of a document by itself, and where it begins."""
    corpus = Corpus.open(made["data"])
    begin, end = (int(x) for x in corpus.splits[split].borders[document : document + 2])
    tokens = torch.from_numpy(corpus.splits[split].read(begin, end))
    with torch.no_grad():
        logits = interlace.load(made["teacher"], dtype=torch.float32)(tokens)[0]
    return logits[:, : corpus.tokenizer.vocabulary].log_softmax(-1), begin, end


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_is_what_the_teacher_says_there(made, kind):
    """Of documents that were read together, and of ones that were read in parts."""
    cache, corpus = Cache(made[kind]), Corpus.open(made["data"])
    assert len(cache.facts.borders["train"]) > 4
    for split, documents in (("train", (0, 3, 7)), ("held_out", (0,))):
        for document in documents:
            likely, begin, end = said(made, split, document)
            found = cache.records(split, corpus.splits[split], np.arange(begin, end - 1))
            if kind == "top_k":
                want = likely[:-1].topk(7)
                assert (torch.from_numpy(found["ids"].astype(int)) == want.indices).float().mean() > 0.99
                torch.testing.assert_close(
                    torch.from_numpy(found["log_probs"]).float(), want.values, rtol=2e-3, atol=1e-3
                )
            elif kind == "hidden":
                logits = torch.from_numpy(found["hidden"]).float() @ cache.head("cpu", torch.float32).T
                torch.testing.assert_close(logits.log_softmax(-1), likely[:-1], rtol=0, atol=0.02)
            else:
                ids, shares = (torch.from_numpy(found[name]) for name in ("ids", "shares"))
                torch.testing.assert_close(shares.sum(1), torch.ones(end - 1 - begin))
                dense = torch.zeros_like(likely[:-1]).scatter_add_(1, ids.long(), shares)
                # Pearson's statistic of many draws from the right distributions has the mean that its freedom says.
                p = likely[:-1].exp()
                fit = (20 * (dense - p).square() / p).sum() / ((p.shape[1] - 1) * p.shape[0])
                assert 0.5 < float(fit) < 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", ["rows", "documents"])
def test_a_batch_finds_its_tokens_in_any_order(made, kind, packing):
    """Shuffled, cut into rows, and read again in another epoch: the same records."""
    cache, split = Cache(made[kind]), Corpus.open(made["data"]).splits["train"]
    read = batches(split, 3, 40, seed=5, packing=packing)
    taught = Cached(cache, split, cache.head("cpu", torch.float32) if kind == "hidden" else None)
    for step in (0, 2, read.per_epoch + 1):
        batch = read.batch(step)
        places = (batch.targets != IGNORE).nonzero().squeeze(1)
        assert np.array_equal(batch.tokens, [split.read(p, p + 1)[0] for p in batch.places.tolist()])
        found, alone = taught(batch, places), []
        student = torch.randn(len(places), 300, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
        for row, place in enumerate(batch.places[places].tolist()):
            records = cache.records("train", split, np.array([place]))
            alone.append({name: values[0] for name, values in records.items()})
            assert np.array_equal(split.read(place + 1, place + 2)[0], int(batch.targets[places[row]]))
        value, _ = found.compare(slice(None), student[:, : cache.facts.tokens])
        assert bool(value.isfinite().all())
        if kind == "top_k":
            assert np.array_equal(found.ids.numpy(), [x["ids"] for x in alone])


def test_only_what_is_learnt_has_a_record(made):
    split = Corpus.open(made["data"]).splits["train"]
    learnt = learnt_places(split, 0, split.count)
    assert learnt.sum() == split.count - (len(split.borders) - 1)
    borders = borders_of(split, 700)
    assert np.array_equal(learnt, np.concatenate([learnt_places(split, a, b) for a, b in itertools.pairwise(borders)]))
    assert set(borders) <= set(np.asarray(split.borders).tolist())

    class Conversations:
        borders, learnt, count = np.array([0, 3, 4, 8]), np.array([0, 1, 1, 1, 0, 0, 1, 1], dtype=bool), 8

    assert learnt_places(Conversations, 0, 8).tolist() == [1, 1, 0, 0, 0, 1, 1, 0]
    assert learnt_places(Conversations, 3, 8).tolist() == [0, 0, 1, 1, 0]
    cache = Cache(made["draws"])
    with pytest.raises(DataError, match="has nothing of a token of this batch"):
        cache.records("train", split, np.array([int(split.borders[1]) - 1]))


def test_any_number_of_processes_and_kills_make_the_same_files(made, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "borders_of", lambda split: borders_of(split, 700))
    monkeypatch.setattr(write, "PART", 128)
    writer = Writer(made["teacher"], made["data"], KINDS["draws"])
    size = writer.size()

    class Stop(Exception):
        pass

    def stop(now):
        if now.done > now.total / 2:
            raise Stop

    with pytest.raises(Stop):
        writer.run(tmp_path / "cache", (1, 2), stop)
    with pytest.raises(DataError, match="of train are not there yet"):
        Cache(tmp_path / "cache")
    with open(tmp_path / "cache" / "shards-1-of-2.jsonl", "ab") as file:  # killed while a line was written
        file.write(b'{"split": "tr')
    for part in ((0, 2), (1, 2)):
        Writer(made["teacher"], made["data"], KINDS["draws"]).run(tmp_path / "cache", part)
    names = sorted(path.name for path in made["draws"].glob("*.bin"))
    assert names == sorted(path.name for path in (tmp_path / "cache").glob("*.bin"))
    for name in names:
        assert (made["draws"] / name).read_bytes() == (tmp_path / "cache" / name).read_bytes()
    assert Cache(tmp_path / "cache").fingerprint() == Cache(made["draws"]).fingerprint()
    assert writer.run(tmp_path / "cache") == 0
    bytes_there = sum((made["draws"] / name).stat().st_size for name in names)
    assert size.nbytes == pytest.approx(bytes_there, rel=0.1)
    for kind in ("top_k", "hidden"):
        whole = sum(path.stat().st_size for path in made[kind].glob("*.bin"))
        assert Writer(made["teacher"], made["data"], KINDS[kind]).size().nbytes == whole


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "facts", "line"])
def test_damage_is_found_and_named(made, tmp_path, damage):
    shutil.copytree(made["draws"], tmp_path / "cache")
    split, file = Corpus.open(made["data"]).splits["train"], tmp_path / "cache" / "train-00001.bin"
    raw = bytearray(file.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    elif damage == "cut":
        file.write_bytes(raw[:-3])
    elif damage == "gone":
        file.unlink()
    elif damage == "facts":
        (tmp_path / "cache" / "cache.json").write_text('{"format": 1}')
    else:
        lines = (tmp_path / "cache" / "shards.jsonl").read_text().splitlines()
        (tmp_path / "cache" / "shards.jsonl").write_text("\n".join(['{"split": 1}', *lines]) + "\n")
    with pytest.raises(DataError) as error:
        cache = Cache(tmp_path / "cache")
        cache.records(
            "train", split, np.arange(int(split.borders[0]), int(split.borders[0]) + 3)
        )  # another shard is good
        cache.records("train", split, np.array([cache.facts.borders["train"][1]]))
    says = {
        "flipped": "is damaged",
        "cut": "bytes, and had",
        "gone": "is missing",
        "facts": "teacher",
        "line": "is damaged",
    }
    assert says[damage] in str(error.value)


# Runs


def plan_of(made, cache, **objective):
    plain = copy.deepcopy(made["plain"])
    plain["data"] = {**plain["data"], "source": [str(made["data"])]}
    del plain["data"]["tokenizer"]
    plain["train"]["tokens"] = 8 * 192
    return {**plain, "objective": {"kind": "distill", "cache": str(made[cache]), **objective}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_from_a_cache(made, tmp_path, kind):
    done = train(validate(Recipe, plan_of(made, kind), ""), tmp_path / "run", lambda corpus: lambda model: {})
    rows = [row for row in done.metrics() if "divergence" in row]
    assert rows[-1]["divergence"] < rows[0]["divergence"]
    live = plan_of(made, kind)
    live["objective"] = {"kind": "distill", "teacher": made["teacher"]}
    live["data"]["packing"] = "documents"  # the context of a token is then its document, as in the cache
    cached = {**plan_of(made, "hidden"), "data": live["data"]}
    if kind == "hidden":
        pair = [
            train(validate(Recipe, p, ""), tmp_path / n, lambda c: lambda m: {})
            for n, p in (("a", live), ("b", cached))
        ]
        live_rows, cached_rows = (list(r.metrics()) for r in pair)
        for a, b in zip(live_rows, cached_rows, strict=True):
            if "divergence" in a:
                assert a["divergence"] == pytest.approx(b["divergence"], rel=0.02, abs=1e-3)


def test_a_cache_that_does_not_fit_is_refused(made, tmp_path):
    def refused(plan, kind, says):
        with pytest.raises(kind) as error:
            train(validate(Recipe, plan, ""), tmp_path / "run", lambda corpus: lambda model: {})
        assert says in str(error.value)

    refused(plan_of(made, "draws", divergence="reverse_kl"), ConfigError, 'a cache of draws is of "forward_kl"')
    refused(plan_of(made, "top_k", temperature=2.0), ConfigError, "the cache was made at 1, and 2 is asked for")
    refused(
        plan_of(made, "draws") | {"objective": {"kind": "distill", "cache": str(tmp_path)}}, DataError, "is no cache"
    )
    with pytest.raises(ConfigError, match="name a checkpoint, or a cache"):
        validate(Recipe, plan_of(made, "draws", teacher=made["teacher"]), "")
    texts = texts_in(tmp_path / "texts")
    (texts / "00.txt").write_text("another text\n" * 30)
    other = plan_of(made, "draws")
    other["data"] = {**other["data"], "source": [str(texts)], "tokenizer": str(made["data"] / "tokenizer.json")}
    refused(other, ConfigError, "is of other data than")
    other["data"]["tokenizer"] = "train:290"
    refused(other, ConfigError, "is of another tokenizer than the data's")


def test_other_asks_of_the_same_folder_are_refused(made, tmp_path):
    with pytest.raises(RunError, match="holds a cache with another records"):
        Writer(made["teacher"], made["data"], Records(amount=9)).run(made["draws"])
    (tmp_path / "x").write_text("mine")
    with pytest.raises(RunError, match="is not empty, and holds no cache"):
        Writer(made["teacher"], made["data"], KINDS["draws"]).run(tmp_path)
    with pytest.raises(ConfigError, match="hidden keeps the whole distribution"):
        Writer(made["teacher"], made["data"], Records(kind="hidden"))
    with pytest.raises(ConfigError, match="must be from 1 to 255"):
        Writer(made["teacher"], made["data"], Records(amount=0))
    assert json.loads((made["draws"] / "cache.json").read_text())["records"]["amount"] == 20


def test_the_verb_says_what_a_cache_takes_and_makes_it(made, tmp_path, capsys):
    ask = ["distill", "logits", made["teacher"], "--data", str(made["data"]), "--out", str(tmp_path / "cache")]
    assert run([*ask, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\d[\d,]+ tokens, [\d.]+ bytes each: ", said)
    assert not (tmp_path / "cache").exists()
    assert run([*ask, "--kind", "top_k", "--amount", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes_per_record"] == 20
    assert document["written"] == document["records"]
    assert Cache(tmp_path / "cache").facts.records.amount == 5
    for more, says in (
        (["--part", "3/2"], "--part: must be K/N with K from 1 to N, such as 2/4, got '3/2'"),
        (["--amount", "300"], "amount"),
        (["--temperature", "0"], "temperature"),
        (["--kind", "hidden", "--temperature", "2"], "hidden keeps the whole distribution"),
        (["--device", "cuda:9"], "cuda"),
        (["--amount", "7", "--kind", "top_k"], "holds a cache with another records"),
    ):
        assert run([*ask, *more]) != 0
        assert says in capsys.readouterr().err
