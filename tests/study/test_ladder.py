"""Ladders: equal capacity, one run to every horizon, rates by a stated rule, killed and gone on with, gathered."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from interlace.base.errors import ConfigError, Failure, RunError
from interlace.cli.main import run as interlace
from interlace.model.model import HybridLM
from interlace.model.sizes import sizes
from interlace.study.ladder.estimate import costs, runs, totals
from interlace.study.ladder.gather import outcome
from interlace.study.ladder.match import match, parameters, training_flops
from interlace.study.ladder.plan import build, read_ladder
from interlace.study.ladder.run import LadderRun
from interlace.study.scaling.points import read_csv

DELTA = {"heads": 2, "key_dim": 6, "value_dim": 12}


def table(texts=None):
    """Plain data of a ladder whose runs take a second."""
    return {
        "ladder": {"multiples": [0.1, 0.2], "seeds": 1},
        "rate": {"tried": [2e-3, 8e-3]},
        "data": {"tokenizer": "train:300", "length": 32, "rows": 2} | ({"source": str(texts)} if texts else {}),
        "train": {"warmup": 0.1, "evaluations": 1, "evaluation_tokens": 640, "checkpoints": 4},
        "model": {"vocabulary": 300},
        "sizes": {
            "b": {"width": 24, "depth": 2, "attention": {"heads": 2}, "gated_delta": DELTA, "mlp": {"width": 64}},
            "a": {"width": 16, "depth": 2, "attention": {"heads": 2}, "gated_delta": DELTA, "mlp": {"width": 48}},
        },
        "architectures": {
            "transformer": {"pattern": ["attention"], "attention": {"norm": "output"}},
            "hybrid": {"pattern": ["gated_delta", "attention"], "gated_delta": {}, "attention": {"position": "none"}},
        },
    }


@pytest.fixture
def file(tmp_path, texts):
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(table(texts)))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(file, folder) of a ladder that has run; the texts are those of `texts`."""
    folder = tmp_path_factory.mktemp("whole")
    texts = folder / "texts"
    texts.mkdir()
    for i in range(12):
        words = " ".join(f"the {'quick' if j % 3 else 'slow'} fox {i * j % 17} jumps" for j in range(120))
        (texts / f"{i:02}.txt").write_text(words + "\n", encoding="utf-8")
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps(table(texts)))
    assert interlace(["study", "ladder", str(file), "--out", str(folder / "out"), "--json"]) == 0
    return file, folder / "out"


