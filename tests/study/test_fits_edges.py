"""What a scaling fit says where there is little to say, and on which scale."""

from __future__ import annotations

import functools
import math
import re

import numpy as np
import pytest

from interlace.base.errors import DataError
from interlace.cli.main import run
from interlace.study.scaling.bootstrap import Resampled
from interlace.study.scaling.compare import Saving, verdict
from interlace.study.scaling.explained import bound_notes, idle_terms
from interlace.study.scaling.fit import Law, fit
from interlace.study.scaling.points import Points, read_csv
from interlace.study.scaling.simulate import simulate
from interlace.study.scaling.solve import LOWEST
from interlace.study.scaling.study import study

SIZES, TOKENS = (1e6, 2e6, 4e6, 8e6), (1e7, 2e7, 4e7, 8e7)


def table(tmp_path, head, rows):
    (tmp_path / "p.csv").write_text("\n".join([head, *rows]) + "\n")
    return tmp_path / "p.csv"


def rows(mark, last=""):
    """Twelve points, of which one is marked as diverged."""
    points = [(n, d) for n in SIZES[:3] for d in TOKENS]
    return [f"{n:g},{d:g},{2 + 1e3 / n:.6f},{mark if i == 5 else 0}{last}" for i, (n, d) in enumerate(points)]


@pytest.mark.parametrize("mark", ["1", "true", "TRUE", "yes", "1.0", "y", "t"])
def test_a_diverged_point_without_a_run_is_one_point(tmp_path, mark):
    found = read_csv(table(tmp_path, "N,D,loss,diverged", rows(mark)))
    assert (len(found), found.diverged) == (11, 1)


@pytest.mark.parametrize(("more", "cell"), [(",run", ","), (",arch", ",a"), (",run,arch", ",,a")])
def test_neither_an_empty_run_nor_an_architecture_makes_one_run_of_many_points(tmp_path, more, cell):
    found = read_csv(table(tmp_path, f"N,D,loss,diverged{more}", rows("1", cell)))
    assert len(found) == 11
    assert len(set(found.run)) == 11


def test_a_mark_that_is_neither_yes_nor_no_is_named(tmp_path):
    with pytest.raises(DataError, match=r"line 7: diverged.*'perhaps'"):
        read_csv(table(tmp_path, "N,D,loss,diverged", rows("perhaps")))


def test_a_diverged_point_of_a_seeded_run_takes_its_run_along(tmp_path):
    found = read_csv(table(tmp_path, "N,D,loss,diverged,seed", rows("1", ",0")))
    assert (len(found), found.diverged) == (8, 4)


def test_a_size_written_in_two_ways_is_one_run(tmp_path):
    lines = ["1e6,1e7,3,0,1", "1000000,2e7,3,0,0", "1e6,2e7,3,1,0", "1e6,4e7,3,,0"]
    found = read_csv(table(tmp_path, "N,D,loss,seed,diverged", lines))
    assert (len(found), found.diverged, found.grouped) == (2, 2, True)
    assert len(set(found.run)) == 2


def test_columns_of_runs_and_seeds_that_are_empty_group_nothing(tmp_path):
    found = read_csv(table(tmp_path, "N,D,loss,diverged,run,seed", rows("0", ",,")))
    assert (len(set(found.run)), found.grouped) == (12, False)


def points(loss, noise=0.001, arch="model"):
    rng = np.random.default_rng(0)
    made = [(n, d, s) for n in SIZES for s in "01" for d in TOKENS[:3]]
    n, d, seeds = zip(*made, strict=True)
    found = [loss(n, d) * math.exp(noise * rng.normal()) for n, d, _ in made]
    return Points.make(n, d, found, seed=seeds, arch=[arch] * len(made))


FLAT = {
    "rises with both": (lambda n, d: 2 + 0.1 * math.log(n / 1e6) + 0.1 * math.log(d / 1e7), ("N", "D")),
    "is flat": (lambda n, d: 3.0, ("N", "D")),
    "rises with tokens": (lambda n, d: 2 + 1e2 / n**0.5 + 0.1 * math.log(d / 1e7), ("D",)),
    "rises with size": (lambda n, d: 2 + 1e2 / d**0.4 + 0.1 * math.log(n / 1e6), ("N",)),
}


@functools.cache
def studied(name):
    return study(points(FLAT[name][0]), times=20)


@pytest.mark.parametrize("name", FLAT)
def test_a_fit_that_explains_nothing_says_so(name):
    found, idle = studied(name), FLAT[name][1]
    for letter in ("N", "D"):
        said = any("explain" in note and re.search(rf"\b{letter}\b", note) for note in found.notes)
        assert said is (letter in idle)


@pytest.mark.parametrize("name", FLAT)
def test_no_exponent_at_its_bound_gets_an_interval_of_no_width(name):
    law, idle = studied(name).to_dict()["laws"]["model"], FLAT[name][1]
    for letter, exponent in (("N", "alpha"), ("D", "beta")):
        if letter in idle:
            assert law[exponent]["value"] is None
            assert all(v is None for v in law[exponent]["intervals"].values())


def test_a_law_that_is_there_is_not_called_nothing():
    found = study(points(Law(1.6, 110.0, 95.0, 0.25, 0.22).loss), times=20)
    assert not [n for n in found.notes if "explain" in n]
    assert 0.15 < found.to_dict()["laws"]["model"]["alpha"]["value"] < 0.35


def test_sizes_and_tokens_that_rise_together_are_said_to():
    law, n = Law(1.6, 110.0, 95.0, 0.25, 0.22), np.repeat(np.geomspace(1e6, 1e9, 8), 2)
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=len(n)))
    idle, notes = idle_terms(fit(Points.make(n, 20 * n, law.loss(n, 20 * n) * noise)))
    assert idle == {"model": ()}
    assert "N and D rise together" in notes[0]


