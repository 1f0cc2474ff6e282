"""How much contamination is found: 200 planted copies and rewordings of GSM8K's test items among its training items.

    python benchmarks/distill_contamination.py [--data ../shared/data] [--seeds 5]

Five sorts, 40 of each: verbatim; other case, spaces and punctuation; other names and everyday synonyms; one word in
seven dropped, doubled or replaced; sentences in another order. The peer is what most projects use: the item counts if a
run of 13 of its words is in the row (Brown et al., arXiv 2005.14165, appendix C). False alarms are among the 7,473
training items that nobody planted; some of them are items of the test set with other names and numbers, so that "false"
is a matter of taste: they are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
import time
from pathlib import Path

from interlace.distill.folder import DistillRun
from interlace.distill.run import generate
from interlace.distill.steps.near import Decontaminate
from interlace.text.contamination import Index, judged, read_benchmark, words_of
from interlace.text.rows import read_rows

PAIRS = """buys purchases, buy purchase, bought purchased, sells retails, gets receives, each every, total overall,
many numerous, kids children, children kids, big large, dad father, mom mother, begins starts, starts begins,
gave handed, also additionally, wants wishes, house home, shop store, store shop, dollars bucks, makes produces,
needs requires, gives hands, remaining leftover, then next"""
SYNONYMS = dict(pair.split() for pair in PAIRS.split(","))
NAMES = ("Quentin", "Ottilie", "Bertram", "Xanthe", "Ignatius", "Perpetua")
SORTS = ("verbatim", "format", "names and synonyms", "one word in seven", "sentences")
EACH = 40
RECIPE = """
[[steps]]
kind = "jsonl"
path = "train.jsonl"
[[steps]]
kind = "decontaminate"
text = "{{ question }}"
answer = "{{ answer }}"
columns = "question"
answers = "answer"
against = {gsm8k = "test.jsonl"}
[output]
user = "{{ question }}"
assistant = "{{ answer }}"
"""


def verbatim(text: str, draw: random.Random) -> str:
    """As it is."""
    return text


def formatted(text: str, draw: random.Random) -> str:
    """Upper case, other spaces, no punctuation."""
    return "QUESTION:  " + re.sub(r"[.,?!]", " ", text).upper().replace(" ", "  ")


def renamed(text: str, draw: random.Random) -> str:
    """Capitalised words that are not the first of a sentence become other names, and words their synonyms."""
    found = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text)) | set(re.findall(r"^[A-Z][a-z]+(?= [a-z])", text))
    for name in sorted(found - {"If", "How", "The", "On", "In", "There", "Each"}):
        text = re.sub(rf"\b{name}\b", draw.choice(NAMES), text)
    return re.sub(r"\b[a-z]+\b", lambda m: SYNONYMS.get(m[0], m[0]), text)


def noisy(text: str, draw: random.Random) -> str:
    """One word in seven is dropped, doubled or replaced by another word of the text."""
    words = text.split()
    out = []
    for word in words:
        kind = draw.random() * 7
        out += [word] if kind >= 1 else [[], [word, word], [draw.choice(words)]][int(kind * 3)]
    return " ".join(out)


def reordered(text: str, draw: random.Random) -> str:
    """Sentences in another order."""
    parts = re.split(r"(?<=[.?!])\s+", text)
    draw.shuffle(parts)
    return " ".join(parts)


def long_run(index: set[tuple[str, ...]], text: str) -> bool:
    """Whether a run of 13 words of the text is in the benchmark."""
    words = words_of(text)
    return any(tuple(words[i : i + 13]) in index for i in range(len(words) - 12))


def whole_file(data: Path, train: list[dict], sheet: list[dict], change: dict) -> dict:
    """A training file, 200 rows of it replaced by planted items, through `interlace distill` as a user runs it."""
    draw = random.Random(99)
    chosen = draw.sample(range(len(sheet)), EACH * len(SORTS))
    places = dict(zip(draw.sample(range(len(train)), len(chosen)), chosen, strict=True))
    sorts = list(change.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
            for place, row in enumerate(train):
                if place in places:
                    item = sheet[places[place]]
                    row = {**item, "question": sorts[places[place] % len(sorts)](item["question"], draw)}
                file.write(json.dumps({**row, "place": place}) + "\n")
        shutil.copy(data / "gsm8k-test.jsonl", folder / "test.jsonl")
        (folder / "r.toml").write_text(RECIPE)
        began = time.perf_counter()
        generate(folder / "r.toml", folder / "run")
        seconds = time.perf_counter() - began
        run = DistillRun(folder / "run")
        ledger = run.open_ledger()
        dropped = {r.values["place"] for r in ledger.rows.ordered(run.last.id, "dropped")}
        ledger.close()
    found = len(dropped & places.keys())
    return {"file of": len(train), "planted": len(places), "found": found, "others dropped": len(dropped) - found,
            "seconds, whole run": round(seconds, 1)}  # fmt: skip


def main() -> None:
    """Print recall by sort, and false alarms."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    test = given.data / "gsm8k-test.jsonl"
    items = read_benchmark("gsm8k", test, ["question"], "answer")
    index = Index(items)
    train = list(read_rows(given.data / "gsm8k-train.jsonl"))
    sheet = list(read_rows(test))
    step = Decontaminate.model_fields
    limits = (step["threshold"].default, step["with_answer"].default)
    runs13 = {i.words[k : k + 13] for i in items for k in range(len(i.words) - 12)}
    found = {sort: [0, 0, 0] for sort in SORTS}
    change = dict(zip(SORTS, (verbatim, formatted, renamed, noisy, reordered), strict=True))
    for seed in range(given.seeds):
        draw = random.Random(seed)
        chosen = draw.sample(range(len(sheet)), EACH * len(SORTS))
        for place, number in enumerate(chosen):
            sort = SORTS[place % len(SORTS)]
            text = change[sort](sheet[number]["question"], draw)
            match = index.nearest(text, sheet[number]["answer"])
            right = match is not None and match.item.number == number + 1
            found[sort][0] += 1
            found[sort][1] += right and judged(match, *limits)
            found[sort][2] += long_run(runs13, text)
    total = [sum(f[k] for f in found.values()) for k in range(3)]
    for sort, (planted, ours, peer) in found.items():
        print(json.dumps({"sort": sort, "planted": planted, "found": ours, "found by 13-grams": peer}))
    began = time.perf_counter()
    alarms = []
    for row in train:
        match = index.nearest(row["question"], row["answer"])
        if judged(match, *limits):
            alarms.append((match, row["question"]))
    seconds = time.perf_counter() - began
    alarms13 = sum(long_run(runs13, row["question"]) for row in train)
    print(
        json.dumps(
            {
                "threshold": limits[0],
                "with the answer": limits[1],
                "recall": round(total[1] / total[0], 4),
                "recall, 13-grams": round(total[2] / total[0], 4),
                "alarms among training items": len(alarms),
                "alarms, 13-grams": alarms13,
                "training items": len(train),
                "rows per second": round(len(train) / seconds),
            }
        )
    )
    print(json.dumps(whole_file(given.data, train, sheet, change)))
    for match, question in sorted(alarms, key=lambda a: -a[0].coverage):
        print(f"  {match.coverage:.2f}{' answered' if match.answered else ''}: {question[:110]!r}")
        print(f"        item {match.item.number}: {sheet[match.item.number - 1]['question'][:110]!r}")


if __name__ == "__main__":
    main()
