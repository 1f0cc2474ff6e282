"""The task of this folder: sums of eight digits, with the running totals as reasoning.

    python make_problems.py FOLDER [SEED]

Writes FOLDER/gold.jsonl (conversations that the teacher is trained on), FOLDER/asked.jsonl (problems for the teacher,
with what is right) and FOLDER/held_out.jsonl (problems that nobody is trained on). No problem is in two of them.
"""

import json
import random
import sys
from pathlib import Path

GOLD, ASKED, HELD_OUT = 20_000, 4_000, 500


def problem(draw):
    """Eight digits."""
    return tuple(draw.randrange(10) for _ in range(8))


def solved(numbers):
    """(question, reasoning, answer)."""
    total, steps = numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return "+".join(map(str, numbers)), " ".join(steps), str(total)


def main():
    """Write the three files."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    problems = list(dict.fromkeys(problem(draw) for _ in range(2 * (GOLD + ASKED + HELD_OUT))))
    parts = {"gold": problems[:GOLD], "asked": problems[GOLD : GOLD + ASKED]}
    parts["held_out"] = problems[GOLD + ASKED : GOLD + ASKED + HELD_OUT]
    for name, chosen in parts.items():
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for numbers in chosen:
                question, reasoning, answer = solved(numbers)
                if name == "gold":
                    turns = [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer, "reasoning_content": reasoning},
                    ]
                    file.write(json.dumps({"messages": turns}) + "\n")
                else:
                    file.write(json.dumps({"question": question, "gold": answer}) + "\n")


if __name__ == "__main__":
    main()
