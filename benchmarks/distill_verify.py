"""Verifiers: GSM8K's own answers accepted, perturbed ones refused; and the cage: programs a minute, attacks contained.

    python benchmarks/distill_verify.py [--data ../shared/data] [--pairs]

Every gold answer of GSM8K is checked against itself as people and models would write it (after "####", in a sentence,
in a box, with and without thousands' commas), by number and by sympy, and against seven perturbations: one more, one
less, ten times, a digit more, two digits swapped, the other sign, and a tenth added. HumanEval's own solutions are held
against its own tests, each side in a cage, and once more with every `return` made to return nothing that is true. With
--pairs only the pairs of answer and gold of tests/distill are compared, 150 of numbers and 150 of expressions, each as
a reader would judge it; every disagreement is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from interlace.distill.steps.verify import SYMBOLS
from interlace.sandbox import cage
from interlace.sandbox.worker import Worker
from interlace.text.rows import read_rows
from interlace.verify import programs
from interlace.verify.numbers import final_number, same_number

PAIRS = Path(__file__).parents[1] / "tests" / "distill"
FORMS = ("#### {}", "The answer is {}.", "so we get \\boxed{{{}}}", "In all that makes {} of them", "**Answer: {}**")
ATTACKS = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "other programs": "import subprocess; subprocess.run(['/bin/sh', '-c', 'id'])",
    "sleep": "import time; time.sleep(1000)",
    "spin": "while True: pass",
    "memory": "x = []\nwhile True: x.append(bytearray(10**7))",
    "write outside": "open('{outside}', 'w').write('x')",
    "read secrets": "open('/proc/self/environ').read()",
    "sockets": "import socket; socket.create_connection(('127.0.0.1', 80))",
    "gigabytes printed": "while True: print('x' * 10**6)",
    "gigabytes on disk": "i = 0\nwhile True:\n    open(str(i), 'w').write('x' * 10**6)\n    i += 1",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everyone": "import os\nos.kill(-1, 9)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
    "end early": "import sys; sys.exit(0)",
}


def variants(text: str) -> list[str]:
    """A number in the ways that people write it."""
    number = final_number(text)
    assert number is not None
    plain = str(number) if number.denominator == 1 else text.replace(",", "")
    grouped = f"{int(number):,}" if number.denominator == 1 else plain
    return list(dict.fromkeys((text, plain, grouped)))


def perturbed(number: Fraction) -> list[str]:
    """Seven wrong answers near a right one; those that happen to be equal are left out."""
    text = f"{float(number):g}" if number.denominator != 1 else str(number)
    digits = [c for c in text if c.isdigit()]
    swapped = text
    for a, b in pairwise(digits):
        if a != b:
            swapped = text.replace(a + b, b + a, 1)
            break
    found = [number + 1, number - 1, number * 10, -number, number + Fraction(1, 10)]
    texts = [f"{float(x):g}" if x.denominator != 1 else str(x) for x in found] + [text + "3", swapped]
    return [t for t in texts if final_number(t) != number]


def answers(data: Path) -> None:
    """Rates of acceptance and refusal."""
    golds = [
        row["answer"].rsplit("####", 1)[1].strip()
        for n in ("train", "test")
        for row in read_rows(data / f"gsm8k-{n}.jsonl")
    ]
    worker = Worker(SYMBOLS, 5.0)
    counts = {"numeric": [0, 0, 0, 0], "symbolic": [0, 0, 0, 0]}
    missed: dict[str, list[str]] = {"accepted": [], "refused": []}
    began = time.perf_counter()
    for place, gold in enumerate(golds):
        number = final_number(gold)
        assert number is not None, gold
        right = [form.format(v) for v in variants(gold) for form in FORMS]
        wrong = [FORMS[(place + i) % len(FORMS)].format(t) for i, t in enumerate(perturbed(number))]
        for text in right:
            counts["numeric"][0] += 1
            ok = same_number(text, gold)[0]
            counts["numeric"][1] += ok
            if not ok:
                missed["refused"].append(f"{text!r} for {gold!r}")
        for text in wrong:
            counts["numeric"][2] += 1
            ok = same_number(text, gold)[0]
            counts["numeric"][3] += ok
            if ok:
                missed["accepted"].append(f"{text!r} for {gold!r}")
        if place % 8 == 0:  # sympy takes a millisecond or more each
            for text, want in [(f"\\boxed{{{v}}}", True) for v in variants(gold)] + [
                (f"\\boxed{{{t}}}", False) for t in perturbed(number)
            ]:
                ok = worker.ask({"answer": text, "gold": gold})[0]
                counts["symbolic"][0 if want else 2] += 1
                counts["symbolic"][1 if want else 3] += ok
    worker.close()
    for name, (asked, accepted, wrong_asked, wrong_accepted) in counts.items():
        print(
            json.dumps(
                {
                    "by": name,
                    "gold answers": len(golds) if name == "numeric" else -(-len(golds) // 8),
                    "right, as written": asked,
                    "accepted": round(accepted / asked, 6),
                    "perturbed": wrong_asked,
                    "refused": round(1 - wrong_accepted / wrong_asked, 6),
                }
            )
        )
    print(
        json.dumps({"missed": {k: v[:5] for k, v in missed.items()}, "seconds": round(time.perf_counter() - began, 1)})
    )


def verdict(pair: tuple[str, str]) -> str:
    """What becomes of a solution by its tests."""
    try:
        return programs.check(*pair).kind
    except programs.NothingProved:
        return "nothing"


def run_programs(data: Path) -> None:
    """HumanEval's solutions pass their tests, broken ones do not; programs a minute; attacks."""
    tasks = list(read_rows(data / "humaneval.jsonl"))
    right = [(t["prompt"] + t["canonical_solution"], f"{t['test']}\ncheck({t['entry_point']})\n") for t in tasks]
    broken = [(re.sub(r"\breturn\b", "return None and", solution), tests) for solution, tests in right]
    small = [f"assert sum(range({i})) == {i * (i - 1) // 2}" for i in range(1000)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        began = time.perf_counter()
        passed = list(pool.map(verdict, right))
        proofs = time.perf_counter() - began
        failed = list(pool.map(verdict, broken))
        began = time.perf_counter()
        kinds = {o.kind for o in pool.map(cage.run, small)}
        seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "humaneval": len(tasks),
                "own solutions passed": passed.count("passed"),
                "broken solutions passed": failed.count("passed"),
                "solutions per minute": round(60 * len(right) / proofs),
                "small programs": len(small),
                "ended as": sorted(kinds),
                "programs per minute": round(60 * len(small) / seconds),
            }
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder) / "outside"
        outside.write_text("precious")
        for name, source in ATTACKS.items():
            found = cage.run(source.replace("{outside}", str(outside)), cage.CageLimits(seconds=2.0))
            said = {"attack": name, "ended as": found.kind, "why": found.why[:70], "seconds": round(found.seconds, 2)}
            print(json.dumps({**said, "contained": found.kind != "passed" and outside.read_text() == "precious"}))


def agreements() -> None:
    """The pairs of tests/distill: how many are judged as a reader would, and those that are not."""
    worker = Worker(SYMBOLS, 5.0)

    def by_symbols(answer: str, gold: str) -> bool:
        return bool(worker.ask({"answer": answer, "gold": gold})[0])

    compare = {"numbers": lambda answer, gold: same_number(answer, gold)[0], "expressions": by_symbols}
    for name, equal in compare.items():
        pairs = list(read_rows(PAIRS / f"pairs_{name}.jsonl"))
        other = [p for p in pairs if equal(p["answer"], p["gold"]) is not p["equal"]]
        print(json.dumps({"pairs": name, "compared": len(pairs), "agree": len(pairs) - len(other)}))
        for pair in other:
            print(json.dumps({"disagrees": pair, "verdict": not pair["equal"]}, ensure_ascii=False))
    worker.close()


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", action="store_true")
    given = parser.parse_args()
    if given.pairs:
        agreements()
    else:
        answers(given.data)
        run_programs(given.data)


if __name__ == "__main__":
    main()
