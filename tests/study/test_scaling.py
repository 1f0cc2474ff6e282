"""Scaling laws: known truth recovered, intervals over runs, savings, and what cannot be said."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.optimize import minimize

from interlace.base.errors import ConfigError, DataError
from interlace.cli.main import run
from interlace.study.scaling.bootstrap import bootstrap, draw
from interlace.study.scaling.compare import held_out, nested, saving, token_saving, verdict
from interlace.study.scaling.fit import Law, different, fit, profile, scaled_likelihood
from interlace.study.scaling.isoflop import isoflop
from interlace.study.scaling.points import Points, read_csv
from interlace.study.scaling.simulate import simulate
from interlace.study.scaling.solve import NAMES, Structure, huber
from interlace.study.scaling.study import study

BASE = Law(1.6, 110.0, 95.0, 0.25, 0.22)
OTHER = Law(1.55, 90.0, 84.0, 0.24, 0.22)
SIZES = np.geomspace(60e6, 1e9, 5)
MULTIPLES = (10, 20, 40, 80)


def ladder(laws=None, sizes=SIZES, **more):
    return simulate(laws or {"transformer": BASE, "hybrid": OTHER}, sizes, MULTIPLES, **more)


def write(path, points, columns=("N", "D", "loss", "run", "seed", "arch")):
    values = {"N": points.n, "D": points.d, "loss": points.loss, "run": points.run, "seed": points.seed}
    values["arch"] = points.arch
    lines = [",".join(columns)]
    lines += [",".join(str(values[c][i]) for c in columns) for i in range(len(points))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("law", [BASE, Law(0.3, 3.0, 900.0, 0.11, 0.55), Law(2.4, 4000.0, 12.0, 0.6, 0.12)])
def test_points_without_noise_give_the_law_back(law):
    found = fit(ladder({"model": law}, seeds=1))
    for name in NAMES:
        assert getattr(found.laws["model"], name) == pytest.approx(getattr(law, name), rel=2e-4)
    assert found.optima == 1


@pytest.mark.parametrize("seed", range(2))
def test_no_independent_optimiser_finds_a_better_fit(seed):
    """L-BFGS from 8 starts on the log-sum-exp form, as in Hoffmann et al., D.3."""
    points = ladder({"model": BASE}, run_noise=0.01, point_noise=0.003, seed=seed)
    x, y, goal = np.log(points.n), np.log(points.d), np.log(points.loss)

    def cost(theta):
        e, a, b, alpha, beta = theta
        said = np.logaddexp(np.logaddexp(e, a - alpha * x), b - beta * y)
        return 1e4 * huber(goal - said, 1e-3).sum()

    starts = [(e, a, b, 0.3, 0.3) for e in (-1, 1) for a in (2, 6) for b in (2, 6)]
    best = min(minimize(cost, s, method="L-BFGS-B").fun for s in starts) / 1e4
    assert fit(points).objective <= best * (1 + 1e-6)


def test_shared_coefficients_are_shared_and_fixed_ones_kept():
    points = ladder(run_noise=0.002)
    found = fit(points, ("alpha", "beta", "E")).laws
    assert len({(x.alpha, x.beta, x.E) for x in found.values()}) == 1
    assert found["transformer"].B != found["hybrid"].B
    fixed = fit(points, fixed={"alpha": 0.25, "beta": 0.22}).laws["transformer"]
    assert (fixed.alpha, fixed.beta) == (0.25, 0.22)
    with pytest.raises(ConfigError, match="A can only be shared together with alpha"):
        fit(points, ("A",))
    with pytest.raises(ConfigError, match="'gamma' is not a coefficient"):
        fit(points, ("gamma",))


def test_distinct_optima_are_told_apart():
    structure = Structure(("model",))
    near = np.array([[0.0, 0, 0, 0.3, 0.2], [0.1, 0, 0, 0.3001, 0.2], [0, 0, 0, 0.9, 0.1]])
    assert different(near, np.array([1.0, 1.0, 1.5]), structure) == [1.0, 1.5]


def test_profile_is_nought_at_the_fit_and_what_refitting_gives():
    points = ladder({"model": BASE}, run_noise=0.004, point_noise=0.001, seed=3)
    found = fit(points)
    law = found.laws["model"]
    for name in NAMES:
        at = getattr(law, name)
        deviance = profile(found, "model", name, np.array([0.9 * at, at, 1.1 * at]))
        assert deviance[1] == pytest.approx(0, abs=2e-3)
        assert deviance[0] > 0.02
        assert deviance[2] > 0.02
    fixed = fit(points, fixed={"alpha": 1.1 * law.alpha})
    fall = scaled_likelihood(found.objective, len(points), 1e-3) - scaled_likelihood(fixed.objective, len(points), 1e-3)
    runs = len(set(points.run)) / len(points)
    assert profile(found, "model", "alpha", np.array([1.1 * law.alpha]))[0] == pytest.approx(2 * fall * runs, rel=0.02)


def test_resamples_keep_runs_and_seeds_whole():
    points, rng = ladder(), np.random.default_rng(0)
    for _ in range(5):
        weights = draw(points, "runs", rng)
        for name in set(points.run):
            assert len(set(weights[points.run == name])) == 1
        for arch in points.archs:
            assert weights[points.arch == arch].sum() == (points.arch == arch).sum()
        by_seed = draw(points, "seeds", rng)
        for seed in set(points.seed):
            assert len(set(by_seed[points.seed == seed])) == 1
    assert len(set(draw(points, "points", rng)[points.run == points.run[0]])) > 1


def test_points_of_one_run_are_not_independent():
    """With noise of runs the naive interval is much too narrow; benchmarks/scaling_coverage.py counts coverage."""
    found = fit(ladder(run_noise=0.004, point_noise=0.0005, seed=2), ("alpha", "beta"))
    widths = {}
    for kind in ("runs", "points"):
        low, high = bootstrap(found, kind, 200).interval(lambda x: token_saving(x, "transformer", "hybrid", 1e9, 8e10))
        widths[kind] = high - low
    assert widths["runs"] > 1.3 * widths["points"]


@pytest.mark.slow
def test_a_saving_in_closed_form_and_in_words():
    laws = {"transformer": BASE, "hybrid": Law(1.6, 110.0, 80.0, 0.25, 0.22)}
    assert token_saving(laws, "transformer", "hybrid", 1e9, 2e10) == pytest.approx((95 / 80) ** (1 / 0.22))
    found = fit(ladder(laws, run_noise=0.002, point_noise=0.0005))
    runs = bootstrap(found, "runs", 200)
    told = saving(found, [runs], "transformer", "hybrid", 1e9, 8e10)
    assert told.intervals["runs"]["tokens"][0] < (95 / 80) ** (1 / 0.22) < told.intervals["runs"]["tokens"][1]
    assert "The data support a saving: hybrid needs 0.4" in verdict(told)
    same = fit(ladder({"transformer": BASE, "hybrid": BASE}, run_noise=0.004, seed=5))
    told = saving(same, [bootstrap(same, "runs", 200)], "transformer", "hybrid", 1e9, 8e10)
    assert verdict(told).startswith("The data do not say which needs fewer tokens")
    assert "nothing is claimed" in verdict(
        saving(same, [bootstrap(same, "points", 50)], "transformer", "hybrid", 1e9, 8e10)
    )


def test_a_loss_out_of_reach_is_no_saving():
    laws = {"transformer": BASE, "hybrid": Law(2.9, 110.0, 80.0, 0.25, 0.22)}
    assert token_saving(laws, "transformer", "hybrid", 1e9, 8e10) == 0
    assert math.isinf(laws["hybrid"].tokens(1e9, 2.8))


@pytest.mark.slow
def test_nested_models_tell_what_differs():
    different_b = nested(ladder({"a": BASE, "b": Law(1.6, 110.0, 80.0, 0.25, 0.22)}, run_noise=0.002), {}, 1e-3, 60)
    assert [r["coefficients"] for r in different_b] == [10, 8, 7, 6, 5]
    assert min(r["p"] for r in different_b[1:4]) > 0.02
    assert different_b[4]["p"] < 0.02
    assert min(different_b, key=lambda r: r["bic"])["shared"] == "all but B"


def test_the_largest_size_is_predicted():
    rows = held_out(fit(ladder(seeds=1)))
    assert len(rows) == 2 * len(MULTIPLES)
    assert {round(r["N"]) for r in rows} == {10**9}
    assert max(abs(r["error"]) for r in rows) < 1e-6
    assert held_out(fit(ladder(seeds=1, sizes=SIZES[:3]))) == []


def test_what_cannot_be_held_out_does_not_end_the_study():
    sizes, tokens = (1e8, 2e8, 4e8, 8e8), (1e9, 2e9, 4e9, 8e9)
    rows = [(n, d) for n in sizes for d in (tokens if n == sizes[-1] else tokens[:2])]
    points = Points.make(*zip(*rows, strict=True), [BASE.loss(n, d) for n, d in rows])
    assert held_out(fit(points)) == []


def test_a_law_that_needs_more_tokens_than_can_be_counted_says_so():
    assert Law(0, 1, 3, 0.3, 1e-3).tokens(1e6, 1.2) == math.inf
    assert BASE.tokens(1e9, BASE.loss(1e9, 5e10)) == pytest.approx(5e10)


def test_runs_of_two_architectures_with_one_name_are_two(tmp_path):
    lines = ["N,D,loss,run,arch,diverged"]
    for arch, name in (("a", 0), ("a", 1), ("b", 0), ("b", 1)):
        lines += [f"1,{d},3,{name},{arch},{int((arch, name) == ('b', 0))}" for d in (2, 4)]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    points = read_csv(tmp_path / "p.csv")
    assert points.diverged == 2
    assert sorted(set(points.run)) == ["0", "a/1", "b/1"]
    billions = Points.make([0.06, 0.1], [1, 1], [3, 3], seed=["0", "0"])
    assert len(set(billions.run)) == 2


@pytest.mark.slow
def test_the_figure_of_savings_shows_no_naive_interval(monkeypatch):
    from interlace.study.scaling import report

    drawn = []
    monkeypatch.setattr(report, "_save", lambda draw, size: drawn.append(draw))
    report.saving_figure(study(ladder(), times=40).savings)
    points = ladder(seeds=1)
    report.saving_figure(study(Points.make(points.n, points.d, points.loss, arch=points.arch), times=40).savings)
    labels = []
    for draws in drawn:
        figure = Figure()
        draws(figure)
        labels.append(figure.axes[0].get_ylabel())
    assert labels == ["tokens saved (factor), 95 % over runs", "tokens saved (factor)"]


def test_isoflop_agrees_with_the_law_where_both_see_the_bottom():
    law = Law(1.7, 400.0, 400.0, 0.34, 0.34)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 13), np.geomspace(1e8, 1e12, 25)))
    found = isoflop(Points.make(n, d, law.loss(n, d)))
    assert found.split == pytest.approx(law.split, abs=0.02)
    valley = next(v for v in found.valleys if v.best)
    assert valley.best == pytest.approx(law.best_parameters(valley.flops), rel=0.25)


def test_csv_columns_and_values_are_checked(tmp_path):
    points = ladder(seeds=1)
    file = write(tmp_path / "a.csv", points, ("N", "loss", "arch"))
    with pytest.raises(DataError, match="column 'D' is missing; it has N, loss, arch"):
        read_csv(file)
    text = write(file, points).read_text().splitlines()
    for bad in ("-1", "0", "nan", "inf", "", "much"):
        cells = text[4].split(",")
        cells[2] = bad
        file.write_text("\n".join([*text[:4], ",".join(cells), *text[5:]]))
        with pytest.raises(DataError, match=f"line 5: loss is '{bad}', and must be a positive number"):
            read_csv(file)
    file.write_text("N,D,loss\n")
    with pytest.raises(DataError, match="no rows"):
        read_csv(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path / "absent.csv")


def test_runs_that_diverged_are_left_out_whole(tmp_path):
    points = ladder(seeds=3)
    lines = write(tmp_path / "a.csv", points).read_text().splitlines()
    marked = [f"{lines[0]},diverged"]
    for line in lines[1:]:
        first = line.startswith(f"{points.n[0]},{points.d[0]},") and line.endswith("/0,0,transformer")
        marked.append(f"{line},{int(first)}")
    # one row of the run has no loss at all, as when it stopped before its first horizon
    marked[1] = marked[1].replace(str(points.loss[0]), "")
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(marked))
    kept = read_csv(tmp_path / "a.csv")
    assert kept.diverged == len(MULTIPLES)
    assert len(kept) == len(points) - len(MULTIPLES)
    assert points.run[0] not in set(kept.run)


def test_what_cannot_be_identified_is_said():
    with pytest.raises(DataError, match=r"has 1 sizes \(N\), from which A and E cannot be told apart"):
        fit(ladder(sizes=SIZES[:1]))
    with pytest.raises(DataError, match=r"has 2 sizes \(N\), from which alpha, A and E cannot be told.*--alpha fixed"):
        fit(ladder(sizes=SIZES[:2]))
    assert fit(ladder(sizes=SIZES[:2]), fixed={"alpha": 0.25})
    one = ladder(seeds=1)
    with pytest.raises(DataError, match="needs at least 2"):
        bootstrap(fit(one), "seeds", 50)
    two = Points.make(one.n, one.d, one.loss, run=["x" if n < 3e8 else "y" for n in one.n], arch=one.arch.tolist())
    with pytest.raises(DataError, match="has 2 runs, and an interval over runs needs at least 3"):
        study(two, times=50)


def test_published_points_without_runs_get_a_fit_and_a_warning(tmp_path, capsys):
    file = write(tmp_path / "p.csv", ladder({"m": BASE}, seeds=1, point_noise=0.002), ("N", "D", "loss"))
    assert run(["study", "fit", str(file), "--json", "--bootstrap", "60"]) == 0
    document = json.loads(capsys.readouterr().out)
    law = document["laws"]["model"]
    for name in NAMES:
        low, high = law[name]["intervals"]["points"]
        assert low <= law[name]["value"] <= high
        assert len(law[name]["profile"]) == 2
    assert list(law["E"]["intervals"]) == ["points"]
    assert "no interval over runs" in document["notes"][0]


@pytest.mark.slow
def test_fit_and_report_as_a_user_runs_them(tmp_path, capsys):
    file = write(tmp_path / "p.csv", ladder(run_noise=0.003, point_noise=0.001))
    assert run(["study", "fit", str(file), "--bootstrap", "40", "--sizes", "7e9"]) == 0
    text = capsys.readouterr().out
    assert "hybrid / transformer *" in text
    assert "The data support" in text or "The data do not say" in text
    out = tmp_path / "out"
    assert run(["study", "report", str(file), "--bootstrap", "40", "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "interlace" in page
    assert "http://" not in page
    assert "https://" not in page
    assert 'src="data:image/png' in page
    assert {p.name for p in out.iterdir()} >= {"loss.png", "loss.pdf", "profiles.pdf", "savings.png", "report.html"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "mamba"], "base: 'mamba' is not among the architectures: transformer, hybrid"),
        (["--sizes", "big"], "sizes: 'big' must be numbers"),
        (["--sizes", "0"], "sizes: must be positive parameter counts, got '0'"),
        (["--tokens-per-parameter", "-1"], "tokens_per_parameter: must be positive, got -1"),
        (["--bootstrap", "5"], "bootstrap: needs at least 20 resamples"),
        (["--share", "gamma"], "share: 'gamma' is not a coefficient"),
        (["--alpha", "7"], "alpha: must be an exponent between 0 and 4"),
        (["--delta", "0"], "delta: must be positive"),
    ],
)
def test_bad_arguments_are_named(arguments, said, tmp_path, capsys):
    file = write(tmp_path / "p.csv", ladder())
    assert run(["study", "fit", str(file), *arguments]) == 2
    assert said in capsys.readouterr().err
