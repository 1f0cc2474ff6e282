"""A teacher that behaves as badly as endpoints do: an HTTP server on loopback that keeps count of what it charged.

    python tests/distill/simulator.py --requests-per-second 200 --tokens-per-second 50000 --drop 0.01 --error-500 0.02

It prints its port, then serves until it is killed. GET /stats tells what it has seen. Nothing here is random from run
to run but the order of arrival: faults are drawn from a hash of the seed and the number of the request. Two are not:
--flagged is drawn from the question, which is refused however often it is asked; --spurious is the share of requests
that are sent back with 429 whatever their rate.
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
from typing import Any

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
REASONS |= {429: "Too Many Requests"}
NO_ANSWER = ("drop_before", "error_500", "error_503")  # nothing is charged
WIRE = ("drop", "slow", "broken", "html", "events")  # charged; how the answer is sent, if at all
HEADS = ("long_head", "many_heads", "doubled_length", "bom")  # odd, and good
USAGE = ("wrong_usage", "zero_usage", "no_usage", "hidden")
ENDS = ("truncate", "refuse", "odd", "error_finish", "error_beside", "tool_calls")
FORMS = ("details", "parts", "nan", "loose")  # where reasoning stands, and how JSON that was asked for is written
FAULTS = (*NO_ANSWER, *WIRE, *HEADS, *USAGE, *ENDS, *FORMS)  # of which a request meets one at most


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
    charged_cost: float = 0.0  # at a price of 1 for the prompt's tokens and of 2 for the answer's, a million
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

    def draw(self, name: str, of: str = "") -> float:
        """Between 0 and 1, from the number of the request, or from a text."""
        drawn = f"{self.options.seed} {of or self.number} {name}".encode("utf-8", "surrogatepass")
        raw = hashlib.sha256(drawn).digest()
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
        if self.draw("spurious") < o.spurious:
            self.counts["limited_spurious"] += 1
            await self.limited(writer, "requests", o.spurious_retry)
            return True
        answer, reasoning = self.answer(text, request)
        tokens_in = len(text) // 4 + 8 + o.overhead
        tokens_out = min(int(request.get("max_tokens", 64)), (len(answer) + len(reasoning)) // 4 + 1)
        total = tokens_in + tokens_out
        for name, bucket, amount in (("requests", self.requests, 1), ("tokens", self.tokens, total)):
            if bucket is not None and (wait := bucket.wait(amount)) > 0:
                self.counts[f"limited_{name}"] += 1
                await self.limited(writer, name, wait)
                return True
        for bucket, amount in ((self.requests, 1), (self.tokens, total)):
            if bucket is not None:
                bucket.level -= amount
        if fault == "drop_before":
            self.counts[fault] += 1
            return False
        await asyncio.sleep(o.latency * (0.5 + self.draw("latency")))
        if self.draw("flagged", text) < o.flagged:
            self.counts["flagged"] += 1
            said = {"message": "Input was flagged by moderation", "code": 403, "metadata": {"reasons": ["violence"]}}
            await self.reply(writer, 403, {"error": said})
            return True
        if fault in ("error_500", "error_503"):
            self.counts[fault] += 1
            after = {"retry-after": "1"} if fault == "error_503" else {}
            await self.reply(writer, int(fault[-3:]), {"error": {"message": "try again"}}, after)
            return True
        used = [tokens_in, tokens_out + (o.hidden_tokens if fault == "hidden" else 0)]
        self.charge(body, *used)
        self.counts[fault or "answered"] += 1
        if fault == "drop":
            return False
        whole = self.completion(fault, answer, reasoning, "messages" in request)
        whole |= self.usage(fault, tokens_in, tokens_out)
        await self.send(writer, fault, json.dumps(whole).encode())
        self.last = time.monotonic()
        return True

    def completion(self, fault: str, answer: Any, reasoning: str, chat: bool) -> dict[str, Any]:
        """The answer, without its figures, in the form that a fault gives it."""
        half = answer[: len(answer) // 2]
        finish = {"truncate": "length", "error_finish": "error"}.get(fault, "stop")
        message: dict[str, Any] = {"reasoning_content": reasoning} if reasoning else {}
        more: dict[str, Any] = {}
        if fault in ("truncate", "error_finish", "error_beside"):
            answer = half
        if fault == "error_beside":
            more = {"error": {"message": "upstream went away", "code": 502}}
        elif fault == "refuse":
            answer, message["refusal"] = "", "I will not."
        elif fault == "odd":
            answer = [{"type": "text", "text": None}]
        elif fault == "tool_calls":
            call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
            answer, message["tool_calls"] = "Let me look that up.", [call]
        elif fault == "details":
            message = {"reasoning_details": [{"type": "reasoning.text", "text": reasoning, "index": 0}]}
        elif fault == "parts":
            thought = {"type": "thinking", "thinking": [{"type": "text", "text": reasoning}]}
            message, answer = {}, [thought, {"type": "text", "text": answer}]
        choice = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": answer} | message} if chat else {"text": answer}
        if fault == "nan":
            choice["logprobs"] = {"mean": float("nan")}
        return {"id": f"r{self.number}", "object": "chat.completion", "choices": [choice], **more}

    def usage(self, fault: str, prompt: int, answer: int) -> dict[str, Any]:
        """The figures of an answer, true or not."""
        if fault == "no_usage":
            return {}
        if fault == "wrong_usage":
            wrong = [{"prompt_tokens": -5, "completion_tokens": 10**9}, None, {"prompt_tokens": "many"}]
            return {"usage": wrong[self.number % 3]}
        total = prompt + answer + (self.options.hidden_tokens if fault == "hidden" else 0)
        figures = (0, 0, 0) if fault == "zero_usage" else (prompt, answer, total)
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return {"usage": dict(zip(names, figures, strict=True))}

    async def send(self, writer: asyncio.StreamWriter, fault: str, body: bytes) -> None:
        """The answer as it goes over the wire."""
        kind, heads, slow = "application/json", [], 0.0
        if fault == "broken":
            body = body[:-20]
        elif fault == "html":
            body, kind = b"<html><body>Sign in</body></html>", "text/html"
        elif fault == "events":
            body, kind = b"data: " + body + b"\n\ndata: [DONE]\n\n", "text/event-stream"
        elif fault == "bom":
            body = b"\xef\xbb\xbf" + body
        elif fault == "slow":
            slow = self.options.slow_seconds
        elif fault == "long_head":
            heads = [("x-trace", "a" * 9000)]
        elif fault == "many_heads":
            heads = [(f"x-{i}", "v") for i in range(400)]
        elif fault == "doubled_length":
            heads = [("content-length", str(len(body)))]
        await self.raw(writer, 200, body, kind, heads, slow)

    async def limited(self, writer: asyncio.StreamWriter, name: str, wait: float) -> None:
        """Send back for a rate limit."""
        exact = {"retry-after-ms": str(int(1000 * wait) + 1)}
        extra = exact if self.options.exact_retry else {"retry-after": str(int(wait) + 1)}
        extra[f"x-ratelimit-remaining-{name}"] = "0"
        await self.reply(writer, 429, {"error": {"message": f"rate limit of {name} per second"}}, extra)

    def answer(self, text: str, request: dict) -> tuple[str, str]:
        """(answer, reasoning): a function of the question alone; sums are answered, some of them wrongly."""
        seed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if "response_format" in request:
            schema = request["response_format"]["json_schema"]["schema"]
            values = {k: self.value(v, seed) for k, v in schema["properties"].items()}
            return self.written(values), ""
        if found := re.search(r"(\d+) \+ (\d+)", text):
            total = int(found[1]) + int(found[2]) + (int(seed, 16) % 10 == 0)
            return f"The answer is {total}.", f"{found[1]} plus {found[2]} makes {total}."
        if "numbered list" in text:
            return "\n".join(
                f"{i}. Explain the number {int(seed[4 * i : 4 * i + 4], 16)} in words." for i in range(1, 6)
            ), ""
        words = [f"w{int(seed[i : i + 2], 16)}" for i in range(0, 60, 2)]
        return " ".join(words[: self.options.words]), ""

    def written(self, values: dict[str, Any]) -> str:
        """What was asked for as JSON: so, or as models write it."""
        fault = self.fault()
        if fault == "nan":
            values = {k: float("nan") if isinstance(v, int | float) else v for k, v in values.items()}
        if fault != "loose":
            return json.dumps(values)
        said = json.dumps({k: f"{v}.0" if isinstance(v, int) else v for k, v in values.items()})
        return f"Here are my marks:\n\n```json\n{said}\n```\nThe last step is right."

    @staticmethod
    def value(schema: dict, seed: str) -> object:
        kind = schema.get("type")
        if kind == "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 10)
            return low + int(seed[:6], 16) % (high - low + 1)
        if kind == "array":
            return []
        return int(seed[:4], 16) / 65536 if kind == "number" else f"text {seed[:8]}"

    def charge(self, body: bytes, prompt: int, answer: int) -> None:
        self.charged[hashlib.sha256(body).hexdigest()[:16]] += 1
        self.charged_tokens += prompt + answer
        self.charged_cost += (prompt + 2 * answer) / 1e6

    def stats(self) -> dict:
        return {
            "counts": dict(self.counts),
            "charged_requests": sum(self.charged.values()),
            "charged_bodies": len(self.charged),
            "charged_twice": sum(n - 1 for n in self.charged.values()),
            "charged_tokens": self.charged_tokens,
            "charged_cost": self.charged_cost,
            "most_open": self.most_open,
            "seconds": self.last - self.first,
        }

    async def reply(self, writer, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
        await self.raw(writer, status, json.dumps(body).encode(), "application/json", [*(headers or {}).items()])

    @staticmethod
    async def raw(writer, status, body, kind, headers=(), slow=0.0) -> None:
        head = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
        ]
        head += [f"{k}: {v}" for k, v in headers]
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
    made.add_argument("--spurious", type=float, default=0.0)
    made.add_argument("--spurious-retry", type=float, default=0.0, help="seconds that its Retry-After asks for")
    made.add_argument("--flagged", type=float, default=0.0)
    made.add_argument("--hidden-tokens", type=int, default=2000, help="of reasoning that total_tokens alone holds")
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
