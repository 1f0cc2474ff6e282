"""The server under load, beside `transformers serve`, and what reused states save.

    python benchmarks/serve.py                        # ten minutes on two cores; needs transformers[serving], httpx
    python benchmarks/serve.py --parts load --seconds 300 --clients 64

load: many clients at once, prompts of about 20 to 400 tokens and answers of 16 to 192, a fifth of which hangs up;
errors, time to the first token, tokens a second beside one request alone, and how the server's memory grows after the
first quarter. peer: the same folder behind `transformers serve`, by turns. reuse: many questions after one long text,
and a conversation of many turns; what was read is the server's own count in /metrics. ahead: tokens that a text
foresees, tried at once. The weights are random: no answer ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import httpx
import numpy as np
import torch
from measure import describe, require_truth

import interlace
from interlace.data.library import sources
from interlace.data.tokenizer import Tokenizer
from interlace.generation import scheduler
from interlace.generation.budget import Budget
from interlace.generation.pack import pack_for_decoding
from interlace.generation.request import Request
from interlace.generation.sampling import Sampling

CONFIG = {
    "width": 512,
    "depth": 8,
    "vocabulary": 8192,
    "pattern": ["gated_delta", "gated_delta", "gated_delta", "attention"],
    "gated_delta": {"heads": 8, "key_dim": 48, "value_dim": 96},
    "attention": {"heads": 8, "norm": "output"},
    "mlp": {"width": 1408},
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build(folder: Path) -> str:
    """Write the model into a folder that both servers read; return the text that prompts are cut from."""
    text = "\n".join(document.text for document, _ in zip(sources(None), range(60), strict=False))
    torch.manual_seed(0)
    model = interlace.HybridLM(interlace.ModelConfig.from_dict(CONFIG)).eval()
    model.tokenizer = Tokenizer.train(iter([text[:2_000_000]]), CONFIG["vocabulary"])
    model.tokenizer.chat_template = TEMPLATE
    interlace.save(model, folder)
    config = (
        json.loads((folder / "generation_config.json").read_text())
        if (folder / "generation_config.json").exists()
        else {}
    )
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": None, "do_sample": False}))
    return text


@contextlib.contextmanager
def process(words: list[str], ready: str) -> Iterator[tuple[str, int]]:
    """Run a server; give its address and process id once it answers."""
    made = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if made.poll() is not None:
                raise SystemExit(f"{words[0]} {words[1]} ended by itself")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{ready}/health", timeout=2).status_code == 200:
                    break
            time.sleep(0.2)
        yield ready, made.pid
    finally:
        made.terminate()
        made.wait(60)


def ours(folder: Path, port: int, rows: int, memory: str = "4GB") -> Any:
    """Run `interlace serve`."""
    words = [sys.executable, "-m", "interlace", "serve", str(folder), "--name", "m", "--port", str(port)]
    return process([*words, "--rows", str(rows), "--memory", memory], f"http://127.0.0.1:{port}")


def theirs(folder: Path, port: int) -> Any:
    """Run `transformers serve`."""
    words = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        str(folder),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    return process([*words, "--dtype", "float32"], f"http://127.0.0.1:{port}")


@dataclass
class Seen:
    """What clients saw."""

    errors: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    left: int = 0


async def one(client: httpx.AsyncClient, model: str, prompt: str, most: int, leave: int | None, seen: Seen) -> None:
    """Ask for a completion as a stream; leave after so many tokens, if any."""
    body = {"model": model, "prompt": prompt, "max_tokens": most, "stream": True, "temperature": 0}
    began, got = time.perf_counter(), 0
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                seen.errors.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                return
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    seen.errors.append(line[:200])
                    return
                if not event.get("choices") or not event["choices"][0].get("text"):
                    continue
                if not got:
                    seen.first.append(time.perf_counter() - began)
                got += 1
                seen.tokens += 1
                if leave is not None and got >= leave:
                    seen.left += 1
                    return
        seen.answers += 1
    except httpx.HTTPError as error:
        seen.errors.append(f"{type(error).__name__}: {error}")


async def crowd(
    url: str, model: str, text: str, clients: int, seconds: float, hang: float, pid: int | None
) -> tuple[Seen, float, list[tuple[float, float]]]:
    """Let clients ask until the time is over; return what they saw, how long it took, and memory in MiB over time."""
    seen, end, memory = Seen(), time.perf_counter() + seconds, list[tuple[float, float]]()
    began = time.perf_counter()

    async def client_of(number: int) -> None:
        draw = random.Random(number)
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            while time.perf_counter() < end:
                start = draw.randrange(len(text) - 4000)
                prompt, most = text[start : start + draw.choice([80, 200, 500, 1600])], draw.randint(16, 192)
                leave = draw.randint(1, most) if draw.random() < hang else None
                await one(client, model, prompt, most, leave, seen)

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append((time.perf_counter() - began, resident(pid) if pid else 0.0))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client_of(number) for number in range(clients)))
    return seen, time.perf_counter() - began, memory


def resident(pid: int) -> float:
    """Return the memory of a process, in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def told(name: str, seen: Seen, took: float) -> dict[str, Any]:
    """Print what clients saw."""
    first = sorted(seen.first)
    found = {
        "tokens_per_second": seen.tokens / took,
        "first_p50_seconds": first[len(first) // 2] if first else None,
        "first_p95_seconds": first[int(len(first) * 0.95)] if first else None,
        "answers": seen.answers,
        "left": seen.left,
        "errors": len(seen.errors),
    }
    print(
        f"{name}: {found['tokens_per_second']:.0f} tokens/s, first token p50 {found['first_p50_seconds']:.2f} s, p95 "
        f"{found['first_p95_seconds']:.2f} s, {seen.answers} answers, {seen.left} hung up, {len(seen.errors)} errors",
        flush=True,
    )
    for error in seen.errors[:3]:
        print(f"  {error}")
    return found


def load(folder: Path, text: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure our server under load, and with one request alone."""
    with ours(folder, 8141, 64, given.memory) as (url, pid):
        asyncio.run(crowd(url, "m", text, 1, 3, 0, None))
        alone = told("one at a time", *asyncio.run(crowd(url, "m", text, 1, given.seconds / 10, 0, None))[:2])
        seen, took, memory = asyncio.run(crowd(url, "m", text, given.clients, given.seconds, 0.2, pid))
        found = told(f"{given.clients} clients", seen, took)
    warm = [(at, size) for at, size in memory if at > took / 4]
    slope = float(np.polyfit([at / 60 for at, _ in warm], [size for _, size in warm], 1)[0])
    ratio = found["tokens_per_second"] / alone["tokens_per_second"]
    print(
        f"{ratio:.2f} times one request alone; memory {warm[0][1]:.0f} to {warm[-1][1]:.0f} MiB, slope {slope:+.2f} "
        "MiB/min"
    )
    return {"alone": alone, "crowd": found, "ratio": ratio, "slope_mib_per_minute": slope}


def peer(folder: Path, text: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure both servers by turns, with one client and with several."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    with ours(folder, 8142, 64) as (own, _), theirs(folder, 8143) as (other, _):
        for clients in (1, 8):
            rounds: dict[str, list[float]] = {"ours": [], "theirs": []}
            for turn in range(given.rounds + 1):
                for who, url, model in (("ours", own, "m"), ("theirs", other, str(folder))):
                    seconds = 5.0 if turn == 0 else given.peer_seconds
                    seen, took, _ = asyncio.run(crowd(url, model, text, clients, seconds, 0, None))
                    if turn:
                        found[who].append({"clients": clients, **told(f"{who}, {clients} clients", seen, took)})
                        rounds[who].append(seen.tokens / took)
            ratio = statistics.median(rounds["ours"]) / statistics.median(rounds["theirs"])
            print(f"{clients} clients: {ratio:.2f} times the tokens/s of transformers serve", flush=True)
            found[f"ratio_{clients}"] = ratio  # type: ignore[assignment]
    return found


def reuse(folder: Path, text: str, given: argparse.Namespace) -> dict[str, Any]:
    """Count what is read for many questions after one text, and for the turns of a conversation."""
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    with ours(folder, 8144, 8) as (url, _), httpx.Client(base_url=url, timeout=600) as client:

        def counted(name: str) -> float:
            found = re.search(rf"^{re.escape(name)} ([\d.e+]+)", client.get("/metrics").text, re.MULTILINE)
            return float(found[1]) if found else 0.0

        def read() -> float:
            return counted('interlace_tokens_total{kind="read",model="m"}')

        def kept() -> float:
            return counted('interlace_snapshot_bytes{model="m"}')

        prefix = tokenizer.decode(tokenizer.encode(text)[:4000])
        before, asked, hits, began = read(), 0, 0, time.perf_counter()
        for number in range(50):
            body = {
                "model": "m",
                "prompt": f"{prefix}\nQuestion {number}: what does it do?",
                "max_tokens": 8,
                "temperature": 0,
            }
            usage = client.post("/v1/completions", json=body).json()["usage"]
            asked, hits = asked + usage["prompt_tokens"], hits + bool(usage["prompt_tokens_details"]["cached_tokens"])
        took, done = time.perf_counter() - began, read() - before
        print(
            f"50 questions after 4,000 tokens: {done:.0f} of {asked} tokens read, {asked / done:.1f} times less; "
            f"{hits} hits; "
            f"{took:.1f} s"
        )
        turns, lines, bytes_before, whole_copies = [{"role": "user", "content": text[:400]}], [], kept(), 0
        for _ in range(20):
            before, began = read(), time.perf_counter()
            answer = client.post(
                "/v1/chat/completions", json={"model": "m", "messages": turns, "max_tokens": 60, "temperature": 0}
            ).json()
            usage = answer["usage"]
            lines.append((usage["prompt_tokens"], read() - before, time.perf_counter() - began))
            for tokens in (usage["prompt_tokens"], usage["total_tokens"]):
                whole_copies += client.get(f"/memory?tokens={tokens}").json()["state_bytes"]
            turns += [
                answer["choices"][0]["message"] | {"refusal": None},
                {"role": "user", "content": "And what then?"},
            ]
            turns[-2] = {"role": "assistant", "content": turns[-2]["content"]}
        bytes_kept = kept() - bytes_before
    whole, part = sum(line[0] for line in lines), sum(line[1] for line in lines)
    print(
        f"20 turns: {part:.0f} of {whole} tokens read; their states take {bytes_kept / 2**20:.1f} MiB, whole copies "
        f"would take {whole_copies / 2**20:.1f}"
    )
    for i in (1, 9, 19):
        print(f"  turn {i + 1}: {lines[i][1]:.0f} read of {lines[i][0]}, {lines[i][2]:.2f} s")
    return {
        "questions": {"asked": asked, "read": done, "hits": hits, "seconds": took},
        "turns": lines,
        "kept_bytes": bytes_kept,
        "whole_copies_bytes": whole_copies,
    }


def ahead(folder: Path, text: str, given: argparse.Namespace) -> dict[str, Any]:
    """Time answers with tries and without, by turns: one that copies its prompt, and ones that foresee nothing.

    Random weights copy nothing: here what is drawn is written beforehand for the copy; the passes are the model's.
    """
    model = pack_for_decoding(interlace.load(folder).eval())
    ids = model.tokenizer.encode(text[:6000])[:400]

    class Copied(scheduler.Draws):
        """Draws the prompt again."""

        def __call__(self, logits: torch.Tensor) -> list[int]:
            super().__call__(logits)
            return [next(written) for _ in logits]

    def seconds(copies: bool, tries: bool, sampling: Sampling) -> tuple[float, list[int]]:
        nonlocal written
        written, made = iter(ids * 2), list[int]()
        scheduler.Draws, before = Copied if copies else scheduler.Draws, scheduler.Draws  # type: ignore[misc]
        try:
            work = scheduler.Scheduler(model, Budget.unlimited(1), reuse=False, ahead=tries)
            work.submit(Request(tuple(ids), 300, sampling, seed=1, text=False))
            while not work.live:
                work.step()
            began = time.perf_counter()
            while not work.idle:
                made += [piece.token for _, piece in work.step() if piece.token is not None]
            return time.perf_counter() - began, made
        finally:
            scheduler.Draws = before  # type: ignore[misc]

    written: Iterator[int] = iter(())
    found = {}
    for name, copies, sampling in (
        ("copies", True, Sampling(0)),
        ("greedy", False, Sampling(0)),
        ("drawn", False, Sampling(1.0)),
    ):
        pairs = []
        for turn in range(2 * given.rounds + 1):
            (without, one), (with_tries, other) = (seconds(copies, tries, sampling) for tries in (False, True))
            assert one == other
            pairs += [(without, with_tries)] if turn else []
        found[name] = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
        print(f"tries, {name}: {found[name]:.2f} times as fast, the same tokens", flush=True)
    return found


PARTS = {"load": load, "peer": peer, "reuse": reuse, "ahead": ahead}


def main() -> None:
    """Measure the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--peer-seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory", default="800MB", help="of the server under load: what is kept for reuse fills it, then it is flat"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    require_truth()
    print(describe("transformers"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        text = build(folder)
        found = {part: PARTS[part](folder, text, given) for part in given.parts}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
