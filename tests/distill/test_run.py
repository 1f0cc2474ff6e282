"""Whole runs against the simulated teacher: nothing lost, nothing paid twice, budgets that hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from ledgers import rows_of

from interlace.base.errors import ConfigError, DataError, Failure, RunError
from interlace.distill.export import export
from interlace.distill.folder import DistillRun
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Exhausted
from interlace.distill.run import generate, status
from interlace.distill.teachers.client import Dead

FAULTS = {
    "drop": 0.03,
    "drop_before": 0.03,
    "truncate": 0.04,
    "slow": 0.02,
    "broken": 0.03,
    "error_500": 0.05,
    "error_503": 0.01,
    "wrong_usage": 0.05,
    "html": 0.02,
    "refuse": 0.03,
    "slow_seconds": 0.05,
}


def states(document, step):
    return next(s["rows"] for s in document["steps"] if s["step"] == step)


def command(recipe, out, *more):
    start = "from interlace.cli.main import main; main()"
    return [sys.executable, "-c", start, "distill", "generate", str(recipe), "--out", str(out), *more]


def started(sim, requests, recipe, out):
    """A process that runs a recipe, once the teacher has received so many requests more, or the process has ended."""
    before = sim.stats()["counts"].get("received", 0)
    log = out.with_name(f"{out.name}.log")
    with open(log, "w") as said:
        process = subprocess.Popen(command(recipe, out), stderr=said)
    while sim.stats()["counts"].get("received", 0) < before + requests and process.poll() is None:
        time.sleep(0.01)
    return process


def test_every_row_ends_in_one_state_whatever_the_teacher_does(server, recipe, tmp_path):
    sim = server(**FAULTS)
    found = generate(recipe(sim.url, rows=300), tmp_path / "run")
    ended = states(found, "answers")
    assert sum(ended.values()) == 300
    assert set(ended) == {"ok", "truncated", "refused"}
    stats, spent = sim.stats(), found["spent"]
    assert stats["counts"]["truncate"] == ended["truncated"]
    assert stats["counts"]["refuse"] == ended["refused"]
    assert stats["charged_bodies"] == 300
    lost = {k: stats["counts"].get(k, 0) for k in ("drop", "broken", "html")}
    assert stats["charged_twice"] == sum(lost.values())  # only what came back unreadable, or not at all
    assert spent["tokens"] + spent["lost_tokens"] >= stats["charged_tokens"]
    assert spent["reserved_requests"] == 0
    assert abs(spent["reserved_cost"]) < 1e-9
    for row in rows_of(tmp_path / "run", "answers"):
        assert (row.state == "ok") == ("answer" in row.values)
        assert row.state == "ok" or row.reason


def test_figures_of_usage_that_cannot_be_are_replaced_by_estimates(server, recipe, tmp_path):
    sim = server(wrong_usage=1.0)
    generate(recipe(sim.url, run="max_cost = 1.0"), tmp_path / "run")
    folder = DistillRun(tmp_path / "run")
    ledger = folder.open_ledger()
    found = ledger.file.db.execute("SELECT counted, prompt_tokens, answer_tokens, cost FROM requests").fetchall()
    ledger.close()
    assert {f[0] for f in found} == {"estimated"}
    assert all(5 < f[1] < 40 and 3 < f[2] <= 64 and 0 < f[3] < 0.001 for f in found)


def test_the_same_command_again_asks_nothing(server, recipe, tmp_path):
    sim = server()
    file = recipe(sim.url)
    first = generate(file, tmp_path / "run")
    assert generate(file, tmp_path / "run") == first
    assert sim.stats()["counts"]["received"] == 12


def test_an_edited_recipe_pays_for_what_is_new_alone(server, recipe, tmp_path):
    sim = server()
    generate(recipe(sim.url, rows=10), tmp_path / "run")
    longer = recipe(sim.url, rows=15)
    assert states(generate(longer, tmp_path / "run"), "answers") == {"ok": 15}
    assert sim.stats()["counts"]["received"] == 15
    keyed = recipe(sim.url, '[[steps]]\nkind = "filter"\ncolumn = "answer"\nlongest = 19\n', rows=15)
    generate(keyed, tmp_path / "run")
    assert sim.stats()["counts"]["received"] == 15
    generate(longer, tmp_path / "run", ["run.seed=1"])  # a seed draws rows, and these are not drawn
    assert sim.stats()["counts"]["received"] == 15
    hotter = tmp_path / "hot.toml"
    hotter.write_text(longer.read_text().replace("max_tokens = 64", "max_tokens = 65"))
    generate(hotter, tmp_path / "run")
    assert sim.stats()["counts"]["received"] == 30


def test_recipes_share_a_ledger(server, recipe, tmp_path):
    sim = server()
    shared = 'ledger = "shared.sqlite"'
    generate(recipe(sim.url, run=shared), tmp_path / "one")
    found = generate(recipe(sim.url, run=shared, name="other.toml"), tmp_path / "two")
    assert sim.stats()["counts"]["received"] == 12
    assert found["spent"]["cost"] == 0
    assert states(found, "answers") == {"ok": 12}


def test_a_trial_is_part_of_what_the_whole_run_pays_for(server, recipe, tmp_path):
    sim = server()
    file = recipe(sim.url)
    assert states(generate(file, tmp_path / "run", limit=3), "answers") == {"ok": 3}
    assert sim.stats()["counts"]["received"] == 3
    assert states(generate(file, tmp_path / "run"), "answers") == {"ok": 12}
    assert sim.stats()["counts"]["received"] == 12


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_loses_only_what_was_in_flight(server, recipe, tmp_path):
    sim = server(latency=0.05, **{k: v for k, v in FAULTS.items() if k in ("truncate", "error_500")})
    file = recipe(sim.url, rows=400, teacher="connections = 16")
    for _ in range(4):
        process = started(sim, 70, file, tmp_path / "run")
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = generate(file, tmp_path / "run")
    assert sum(states(found, "answers").values()) == 400
    stats = sim.stats()
    assert stats["charged_bodies"] == 400
    assert stats["charged_twice"] <= 4 * 16
    assert found["spent"]["lost_requests"] >= stats["charged_twice"]
    alone = generate(file, tmp_path / "alone")
    assert [(r.key, r.values.get("answer")) for r in rows_of(tmp_path / "run", "seeds")] == [
        (r.key, r.values.get("answer")) for r in rows_of(tmp_path / "alone", "seeds")
    ]
    texts = [
        {r.key: r.values["answer"] for r in rows_of(tmp_path / n, "answers") if r.state == "ok"}
        for n in ("run", "alone")
    ]
    both = texts[0].keys() & texts[1].keys()
    assert len(both) > 300
    assert all(texts[0][k] == texts[1][k] for k in both)
    assert sum(states(alone, "answers").values()) == 400


@pytest.mark.parametrize(
    ("limit", "charged"),
    [("max_requests = 7", "charged_requests"), ("max_tokens = 900", "charged_tokens"), ("max_cost = 0.0009", None)],
)
def test_no_budget_is_ever_passed(server, recipe, tmp_path, limit, charged):
    sim = server(drop=0.2, wrong_usage=0.2)
    file = recipe(sim.url, run=limit, rows=60)
    for _ in range(3):
        with pytest.raises(Exhausted, match=limit.split()[0]):
            generate(file, tmp_path / "run")
    stats, spent = sim.stats(), status(tmp_path / "run")["spent"]
    most = float(limit.split()[-1])
    if charged:
        assert 0 < stats[charged] <= most
    assert spent["cost"] + spent["lost_cost"] <= 0.0009 or charged
    assert 0 < sum(states(status(tmp_path / "run"), "answers").values()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 16])
def test_the_first_interrupt_lets_what_is_in_flight_finish(server, recipe, tmp_path, samples):
    sim = server(latency=0.3)
    rows = max(60 // samples, 8)
    file = recipe(sim.url, rows=rows, teacher="connections = 8")
    file.write_text(file.read_text().replace("max_tokens = 64", f"max_tokens = 64\nsamples = {samples}"))
    process = started(sim, 12, file, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "interrupted: what was in flight is written" in (tmp_path / "run.log").read_text()
    spent = status(tmp_path / "run")["spent"]
    assert spent["lost_requests"] == 0
    assert spent["requests"] == sim.stats()["charged_requests"]
    generate(file, tmp_path / "run")
    assert sim.stats()["charged_requests"] == rows * samples


def test_two_processes_may_share_a_run_and_pay_once(server, recipe, tmp_path):
    sim = server(latency=0.05)
    file = recipe(sim.url, rows=120)
    generate(file, tmp_path / "run", limit=1)
    both = [subprocess.Popen(command(file, tmp_path / "run"), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    assert states(status(tmp_path / "run"), "answers") == {"ok": 120}
    assert sim.stats()["charged_twice"] == 0


def test_rows_of_a_state_can_be_done_again(server, recipe, tmp_path):
    sim = server(truncate=0.5)
    file = recipe(sim.url, '[[steps]]\nname = "d"\nkind = "dedup"\ntext = "{{ a }}"\n', rows=20)
    first = states(generate(file, tmp_path / "run"), "answers")
    assert 0 < first["truncated"] < 20
    found = generate(file, tmp_path / "run", retry=["truncated"])
    second = states(found, "answers")
    assert second.get("truncated", 0) < first["truncated"]
    assert sum(second.values()) == 20
    assert sum(states(found, "d").values()) == second["ok"]
    with pytest.raises(DataError, match="'ok' is not a state that can be tried again"):
        generate(file, tmp_path / "run", retry=["ok"])


def test_doing_rows_again_keeps_their_siblings_and_pays_for_what_failed_alone(server, recipe, tmp_path):
    sim = server(truncate=0.2)
    file = recipe(sim.url, '[[steps]]\nname = "long"\nkind = "filter"\ncolumn = "answer"\nshortest = 2\n', rows=10)
    file.write_text(file.read_text().replace("max_tokens = 64", "max_tokens = 64\nsamples = 4"))
    first = states(generate(file, tmp_path / "run"), "answers")
    assert sum(first.values()) == 40
    asked = sim.stats()["counts"]["received"]
    found = generate(file, tmp_path / "run", retry=["truncated"])
    second = states(found, "answers")
    assert sum(second.values()) == 40
    assert second["ok"] > first["ok"]
    assert sim.stats()["counts"]["received"] - asked == first["truncated"]
    assert sum(states(found, "long").values()) == second["ok"]
    assert len(rows_of(tmp_path / "run", "long")) == second["ok"]


SELF = """
[[steps]]
name = "new"
kind = "self_instruct"
teacher = "sim"
column = "a"
count = 60
at_once = 2
alike = 1.0
[[steps]]
name = "answers"
kind = "generate"
teacher = "sim"
prompt = "{{ a }}"
"""


def test_killed_amid_an_ordered_step_its_rows_keep_what_came_of_them(server, recipe, tmp_path):
    sim = server(latency=0.1)
    file = recipe(sim.url, SELF, rows=8, ask=False)
    file.write_text(file.read_text().replace("a = [0, 1, 2, 3, 4, 5, 6, 7]", 'a = ["b", "c", "d", "e", "f"]'))
    process = started(sim, 8, file, tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    both = [subprocess.Popen(command(file, tmp_path / "run"), stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    found = status(tmp_path / "run")
    made = states(found, "new")["ok"]
    assert made == 60
    assert states(found, "answers") == {"ok": made}
    assert len(rows_of(tmp_path / "run", "answers")) == made  # every one of them finds the row it came from
    assert export(tmp_path / "run", tmp_path / "data")["finished"]


def fallen_back(recipe, first, second, **more):
    """Rows of sums that are asked of two teachers in turn."""
    table = f'[teachers.good]\nmodel = "g"\nbase_url = "{second}"\nlicence = "x"\nterms = "open"\n'
    file = recipe(first, teacher=more.pop("teacher", "") + "\n" + table, ask=False, output=False, **more)
    ask = '[[steps]]\nname = "answers"\nkind = "generate"\nteacher = ["sim", "good"]\nprompt = "{{ a }}"\n'
    file.write_text(file.read_text() + ask + '[output]\nuser = "{{ a }}"\nassistant = "{{ answer }}"\n')
    return file


def test_a_dead_teacher_does_not_hold_up_those_who_fall_back(server, recipe, tmp_path):
    dead, good = server(dead_after=5), server()
    file = fallen_back(recipe, dead.url, good.url, teacher="patience_seconds = 60\nconnections = 4", rows=80)
    began = time.monotonic()
    found = generate(file, tmp_path / "run")
    assert states(found, "answers") == {"ok": 80}
    assert time.monotonic() - began < 20
    assert good.stats()["charged_requests"] == 75


def test_an_endpoint_that_only_sends_back_ends_the_run(server, recipe, tmp_path):
    sim = server(always_limited=True)
    file = recipe(sim.url, teacher="patience_seconds = 0.5")
    with pytest.raises(Failure, match=r"every request to .* of the last \d+ seconds was sent back .*daily quota"):
        generate(file, tmp_path / "run")


def test_an_answer_in_no_known_form_is_recorded_and_paid_once(server, recipe, tmp_path):
    sim = server(odd=0.2)
    found = generate(recipe(sim.url, rows=30), tmp_path / "run")
    ended = states(found, "answers")
    assert ended["unparsable"] == sim.stats()["counts"]["odd"] > 0
    assert sum(ended.values()) == 30
    assert sim.stats()["charged_twice"] == 0


def test_tokens_of_an_endpoint_s_own_template_count(server, recipe, tmp_path):
    sim = server(overhead=500, latency=0.05)
    file = recipe(sim.url, run="max_tokens = 20_000", rows=200, teacher="connections = 2")
    with pytest.raises(Exhausted):
        generate(file, tmp_path / "run")
    spent = status(tmp_path / "run")["spent"]
    assert spent["tokens"] == sim.stats()["charged_tokens"]
    assert 18_000 < spent["tokens"] <= 20_000


def test_a_budget_is_used_up_though_much_more_is_held_back_for_each_request(server, recipe, tmp_path):
    sim = server()
    file = recipe(sim.url, run="max_tokens = 9_000", rows=400)
    file.write_text(file.read_text().replace("max_tokens = 64", "max_tokens = 4000"))
    with pytest.raises(Exhausted, match="max_tokens"):
        generate(file, tmp_path / "run")
    assert 4500 < sim.stats()["charged_tokens"] <= 9_000


def test_an_error_that_ends_the_run_ends_it_at_once(server, recipe, tmp_path):
    sim = server(latency=0.05)
    text = recipe(sim.url, rows=300, teacher="connections = 4").read_text()
    loop = "{% if a == 3 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    (tmp_path / "r.toml").write_text(text.replace('prompt = "', f'prompt = "{loop}'))
    with pytest.raises(ConfigError, match="does it loop over too much"):
        generate(tmp_path / "r.toml", tmp_path / "run")
    assert sim.stats()["counts"].get("received", 0) < 100


def test_reading_a_run_changes_nothing_and_a_lost_ledger_is_not_begun_anew(server, recipe, tmp_path):
    sim = server()
    file = recipe(sim.url)
    generate(file, tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.sqlite"
    before = ledger.read_bytes()
    held = Ledger(ledger, "other")
    room = sorted(p.name for p in ledger.parent.iterdir())
    status(tmp_path / "run")
    assert sorted(p.name for p in ledger.parent.iterdir()) == room
    held.close()
    assert [p.name for p in ledger.parent.iterdir() if ".room" in p.name] == []
    ledger.write_bytes(b"")
    with pytest.raises(DataError, match="the ledger of this run is empty"):
        generate(file, tmp_path / "run")
    ledger.unlink()
    with pytest.raises(DataError, match="the ledger of this run is missing"):
        generate(file, tmp_path / "run")
    ledger.write_bytes(before)
    generate(file, tmp_path / "run")
    assert sim.stats()["charged_twice"] == 0


def test_fall_backs_answer_where_the_first_does_not(server, recipe, tmp_path):
    good, bad = server(), server(error_500=1.0)
    found = generate(fallen_back(recipe, bad.url, good.url, teacher="tries = 1", rows=4), tmp_path / "run")
    assert states(found, "answers") == {"ok": 4}
    assert {r.values["answer_teacher"] for r in rows_of(tmp_path / "run", "answers")} == {"good"}


def test_weights_choose_a_teacher_for_each_row(server, recipe, tmp_path):
    one, two = server(), server()
    second = f'[teachers.other]\nmodel = "o"\nbase_url = "{two.url}"\nlicence = "x"\nterms = "open"\n'
    file = recipe(one.url, teacher=second, ask=False, rows=80, output=False)
    steps = '[[steps]]\nname = "answers"\nkind = "generate"\nteacher = {sim = 3, other = 1}\nprompt = "{{ a }}"\n'
    file.write_text(file.read_text() + steps + '[output]\nuser = "{{ a }}"\nassistant = "{{ answer }}"\n')
    generate(file, tmp_path / "run")
    asked = [s.stats()["counts"]["received"] for s in (one, two)]
    assert sum(asked) == 80
    assert 48 < asked[0] < 72


def test_a_dead_endpoint_ends_the_run_and_keeps_what_is_done(server, recipe, tmp_path):
    sim = server(dead_after=20)
    file = recipe(sim.url, rows=40, teacher="patience_seconds = 0.2\nconnections = 4")
    with pytest.raises(Dead, match=r"has not answered for [\d.]+ seconds \(.*what is done is kept"):
        generate(file, tmp_path / "run")
    assert 0 < states(status(tmp_path / "run"), "answers")["ok"] <= 20


def test_the_key_is_sent_and_never_written(server, recipe, tmp_path, monkeypatch, capsys):
    secret = "sk-very-secret-1234567890"
    sim = server(key=secret)
    file = recipe(sim.url, teacher='key = "SIM_KEY"')
    monkeypatch.delenv("SIM_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"teachers\.sim\.key: the environment variable SIM_KEY is not set"):
        generate(file, tmp_path / "run")
    monkeypatch.setenv("SIM_KEY", secret + "wrong")
    with pytest.raises(ConfigError, match="the key is refused") as error:
        generate(file, tmp_path / "run")
    assert secret not in str(error.value)
    monkeypatch.setenv("SIM_KEY", secret)
    generate(file, tmp_path / "run")
    raw = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert secret.encode() not in raw
    said = capsys.readouterr()
    assert secret not in said.out + said.err


def test_a_key_is_stripped_checked_and_not_taken_out_of_answers_where_it_is_a_word(
    server, recipe, tmp_path, monkeypatch
):
    sim = server(key="answer")
    file = recipe(sim.url, teacher='key = "SIM_KEY"', rows=2)
    monkeypatch.setenv("SIM_KEY", "answer\r\n")
    generate(file, tmp_path / "run")
    assert {r.values["answer"] for r in rows_of(tmp_path / "run", "answers")} == {
        "The answer is 7.",
        "The answer is 9.",
    }
    monkeypatch.setenv("SIM_KEY", "sk-ключ-1234567890")
    with pytest.raises(ConfigError, match="SIM_KEY holds characters that no key has") as error:
        generate(file, tmp_path / "other")
    assert "1234567890" not in str(error.value)


def test_no_header_of_the_environment_reaches_an_endpoint_and_none_without_a_key(monkeypatch):
    import asyncio

    from interlace.distill.teachers.endpoint import Endpoint
    from interlace.distill.teachers.teacher import Teacher

    seen = []

    async def answer(reader, writer):
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 41\r\n\r\n")
        writer.write(b'{"choices": [{"message": {"content": 1}}]}'[:41])
        await writer.drain()
        writer.close()

    async def ask():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        table = {"model": "m", "base_url": url, "licence": "x", "terms": "own"}
        endpoint = Endpoint("t", Teacher(**table))
        await endpoint.send({"model": "m", "messages": []})
        await endpoint.close()
        server.close()

    monkeypatch.setenv("OPENAI_ORG_ID", "org-ours")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-ours")
    asyncio.run(ask())
    assert "-ours" not in seen[0]
    assert "authorization" not in seen[0]


def test_a_try_has_a_time_limit_whatever_drips_in(server, recipe, tmp_path):
    sim = server(slow=1.0, slow_seconds=4.0)
    file = recipe(sim.url, teacher="timeout_seconds = 0.5\ntries = 1", rows=1)
    found = generate(file, tmp_path / "run")
    assert found["steps"][1]["ended"][0]["reason"] == "no answer within 0.5 seconds"


@pytest.mark.parametrize(
    ("options", "path", "said"),
    [
        ({"html": 1.0}, "/v1", "answers HTML"),
        ({}, "", "nothing is at http://127.0.0.1"),
        ({"broken": 1.0}, "/v1", "answers broken JSON"),
    ],
)
def test_what_is_no_endpoint_is_named_and_not_asked_for_ever(server, recipe, tmp_path, options, path, said):
    sim = server(**options)
    with pytest.raises(ConfigError) as error:
        generate(recipe(sim.url.removesuffix("/v1") + path), tmp_path / "run")
    assert said in str(error.value)
    assert "usually ends in /v1" in str(error.value)


def test_a_folder_that_is_something_else_is_refused(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="is not a run folder"):
        generate(recipe("http://127.0.0.1:9/v1"), tmp_path / "run")
    with pytest.raises(RunError, match="name the folder that"):
        status(tmp_path / "run")


def test_a_damaged_ledger_is_refused_before_anything_is_sent(server, recipe, tmp_path):
    sim = server()
    file = recipe(sim.url)
    generate(file, tmp_path / "run", limit=2)
    (tmp_path / "run" / "ledger.sqlite").write_bytes(b"nonsense" * 4096)
    with pytest.raises(DataError, match="damaged"):
        generate(file, tmp_path / "run")
    assert sim.stats()["counts"]["received"] == 2
    assert (tmp_path / "run" / "ledger.sqlite").read_bytes() == b"nonsense" * 4096


def test_hard_texts_go_through(server, recipe, tmp_path):
    sim = server()
    texts = ["lone \ud800 surrogate", "nul \0 byte", "x" * 10_000_000, "{{ 7 * 7 }}", "", "🙂"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"a": t}) + "\n" for t in texts))
    file = recipe(sim.url, ask=False, output=False)
    head = file.read_text().split("[[steps]]")[0]
    steps = '[[steps]]\nkind = "jsonl"\npath = "in.jsonl"\n'
    steps += '[[steps]]\nname = "answers"\nkind = "generate"\nteacher = "sim"\n'
    end = 'prompt = "Say: {{ a }}"\n[output]\nuser = "{{ a }}"\nassistant = "{{ answer }}"\n'
    file.write_text(head + steps + end)
    found = generate(file, tmp_path / "run")
    assert states(found, "answers") == {"ok": 6}
    kept = rows_of(tmp_path / "run", "answers")
    assert [r.values["a"] for r in kept] == ["lone � surrogate", *texts[1:]]
    manifest = export(tmp_path / "run", tmp_path / "data")
    assert sum(s["rows"] for s in manifest["splits"].values()) == 6
    lines = [(tmp_path / "data" / f"{n}.jsonl").read_text().splitlines() for n in ("train", "held_out")]
    read = [json.loads(line) for part in lines for line in part]
    assert {m["messages"][0]["content"] for m in read} == {r.values["a"] for r in kept}


def test_one_template_that_fails_on_a_row_ends_that_row(server, recipe, tmp_path):
    sim = server()
    step = '[[steps]]\nkind = "template"\ninto = "q"\ntemplate = "{{ 12 // a }}"\n'
    found = generate(recipe(sim.url, step, rows=4), tmp_path / "run")
    assert states(found, "template") == {"ok": 3, "dropped": 1}
    assert "ZeroDivisionError" in found["steps"][-1]["ended"][0]["reason"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.__class__.__mro__ }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ a }}",
    ],
)
def test_a_template_that_is_unsafe_ends_the_run(server, recipe, tmp_path, template):
    sim = server()
    step = f'[[steps]]\nkind = "template"\ninto = "q"\ntemplate = "{template}"\n'
    with pytest.raises(ConfigError, match=r"steps\.template\.template: the template"):
        generate(recipe(sim.url, step, rows=200), tmp_path / "run")


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(server, recipe, tmp_path):
    """A source of 30,000 rows and a step that drops most of them, in a process of its own."""
    step = '[[steps]]\nkind = "filter"\nwhere = "{{ a % 100 == 0 }}"\n'
    file = recipe("http://127.0.0.1:9/v1", step, ask=False, output=False)
    text = file.read_text().replace("columns = { a = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] }", "")
    grid = 'how = "product"\n[steps.columns]\na = {}\nb = {}\nc = ["{}"]\n'
    sizes = []
    for many in (20, 200):
        made = grid.format(list(range(100)), list(range(many)), "x" * 2000)
        file.write_text(
            text.replace('kind = "table"\n', 'kind = "table"\n' + made)
            + '[output]\nuser="{{ a }}"\nassistant="{{ b }}"\n'
        )
        code = (
            "import resource, sys; from interlace.distill.run import generate; generate(sys.argv[1], sys.argv[2]); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(file), str(tmp_path / f"run{many}")],
            capture_output=True,
            text=True,
            check=True,
        )
        sizes.append(int(done.stdout.split()[-1]))
    assert sizes[1] < sizes[0] + 16_000  # KiB; the texts alone are 40 MB more
