"""20,000 requests to a teacher that misbehaves, killed ten times: rows lost, requests paid twice, budget, memory, rate.

    python benchmarks/distill_endpoint.py [--rows 20000] [--part limits] [--spurious 0.01] [--peer PYTHON]

The teacher is tests/distill/simulator.py, a real HTTP server on loopback that limits requests and tokens, delays, drops
connections, truncates, dribbles, and answers 429, 500, 503, broken JSON and figures of usage that cannot be. It counts
what it charges. Three parts:

- limits: the share of the endpoint's limit that is used while 0, 1 and 3 % of all requests are sent back with 429
  whatever their rate; --spurious names another share;
- budgets: what was charged against what was allowed where the figures of usage are 0, missing, impossible, or leave
  reasoning out of all but the total;
- kills: a run, the same killed with SIGKILL ten times and then finished, and again with a budget that does not suffice.

With --peer, kills also for bespokelabs-curator, on as many rows, killed once: pip install bespokelabs-curator in
another environment and name its python. The simulator, ours and the peer share the cores. What a killed process had in
flight may have been charged, so that such requests are the only ones that may be charged twice, beside those whose
answers came back unreadable or not at all; both are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve()
SIMULATOR = HERE.parents[1] / "tests" / "distill" / "simulator.py"
REQUESTS, TOKENS, LATENCY = 250, 9000, 0.15
FAULTS = {
    "drop": 0.004,
    "drop-before": 0.004,
    "truncate": 0.01,
    "slow": 0.005,
    "broken": 0.004,
    "error-500": 0.01,
    "error-503": 0.004,
    "wrong-usage": 0.01,
    "refuse": 0.005,
}
UNREADABLE = ("drop", "broken")
SHARES = (0.0, 0.01, 0.03)  # of spurious 429s
USAGE = ({"zero-usage": 1.0}, {"no-usage": 1.0}, {"wrong-usage": 1.0}, {"hidden": 1.0}, {"hidden": 0.05})
BUDGETS = ("max_tokens = 60_000", "max_cost = 0.06")
RECIPE = """
[run]
rows_at_once = 256
{budget}
[teachers.sim]
model = "sim"
base_url = "{url}"
licence = "none"
terms = "own"
price_in = 1.0
price_out = 2.0
connections = 128
[[steps]]
name = "numbers"
kind = "jsonl"
path = "rows.jsonl"
[[steps]]
name = "answers"
kind = "generate"
teacher = "sim"
prompt = "What is {{{{ a }}}} + {{{{ b }}}}?"
max_tokens = 64
[output]
user = "What is {{{{ a }}}} + {{{{ b }}}}?"
assistant = "{{{{ answer }}}}"
"""
OURS = "from interlace.cli.main import main; main()"
PEER = """
import json, sys
import tiktoken  # its tables are fetched from the network, which is not there: a count of a quarter of the letters does
class Quarter:
    def encode(self, text, **_):
        return list(range(len(text) // 4 + 1))
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda *_: Quarter()
from bespokelabs import curator
from datasets import Dataset

class Sum(curator.LLM):
    def prompt(self, row):
        return f"What is {row['a']} + {row['b']}?"
    def parse(self, row, response):
        return {"a": row["a"], "answer": response}

url, rows, cache, rpm, tpm = sys.argv[1:6]
data = Dataset.from_list([json.loads(line) for line in open(rows)])
params = {"base_url": url, "api_key": "none", "max_retries": 6, "require_all_responses": False,
          "max_requests_per_minute": int(rpm), "max_tokens_per_minute": int(tpm), "max_concurrent_requests": 128}
model = Sum(model_name="gpt-4o-mini", backend="openai", backend_params=params, generation_params={"max_tokens": 64})
found = model(data, working_dir=cache)
out = getattr(found, "dataset", found)
print("PEER", json.dumps({"rows": len(out), "empty": sum(not r["answer"] for r in out)}))
"""


class Server:
    """The simulator, with all its faults unless others are named."""

    def __init__(self, faults: dict[str, float] = FAULTS) -> None:
        """Start it."""
        options = [f"--{k}={v}" for k, v in faults.items()]
        options += [f"--requests-per-second={REQUESTS}", f"--tokens-per-second={TOKENS}", f"--latency={LATENCY}"]
        self.process = subprocess.Popen([sys.executable, str(SIMULATOR), *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict:
        """What it has seen."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats") as answer:
            return json.load(answer)


def watched(process: subprocess.Popen, until: float | None, server: Server) -> tuple[int, float]:
    """Wait for a process, or kill it once the server has charged so many requests; (peak MiB, seconds it ran)."""
    peak, began = 0, time.monotonic()
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
                peak = max(peak, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20)
        except (OSError, ValueError, IndexError):
            break
        if until is not None and server.stats()["charged_requests"] >= until:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05 if until is not None else 0.2)
    process.wait()
    return peak, time.monotonic() - began


