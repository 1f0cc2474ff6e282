"""A teacher that behaves as badly as endpoints do: an HTTP server on loopback that keeps count of what it charged.

    python tests/distill/simulator.py --requests-per-second 200 --tokens-per-second 50000 --drop 0.01 --error-500 0.02

It prints its port, then serves until it is killed. GET /stats tells what it has seen. Nothing here is random from run
to run but the order of arrival: faults are drawn from a hash of the seed and the number of the request.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
FAULTS = (
    "drop",
    "drop_before",
    "truncate",
    "slow",
    "broken",
    "error_500",
    "error_503",
    "wrong_usage",
    "html",
    "refuse",
    "odd",
)


@dataclass
class Bucket:
    """Units per second, with a burst of some seconds' worth."""

    rate: float
    burst: float
    level: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def fill(self) -> None:
        now = time.monotonic()
        self.level = min(self.rate * self.burst, self.level + (now - self.at) * self.rate)
        self.at = now

    def wait(self, amount: float) -> float:
        """Seconds until so much may be taken; 0 if it may be now."""
        self.fill()
        return 0.0 if self.level >= min(amount, self.rate * self.burst) else (amount - self.level) / self.rate


@dataclass
class Simulator:
    """The server's settings and counts."""

    options: argparse.Namespace
    requests: Bucket | None = None
    tokens: Bucket | None = None
    number: int = 0
    counts: Counter = field(default_factory=Counter)
    charged: Counter = field(default_factory=Counter)
    charged_tokens: int = 0
    open_now: int = 0
    most_open: int = 0
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        o = self.options
        if o.requests_per_second:
            self.requests = Bucket(o.requests_per_second, o.burst)
        if o.tokens_per_second:
            self.tokens = Bucket(o.tokens_per_second, o.burst)

    def draw(self, name: str) -> float:
        raw = hashlib.sha256(f"{self.options.seed} {self.number} {name}".encode()).digest()
        return int.from_bytes(raw[:8], "big") / 2**64

    def fault(self) -> str:
        """At most one for a request."""
        place = self.draw("fault")
        for name in FAULTS:
            place -= getattr(self.options, name)
            if place < 0:
                return name
        return ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/stats":
            await self.reply(writer, 200, self.stats())
            return True
        if method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
            try:
                return await self.complete(writer, headers, body)
            finally:
                self.open_now -= 1
        await self.reply(writer, 404, {"error": {"message": f"no such path {path}"}})
        return True

    async def complete(self, writer: asyncio.StreamWriter, headers: dict[str, str], body: bytes) -> bool:
        o = self.options
        self.number += 1
        self.counts["received"] += 1
        now = time.monotonic()
        self.first = self.first or now
        fault = self.fault()
        if o.key and headers.get("authorization") != f"Bearer {o.key}":
            said = f"Incorrect API key provided: {headers.get('authorization', '')}"
            await self.reply(writer, 401, {"error": {"message": said}})
            return True
        if o.always_limited:
            self.counts["limited_requests"] += 1
            await self.reply(writer, 429, {"error": {"message": "daily quota"}}, {"retry-after-ms": "50"})
            return True
        if o.dead_after and self.number > o.dead_after:
            return False
        request = json.loads(body)
        text = "\n".join(str(m["content"]) for m in request.get("messages", [])) or request.get("prompt", "")
        asked = int(request.get("max_tokens", 64))
        answer, reasoning = self.answer(text, request)
        tokens_in, tokens_out = len(text) // 4 + 8 + o.overhead, min(asked, (len(answer) + len(reasoning)) // 4 + 1)
        total = tokens_in + tokens_out
        for name, bucket, amount in (("requests", self.requests, 1), ("tokens", self.tokens, total)):
            if bucket is not None and (wait := bucket.wait(amount)) > 0:
                self.counts[f"limited_{name}"] += 1
                extra = (
                    {"retry-after-ms": str(int(1000 * wait) + 1)}
                    if o.exact_retry
                    else {"retry-after": str(int(wait) + 1)}
                )
                extra[f"x-ratelimit-remaining-{name}"] = "0"
                await self.reply(writer, 429, {"error": {"message": f"rate limit of {name} per second"}}, extra)
                return True
        for bucket, amount in ((self.requests, 1), (self.tokens, total)):
            if bucket is not None:
                bucket.level -= amount
        if fault == "drop_before":
            self.counts[fault] += 1
            return False
        await asyncio.sleep(o.latency * (0.5 + self.draw("latency")))
        if fault in ("error_500", "error_503"):
            self.counts[fault] += 1
            status = int(fault[-3:])
            await self.reply(
                writer, status, {"error": {"message": "try again"}}, {"retry-after": "1"} if status == 503 else {}
            )
            return True
        self.charge(body, total)
        if fault == "drop":
            self.counts[fault] += 1
            return False
        finish = "stop"
        if fault == "truncate":
            finish, answer = "length", answer[: len(answer) // 2]
        if fault == "refuse":
            answer = ""
        if fault == "odd":
            answer = [{"type": "text", "text": None}]
        message = {"role": "assistant", "content": answer}
        if fault == "refuse":
            message["refusal"] = "I will not."
        if reasoning:
            message["reasoning_content"] = reasoning
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": total}
        if fault == "wrong_usage":
            usage = [{"prompt_tokens": -5, "completion_tokens": 10**9}, None, {"prompt_tokens": "many"}][
                self.number % 3
            ]
        choice = {"index": 0, "finish_reason": finish}
        choice |= {"message": message} if "messages" in request else {"text": answer}
        whole = {"id": f"r{self.number}", "object": "chat.completion", "choices": [choice], "usage": usage}
        self.counts[fault or "answered"] += 1
        if fault == "broken":
            await self.raw(writer, 200, json.dumps(whole).encode()[:-20], "application/json")
        elif fault == "html":
            await self.raw(writer, 200, b"<html><body>Sign in</body></html>", "text/html")
        else:
            await self.reply(writer, 200, whole, slow=o.slow_seconds if fault == "slow" else 0.0)
        self.last = time.monotonic()
        return True

    def answer(self, text: str, request: dict) -> tuple[str, str]:
        """(answer, reasoning): a function of the question alone; sums are answered, some of them wrongly."""
        seed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if "response_format" in request:
            schema = request["response_format"]["json_schema"]["schema"]
            return json.dumps({k: self.value(v, seed) for k, v in schema["properties"].items()}), ""
        if found := re.search(r"(\d+) \+ (\d+)", text):
            total = int(found[1]) + int(found[2]) + (int(seed, 16) % 10 == 0)
            return f"The answer is {total}.", f"{found[1]} plus {found[2]} makes {total}."
        if "numbered list" in text:
            return "\n".join(
                f"{i}. Explain the number {int(seed[4 * i : 4 * i + 4], 16)} in words." for i in range(1, 6)
            ), ""
        words = [f"w{int(seed[i : i + 2], 16)}" for i in range(0, 60, 2)]
        return " ".join(words[: self.options.words]), ""

    @staticmethod
    def value(schema: dict, seed: str) -> object:
        kind = schema.get("type")
        if kind == "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 10)
            return low + int(seed[:6], 16) % (high - low + 1)
        if kind == "array":
            return []
        return int(seed[:4], 16) / 65536 if kind == "number" else f"text {seed[:8]}"

    def charge(self, body: bytes, tokens: int) -> None:
        self.charged[hashlib.sha256(body).hexdigest()[:16]] += 1
        self.charged_tokens += tokens

    def stats(self) -> dict:
        return {
            "counts": dict(self.counts),
            "charged_requests": sum(self.charged.values()),
            "charged_bodies": len(self.charged),
            "charged_twice": sum(n - 1 for n in self.charged.values()),
            "charged_tokens": self.charged_tokens,
            "most_open": self.most_open,
            "seconds": self.last - self.first,
        }

    async def reply(
        self, writer, status: int, body: dict, headers: dict[str, str] | None = None, slow: float = 0.0
    ) -> None:
        await self.raw(writer, status, json.dumps(body).encode(), "application/json", headers, slow)

    @staticmethod
    async def raw(writer, status, body, kind, headers=None, slow=0.0) -> None:
        head = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
        ]
        head += [f"{k}: {v}" for k, v in (headers or {}).items()]
        writer.write("\r\n".join([*head, "", ""]).encode())
        if slow:
            for start in range(0, len(body), len(body) // 8 + 1):
                writer.write(body[start : start + len(body) // 8 + 1])
                await writer.drain()
                await asyncio.sleep(slow / 8)
        else:
            writer.write(body)
        await writer.drain()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--key", default="")
    made.add_argument("--latency", type=float, default=0.05)
    made.add_argument("--requests-per-second", type=float, default=0)
    made.add_argument("--tokens-per-second", type=float, default=0)
    made.add_argument("--burst", type=float, default=1.0)
    made.add_argument("--exact-retry", action="store_true")
    made.add_argument("--slow-seconds", type=float, default=0.5)
    made.add_argument("--words", type=int, default=20)
    made.add_argument("--dead-after", type=int, default=0)
    made.add_argument("--overhead", type=int, default=0)
    made.add_argument("--always-limited", action="store_true")
    for name in FAULTS:
        made.add_argument(f"--{name.replace('_', '-')}", type=float, default=0.0)
    return made


async def main() -> None:
    simulator = Simulator(parser().parse_args())
    server = await asyncio.start_server(simulator.serve, "127.0.0.1", simulator.options.port, limit=1 << 26)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
