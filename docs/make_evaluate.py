"""docs/evaluate.md from the settings of a task: `python docs/make_evaluate.py > docs/evaluate.md`.

A test holds the page to it, and runs what it shows."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from make_train import rows

from interlace.evaluate.task import TaskSettings

HEAD = """# Evaluating

Made by `python docs/make_evaluate.py > docs/evaluate.md`.

`interlace evaluate CHECKPOINT [OTHER]` scores a model, or two on the same items. Every figure has an interval of 95 %;
every prompt and answer is kept in a run folder; killed and started again, the same command goes on, and its figures are
the same. `report.html` shows figures, and items side by side.

## Texts

Bits per byte, which is comparable across tokenizers: of all texts, by how far into a text a byte lies, and by length.

```
interlace evaluate runs/mine --data texts/ --limit 20 --out runs/texts
```

A text is read `--length` tokens at a time, each window from nothing. The first token of a window has no context and does
not count.

## Tasks

A task is a TOML file over rows of JSONL or Parquet. Templates are Jinja over the columns of a row, rendered in a
sandbox.

A choice by likelihood, `capitals.toml`, over rows such as
`{"question": "The capital of France is", "options": ["Paris", "Rome"], "label": 0}` in `capitals.jsonl`:

```toml
kind = "choice"
data = "capitals.jsonl"
prompt = "{{ question }}"
choices = "options"                             # a column with a list, or a list of templates
right = "{{ options[label] }}"                  # its text, or else its letter, or else its number from 0
normalise = "characters"                        # acc_norm of lm_eval; "none" is its acc
```

An answer that is judged, `sums.toml`, over rows such as `{"question": "What is 2 plus 3?", "answer": "5"}` in
`sums.jsonl`:

```toml
kind = "generate"
data = "sums.jsonl"
prompt = "{{ question }}"
chat = true                                     # as a user's turn, by the model's chat template
by = "numeric"                                  # both end in the same number
gold = "{{ answer }}"
max_tokens = 32
format = "[0-9]"                                # the share of answers that hold it is shown too
```

GSM8K and HumanEval from their files:

```toml
kind = "generate"
data = "gsm8k-test.jsonl"
prompt = "{{ question }}"
chat = true
by = "numeric"
gold = "{{ answer }}"
format = "#### "
```

```toml
kind = "generate"
data = "humaneval.jsonl"
prompt = "{{ prompt }}"
delimiter = ""
by = "python"                                   # in a cage each: the answer's code, and its tests
answer = "{{ prompt }}{{ answer }}"
tests = "{{ test }}\\n\\ncheck({{ entry_point }})"
stop = ["\\ndef ", "\\nclass ", "\\nif __name__"]
max_tokens = 400
```

```
interlace evaluate runs/mine --tasks capitals.toml sums.toml --out runs/scores
```

`train.tasks` names tasks in a recipe of training: they are asked at each evaluation, and of the model that the run
starts from; scores, and items won and lost beside that model, are in `metrics.jsonl` and `report.html`.

## Suites that need no file

```
interlace evaluate runs/mine --suites recall needles parity --lengths 512 --limit 4 --out runs/suites
```

| | |
|---|---|
| `needles` | eight facts hidden in real text of 1,024 to 65,536 tokens; one is asked for, and all eight are choices |
| `recall` | a list of 8 to 512 names with codes; one is asked for, among eight codes of the list |
| `formal` | formal tasks ([tasks.md](tasks.md)) in words: eight solved examples, then a choice; or one by its name |

All are made from `--seed`. The text that needles lie in is the source of Python's standard library, or `--text FILE`.

## Intervals

| figure | interval |
|---|---|
| a share of items | Wilson's score interval |
| the difference of two models' shares on the same items | Tango's score interval for pairs |
| bits per byte, and scores between 0 and 1, and their differences | studentised bootstrap by item, 2,000 resamples; Student's for fewer than 10 items |

The bootstrap of items that are 0 or 1 covers too little near 0 and 1, and nothing at all where all are alike.
`benchmarks/evaluation_intervals.py` measures how often each interval holds the truth ([figures](LOG.md#intervals-of-evaluations)).
Items needed: so that a difference of the size that was found is told from 0 in 80 % of such evaluations.

## lm_eval

`pip install 'interlace[lm-eval]'`; then any task of EleutherAI's harness:

```sh
interlace lm-eval --model interlace --model_args pretrained=runs/mine --tasks lambada_openai,hellaswag
```

Releases of lm_eval up to 0.4.13 find models of their own alone; `interlace lm-eval` is `lm_eval` with ours in it. Later
releases find it by an entry point, and plain `lm_eval --model interlace` is then the same. Contexts are cut as `--model
hf` cuts them, so that numbers agree with those of the exported folder in `transformers`. `--batch_size` says how many
answers are written together (64 if not given); log-likelihoods are batched by tokens, and a context that several
requests share is read once.

# Every key of a task
"""


def page() -> str:
    """The whole of docs/evaluate.md."""
    return "\n".join([HEAD, *rows(TaskSettings)]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