def ours(folder: Path, rows: int, kills: int, budget: str = "", seed: int = 0, spurious: float = 0.0) -> dict:
    """A run that is killed now and then, and what it came to."""
    from interlace.distill.run import status

    server = Server({**FAULTS, "spurious": spurious})
    (folder / "r.toml").write_text(RECIPE.format(url=server.url, budget=budget))
    command = [sys.executable, "-c", OURS, "distill", "generate", str(folder / "r.toml"), "--out", str(folder / "run")]
    draw = random.Random(seed)
    points = sorted(draw.uniform(0.02, 0.95) * rows for _ in range(kills))
    peaks, seconds = [], 0.0
    log = open(folder / "log.txt", "w", encoding="utf-8")  # noqa: SIM115 - closed below
    for until in [*points, None]:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        peak, took = watched(process, until, server)
        peaks.append(peak)
        seconds += took
    log.close()
    stats, found = server.stats(), status(folder / "run")
    server.process.kill()
    states = found["steps"][1]["rows"]
    unreadable = sum(stats["counts"].get(k, 0) for k in UNREADABLE)
    spent = found["spent"]
    return {
        "who": "interlace",
        "spurious": spurious,
        "kills": kills,
        "rows by state": states,
        "rows lost": rows - sum(states.values()) if not budget else None,
        "requests charged twice": stats["charged_twice"],
        "of those, answers unreadable or never sent": unreadable,
        "of those, in flight at a kill": stats["charged_twice"] - unreadable,
        "connections": 128,
        "tokens charged by the teacher": stats["charged_tokens"],
        "tokens counted, and those lost in flight": [spent["tokens"], spent["lost_tokens"]],
        "cost counted, and that lost in flight": [round(spent["cost"], 4), round(spent["lost_cost"], 4)],
        "memory, MiB": [min(peaks), max(peaks)],
        "seconds": round(seconds, 1),
        "rows per second": round(sum(states.values()) / seconds, 1),
        "share of the limit": share(stats),
        "sent back for limits": {k: v for k, v in stats["counts"].items() if k.startswith("limited")},
    }


def within(folder: Path, faults: dict[str, float], budget: str) -> dict:
    """What is charged by a teacher whose figures are not to be trusted, over three starts under a budget."""
    server = Server(faults)
    (folder / "r.toml").write_text(RECIPE.format(url=server.url, budget=budget))
    command = [sys.executable, "-c", OURS, "distill", "generate", str(folder / "r.toml"), "--out", str(folder / "run")]
    codes = [subprocess.run(command, capture_output=True, check=False).returncode for _ in range(3)]
    stats = server.stats()
    server.process.kill()
    name, most = budget.split(" = ")
    charged = stats["charged_tokens" if name == "max_tokens" else "charged_cost"]
    found = {"figures": faults, "budget": budget, "charged": round(charged, 6), "passed": charged > float(most)}
    return {**found, "requests": stats["charged_requests"], "exit codes": codes}


def share(stats: dict) -> float:
    """Of the tighter of the two limits, over the time that the teacher was asked at all."""
    rate = {"requests": stats["charged_requests"] / REQUESTS, "tokens": stats["charged_tokens"] / TOKENS}
    return round(max(rate.values()) / stats["seconds"], 3)