def test_noise_alone_is_no_exponent_and_a_law_under_noise_is_one():
    law = Law(1.6, 110.0, 95.0, 0.25, 0.22)
    for noise in (0.003, 0.03):
        assert idle_terms(fit(points(lambda n, d: 3.0, noise)))[0]["model"] == ("N", "D")
        assert idle_terms(fit(points(law.loss, noise)))[0]["model"] == ()


def test_an_interval_that_ends_where_the_search_does_is_said_to():
    laws = [Law(1, 1, 1, alpha, 0.2) for alpha in np.geomspace(LOWEST, 0.3, 40)]
    (note,) = bound_notes([Resampled("runs", {"m": laws})], {"m": ()})
    assert "alpha ends at 0.001" in note
    assert bound_notes([Resampled("runs", {"m": laws})], {"m": ("N",)}) == []


@pytest.fixture
def without_nested_models(monkeypatch):
    monkeypatch.setattr("interlace.study.scaling.study.nested", lambda *_: [])


@pytest.mark.usefixtures("without_nested_models")
def test_nothing_is_claimed_from_laws_that_explain_nothing():
    rising = FLAT["rises with both"][0]
    a, b = points(rising, arch="a"), points(lambda n, d: 0.9 * rising(n, d), arch="b")
    both = Points.make([*a.n, *b.n], [*a.d, *b.d], [*a.loss, *b.loss], seed=[*a.seed, *b.seed], arch=[*a.arch, *b.arch])
    found = study(both, times=20)
    assert found.savings == []
    assert found.sentences == ["Nothing is claimed of b against a: tokens explain nothing of the loss of a and b."]


def test_the_page_of_a_fit_that_explains_nothing_says_so_first(tmp_path, capsys):
    p = points(FLAT["is flat"][0])
    lines = [f"{n},{d},{x},{r}" for n, d, x, r in zip(p.n, p.d, p.loss, p.run, strict=True)]
    file = table(tmp_path, "N,D,loss,run", lines)
    assert run(["study", "report", str(file), "--bootstrap", "20", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "explain" in page.split("<h2>")[0]
    assert "0.001 to 0.001" not in page


def numbers_of(sentence):
    """(the point, the ends of its interval) of a verdict."""
    point = float(re.search(r"needs ([\d.]+) times", sentence)[1])
    low, high = re.search(r"interval over \w+: ([\d.]+).*? to ([\d.]+|no bound)", sentence).groups()
    return point, float(low), math.inf if high == "no bound" else float(high)


@pytest.mark.parametrize(
    ("tokens", "low", "high"),
    [
        (1.57, 1.41, 1.83),
        (0.64, 0.55, 0.71),
        (1.02, 0.9, 1.2),
        (2.0, 0.0, 3.0),
        (2.0, 1.5, math.inf),
        (12.0, 9.0, 15.0),
    ],
)
def test_a_point_and_its_interval_stand_on_one_scale(tokens, low, high):
    s = Saving("a", "b", 1e9, 2e10, 2.5, tokens, tokens, {"runs": {"tokens": (low, high), "flops": (low, high)}}, True)
    point, least, most = numbers_of(verdict(s))
    assert least <= point <= most
    assert point == pytest.approx(1 / tokens, abs=0.006)


@pytest.mark.usefixtures("without_nested_models")
def test_the_first_sentence_of_a_study_holds_its_point():
    laws = {"t": Law(1.6, 110.0, 95.0, 0.25, 0.22), "h": Law(1.55, 90.0, 84.0, 0.24, 0.22)}
    found = study(simulate(laws, np.geomspace(6e7, 1e9, 4), (10, 20, 40), seeds=2, run_noise=0.001), times=20)
    point, least, most = numbers_of(found.sentences[0])
    assert least <= point <= most < 1


# Options and files that are wrong


@pytest.fixture
def dozen(tmp_path):
    """A file of twelve points."""
    return table(tmp_path, "N,D,loss,diverged", rows("0"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--delta", "nan"], "delta: must be positive, got nan"),
        (["--delta", "inf"], "delta: must be positive, got inf"),
        (["--delta", "0"], "delta: must be positive"),
        (["--seed", "-1"], "seed: must not be negative, got -1"),
        (["--alpha", "nan"], "alpha: must be an exponent between 0 and 4"),
        (["--tokens-per-parameter", "nan"], "tokens_per_parameter: must be positive"),
        (["--sizes", "nan"], "sizes: must be positive"),
        (["--bootstrap", "-1"], "bootstrap: must not be negative"),
    ],
)
def test_an_option_of_a_fit_that_is_no_use_is_one_sentence(option, words, dozen, capsys):
    assert run(["study", "fit", str(dozen), *option]) == 2
    assert words in capsys.readouterr().err


def test_a_cell_that_is_too_long_is_no_csv(tmp_path, capsys):
    file = table(tmp_path, "N,D,loss,arch", ["1e6,1e7,2.0,a", f"1e6,1e7,2.0,{'x' * 200_000}"])
    assert run(["study", "fit", str(file)]) == 2
    assert "p.csv: line 3: is not CSV: field larger than" in capsys.readouterr().err


def test_a_report_of_a_file_without_an_ending_has_a_folder_of_its_own(dozen, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dozen.rename(tmp_path / "points")
    assert run(["study", "report", "points", "--bootstrap", "0"]) == 0
    assert (tmp_path / "points.report" / "report.html").is_file()
    capsys.readouterr()
    assert run(["study", "report", "points", "--bootstrap", "0", "--out", "points"]) == 1
    assert "points: cannot be written" in capsys.readouterr().err