def rows_of(out):
    with open(out / "results.csv", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def numbers(out):
    """results.csv with what is the same on every machine and at any time."""
    return sorted(tuple(r.values()) for r in rows_of(out))


ARCHS = {
    "gated_delta": {"heads": 4, "key_dim": 12, "value_dim": 24},
    "kimi_delta": {"heads": 4, "key_dim": 16, "value_dim": 16},
    "mamba2": {"heads": 8, "head_dim": 16, "state_dim": 16},
    "mamba": {"inner": 128, "step_rank": 4},
    "lstm": {"hidden": 64},
    "latent_attention": {"heads": 4, "latent": 32, "key_dim": 16, "shared_dim": 8, "value_dim": 16},
}


@pytest.mark.parametrize("kind", list(ARCHS))
@pytest.mark.parametrize("what", ["parameters", "flops"])
def test_every_kind_of_layer_is_matched_within_the_tolerance(kind, what):
    data = table()
    data["ladder"]["match"] = what
    size = {"width": 64, "depth": 4, "attention": {"heads": 4}, "mlp": {"width": 256}}
    data["sizes"] = {"one": size}
    data["architectures"] = {
        "transformer": {"pattern": ["attention"], "attention": {}},
        "other": {"pattern": [kind, kind, "attention"], kind: ARCHS[kind], "attention": {}},
        "pure": {"pattern": [kind], kind: ARCHS[kind]},
    }
    ladder = build(data)
    measure = parameters if what == "parameters" else training_flops(32)
    goal = measure(ladder.rungs["transformer", "one"].config)
    for arch in ("other", "pure"):
        config = ladder.rungs[arch, "one"].config
        assert abs(measure(config) / goal - 1) <= 0.005
        built = HybridLM(config, device="meta")
        embedding = built.embedding.weight.numel() + (0 if config.tied_embeddings else built.head.weight.numel())
        assert ladder.rungs[arch, "one"].parameters == sum(p.numel() for p in built.parameters()) - embedding


def test_a_size_that_cannot_be_matched_names_the_dimension_that_could():
    data = table()
    data["sizes"]["a"] |= {"gated_delta": {"heads": 2, "key_dim": 12, "value_dim": 24}, "mlp": {"width": 8}}
    with pytest.raises(ConfigError) as error:
        build(data)
    message = str(error.value)
    assert message.startswith("architectures.hybrid at sizes.a (2,960 parameters): cannot be matched within 0.5%")
    assert "mlp.width = 1 comes nearest and is off by +61.49%; width = 8 (-0.41%) would do: set it as `free`" in message
    data["sizes"]["a"]["mlp"]["width"] = 12
    with pytest.raises(
        ConfigError, match=r"of the other dimensions gated_delta.value_dim = 1 \(\+2.30%\) comes nearest"
    ):
        build(data)


def test_another_dimension_can_be_free():
    data = table()
    data["ladder"] |= {"free": "gated_delta.value_dim", "tolerance": 0.02, "reference": "transformer"}
    ladder = build(data)
    assert ladder.rungs["hybrid", "a"].config.layers["gated_delta"].value_dim != 12
    assert ladder.rungs["hybrid", "a"].config.layers["mlp"].width == 48
    data["ladder"]["free"] = "mamba.inner"
    with pytest.raises(ConfigError, match=r"it has no mamba.inner; .* would do"):
        build(data)


def test_match_leaves_what_is_equal_already():
    config = build(table()).rungs["transformer", "b"].config
    found, error = match(config, "mlp.width", parameters(config), parameters, 0.005, "x")
    assert (found, error) == (config, 0.0)


def test_sizes_are_ordered_by_what_they_hold_and_tokens_follow_the_reference():
    ladder = build(table())
    assert ladder.sizes == ("a", "b")
    for size in ladder.sizes:
        steps = {arch: ladder.steps(ladder.rungs[arch, size]) for arch in ladder.archs}
        assert steps["transformer"] == steps["hybrid"]
        target = ladder.rungs["transformer", size].parameters
        assert steps["hybrid"][1] == round(0.2 * target / 64)


def test_a_dry_run_counts_what_the_runs_will_be(file, tmp_path, capsys):
    assert interlace(["study", "ladder", str(file), "--dry-run", "--json", "--out", str(tmp_path / "no")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"] == 2 * 2 * 1 + 2 * 1
    ladder = read_ladder(file)
    for rung in document["rungs"]:
        config = ladder.rungs[rung["arch"], rung["size"]].config
        assert rung["parameters"] == sizes(config, ()).non_embedding
        assert rung["flops"] == sizes(config, (32,)).training_flops_per_token[32] * rung["tokens"]
        assert rung["memory_bytes"] > 16 * rung["total"]
        assert rung["timed"]
    found = costs(ladder)
    assert totals(ladder, found, 1)["tokens"] == sum(c.tokens * (1 + (c.size == "a")) for c in found)
    assert runs(ladder) == document["runs"]
    assert not (tmp_path / "no").exists()
    assert interlace(["study", "ladder", str(file), "--dry-run"]) == 0
    assert "Nothing was started" in capsys.readouterr().out


@pytest.mark.slow
def test_a_ladder_runs_gathers_fits_no_law_on_two_sizes_and_reports(whole, capsys):
    file, out = whole
    rows = rows_of(out)
    assert len(rows) == 2 * 2 * 2
    ladder = read_ladder(file)
    for row in rows:
        rung = ladder.rungs[row["arch"], row["size"]]
        assert int(row["N"]) == rung.parameters
        assert int(row["D"]) in [s * 64 for s in ladder.steps(rung)]
        assert 0 < float(row["loss"]) < math.log(300)
        assert row["diverged"] == "0"
    facts = json.loads((out / "ladder.json").read_text())
    for arch in ladder.archs:
        tried = {float(r): float(loss) for r, loss in facts["rates"][arch]["tried"].items()}
        best = min(tried, key=tried.get)
        assert facts["rates"][arch]["best"] == pytest.approx(best)
        assert "edge" in facts["rates"][arch]["note"]
        small, large = (next(float(r["rate"]) for r in rows if (r["arch"], r["size"]) == (arch, s)) for s in "ab")
        grown = ladder.rungs[arch, "b"].target / ladder.rungs[arch, "a"].target
        assert small == pytest.approx(best, rel=1e-5)
        assert large == pytest.approx(best * grown ** (-1 / 3), rel=1e-4)
    assert interlace(["study", "fit", str(out)]) == 2
    assert "has 2 sizes (N)" in capsys.readouterr().err
    assert interlace(["study", "report", str(out), "--alpha", "0.3", "--beta", "0.3", "--bootstrap", "0"]) == 0
    page = (out / "report.html").read_text()
    assert "matched in parameters by mlp.width" in page
    assert all(command in page for command in facts["commands"])
    assert "Learning rates 0.002, 0.008 were tried" in page


@pytest.mark.slow
def test_killed_ladders_go_on_and_end_with_the_same_numbers(whole, tmp_path):
    """kill -9 of the whole group of processes, twice; what is emitted as a script ends with them too."""
    file, out = whole
    command = [sys.executable, "-c", "from interlace.cli.main import main; main()", "study", "ladder", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    broken = tmp_path / "broken"
    for _ in range(2):
        worker = subprocess.Popen([*command, "--out", str(broken)], start_new_session=True, **quiet)
        before = len(list(broken.glob("cells/*/metrics.jsonl")))
        while len(list(broken.glob("cells/*/metrics.jsonl"))) <= before and worker.poll() is None:
            time.sleep(0.02)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    subprocess.run([*command, "--out", str(broken)], check=True, **quiet)
    assert numbers(broken) == numbers(out)


@pytest.mark.slow
def test_emitted_jobs_give_the_same_results(whole, tmp_path):
    file, results = whole
    out = tmp_path / "jobs"
    counts = []
    binaries = os.path.dirname(sys.executable)
    for how in ("slurm", "local", "local"):
        assert interlace(["study", "ladder", str(file), "--out", str(out), "--emit", how, "--json"]) == 0
        lines = (out / "jobs.txt").read_text().splitlines()
        counts.append(len(lines))
        if how == "local" and lines:
            path = {"PATH": f"{binaries}:{os.environ['PATH']}"}
            subprocess.run(["bash", str(out / "jobs.sh")], check=True, env=os.environ | path)
    assert counts == [4, 4, 2]
    script = (out / "jobs.sbatch").read_text()
    assert "#SBATCH --array=1-4" in script
    assert interlace(["study", "ladder", str(file), "--out", str(out), "--emit", "local"]) == 0
    assert numbers(out) == numbers(results)


@pytest.mark.slow
def test_a_run_that_diverges_is_kept_marked_and_left_out(texts, tmp_path):
    data = table(texts)
    data["rate"]["tried"] = [2e-3, 1e30]
    del data["architectures"]["transformer"]
    ladder = build(data)
    run = LadderRun(ladder, tmp_path / "out", jobs=2)
    run.run("test")
    assert json.loads((tmp_path / "out" / "ladder.json").read_text())["rates"]["hybrid"]["tried"]["1e+30"] == "diverged"
    bad = next(c for c in run.tuning("hybrid") if c.rate == 1e30)
    assert "training has diverged" in run.outcome(bad).diverged
    assert outcome(run.folder(bad), 2).diverged
    # a run of the study itself: its rows are marked, and a fit leaves them out
    good = next(c for c in run.cells() if c.rung.size == "b" and c.rung.arch == "hybrid")
    with open(run.folder(good) / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"step": 9, "tokens": 9, "diverged": "loss nan"}) + "\n")
    run.finish()
    marked = [r for r in rows_of(tmp_path / "out") if r["diverged"] == "1"]
    assert {(r["arch"], r["size"]) for r in marked} == {("hybrid", "b")}
    kept = read_csv(tmp_path / "out" / "results.csv")
    assert kept.diverged == len(marked)
    assert len(kept) == 4 - len(marked)


def test_when_every_rate_diverges_the_remedy_is_named(texts, tmp_path):
    data = table(texts)
    data["rate"]["tried"] = [1e30]
    with pytest.raises(Failure, match=r"rate.tried: every rate diverged for .* at a; add lower ones"):
        LadderRun(build(data), tmp_path / "out").run("test")


def test_the_folder_of_another_ladder_is_refused(file, tmp_path, texts):
    out = tmp_path / "out"
    LadderRun(read_ladder(file), out).open()
    with pytest.raises(RunError, match=r"ladder.seeds was 1 and is now 2"):
        LadderRun(read_ladder(file, ["ladder.seeds=2"]), out).open()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ladder": {"multiples": [2, 1]}}, "ladder.multiples: must be positive and rising, got [2.0, 1.0]"),
        ({"ladder": {"multiples": []}}, "ladder.multiples"),
        (
            {"ladder": {"reference": "mamba"}},
            "ladder.reference: 'mamba' is not an architecture; known: hybrid, transformer",
        ),
        ({"ladder": {"free": "mlp.breadth"}}, "it has no mlp.breadth"),
        ({"ladder": {"sedes": 2}}, "ladder.sedes: unknown key; did you mean 'seeds'?"),
        ({"rate": {"sizes": 3}}, "rate.sizes: is 3, and there are 2 sizes"),
        ({"train": {"learning_rate": 1e-3}}, "train.learning_rate: the ladder sets it for each run"),
        ({"train": {"precision": "auto"}}, "train.precision: must be named"),
        ({"train": {"wramup": 1}}, "train.wramup: unknown key"),
        ({"data": {"lenght": 1}}, "data.lenght: unknown key; did you mean 'length'?"),
        ({"sizes": {"a": {"mamba": {"inner": 4}}}}, "sizes.a.mamba: no architecture has this layer"),
        ({"sizes": {"a": {"width": -4}}}, "architectures.transformer, sizes.a.width"),
        ({"sizes": {"a": {"width": 24, "mlp": {"width": 64}}}}, "two of them have nearly equal parameters"),
        ({"sizes": {"width": 32}}, "sizes.width: must be a table [sizes.NAME], got 32"),
        ({"sizes": {"a": {"rows": 0}}}, "sizes.a.rows: must be a positive whole number, got 0"),
        ({"sizes": {"a": {"rows": "x"}}}, "sizes.a.rows: must be a positive whole number, got 'x'"),
        ({"rate": {"tried": [0.0]}}, "rate.tried: must be different positive rates, got [0.0]"),
        ({"rate": {"tried": [1e-3, 1e-3]}}, "rate.tried: must be different positive rates"),
        ({"ladders": {}}, "ladders: unknown table; did you mean 'ladder'?"),
        ({"architectures": {}}, "architectures: the table [architectures] is missing or empty"),
    ],
)
def test_bad_ladders_are_one_sentence(change, said):
    data = table()
    for key, value in change.items():
        if not value:
            data[key] = value
        for name, inner in value.items():
            below = data[key].get(name)
            data[key][name] = {**below, **inner} if isinstance(below, dict) else inner
    with pytest.raises(ConfigError) as error:
        build(data)
    assert said in str(error.value)


@pytest.mark.slow
def test_the_recipe_of_the_small_ladder_runs_shortened(texts, tmp_path, capsys):
    """From the file to the report, with a fortieth of a token for each parameter."""
    recipe = Path(__file__).parents[2] / "recipes" / "ladder-small.toml"
    ladder = read_ladder(recipe)
    assert len(ladder.sizes) >= 4
    assert len(ladder.settings.multiples) >= 4
    assert max(abs(r.error) for r in ladder.rungs.values()) <= 0.005
    short = [
        "ladder.multiples=[0.003,0.012]",
        "ladder.seeds=1",
        "rate.tried=[0.008]",
        "data.tokenizer=train:300",
    ]
    short += ["data.length=32", "data.rows=2", "train.evaluation_tokens=256", f"data.source={texts}"]
    out = str(tmp_path / "out")
    assert interlace(["study", "ladder", str(recipe), *short, "--out", out]) == 0
    assert len(rows_of(tmp_path / "out")) == 4 * 2 * 3
    assert interlace(["study", "report", out, "--bootstrap", "20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.rpartition("\n{")[2].join(["{", ""]))
    assert len(document["sentences"]) == 2
    assert (tmp_path / "out" / "report.html").is_file()