def peer(python: str, folder: Path, rows: int, kills: int) -> dict:
    """The same for curator, told the limits, since it does not find them."""
    server = Server()
    (folder / "peer.py").write_text(PEER)
    limits = [str(60 * REQUESTS), str(60 * TOKENS)]
    command = [python, str(folder / "peer.py"), server.url, str(folder / "rows.jsonl"), str(folder / "cache"), *limits]
    environment = os.environ | {"CURATOR_DISABLE_RICH_DISPLAY": "1", "OPENAI_API_KEY": "none", "TELEMETRY_ENABLED": "0"}
    peaks, seconds, text = [], 0.0, ""
    for until in [*([rows / 2] * kills), None]:
        with open(folder / "peer.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
            peak, took = watched(process, until, server)
        peaks.append(peak)
        seconds += took
    text = (folder / "peer.log").read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if line.startswith("PEER")]
    found = json.loads(said[-1].removeprefix("PEER ")) if said else {"rows": 0, "empty": 0}
    stats = server.stats()
    server.process.kill()
    unreadable = sum(stats["counts"].get(k, 0) for k in UNREADABLE)
    return {
        "who": "bespokelabs-curator",
        "kills": kills,
        "rows": found,
        "rows lost": rows - found["rows"],
        "requests charged twice": stats["charged_twice"],
        "of those, answers unreadable or never sent": unreadable,
        "memory, MiB": [min(peaks), max(peaks)],
        "seconds": round(seconds, 1),
        "rows per second": round(found["rows"] / seconds, 1),
        "share of the limit": share(stats),
        "sent back for limits": {k: v for k, v in stats["counts"].items() if k.startswith("limited")},
        "ended": "" if said else " | ".join(text.strip().splitlines()[-2:])[:300],
    }


def main() -> None:
    """Print one line for each part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--part", choices=("kills", "limits", "budgets"), action="append")
    parser.add_argument("--spurious", type=float, action="append", help="a share of 429s; may be given several times")
    parser.add_argument("--peer", default="")
    parser.add_argument("--peer-rows", type=int, default=0)
    given = parser.parse_args()
    parts = given.part or ["kills", "limits", "budgets"]

    def folder(rows: int) -> Path:
        made = Path(tempfile.mkdtemp(prefix="distill-"))
        lines = (json.dumps({"a": i, "b": 7 * i % 1009}) + "\n" for i in range(rows))
        (made / "rows.jsonl").write_text("".join(lines))
        return made

    load = [round(x, 2) for x in os.getloadavg()]
    limits = {"requests": REQUESTS, "tokens": TOKENS, "burst seconds": 1}
    print(json.dumps({"limits": limits, "faults": FAULTS, "load before": load}))
    if "limits" in parts:
        for spurious in given.spurious or SHARES:
            found = ours(folder(given.rows), given.rows, 0, spurious=spurious)
            shown = ("spurious", "rows per second", "share of the limit", "rows by state", "sent back for limits")
            print(json.dumps({k: found[k] for k in shown}), flush=True)
    if "budgets" in parts:
        for faults in USAGE:
            for budget in BUDGETS:
                print(json.dumps(within(folder(given.rows), faults, budget)), flush=True)
    if "kills" in parts:
        print(json.dumps(ours(folder(given.rows), given.rows, 0)), flush=True)
        print(json.dumps(ours(folder(given.rows), given.rows, 10)), flush=True)
        budget = f"max_cost = {given.rows * 20e-6:.4f}\nmax_requests = {int(given.rows * 0.9)}"
        print(json.dumps({"budget": budget, **ours(folder(given.rows), given.rows, 3, budget)}), flush=True)
    if given.peer:
        rows = given.peer_rows or given.rows
        for kills in (0, 1):
            print(json.dumps(peer(given.peer, folder(rows), rows, kills)), flush=True)


if __name__ == "__main__":
    main()
