"""docs/train.md from the settings of a training run: `python docs/make_train.py > docs/train.md`.

A test holds the page to it, and runs what it shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parent))
from make_layers import meanings, spelled

from interlace.model.config import SpecialTokens
from interlace.train.recipe import DataSettings, TrainSettings

HEAD = """# Training a model

Made by `python docs/make_train.py > docs/train.md`.

## From text to a model

Text to begin with; here it is a part of Python's own library. Any files and folders of UTF-8 text will do, plain, as
JSONL, or gzipped:

```
cp -r "$(python -c 'import email; print(email.__path__[0])')" texts
```

Prepare it once: a tokenizer is learnt, whole documents are held out, and every file of the result has a checksum.

```
interlace data prepare texts/ --tokenizer train:2048 --out data/mine
interlace data inspect data/mine                # documents, tokens, bytes; the first tokens as text
```

A text of more than a million characters is cut where a paragraph, a line or a word ends. A line of JSONL holds at most
16 MiB, a row with a conversation 8 million characters. Documents end with the token that the tokenizer's files, or
`config.json` and `generation_config.json` beside them, name; where none does, they get none, and that is said.

A recipe, `mine.toml`; `interlace recipes` lists those that come with interlace, and copies them:

```toml
[model]                                         # every key: layers.md
width = 128
depth = 4
vocabulary = 2048                               # at least the tokenizer's
pattern = ["gated_delta", "gated_delta", "gated_delta", "attention"]

[model.gated_delta]
heads = 4
key_dim = 24
value_dim = 48

[model.attention]
heads = 4
position = "none"

[model.mlp]
width = 352

[data]
source = "data/mine"                            # or the text itself, which is then prepared in the run folder
length = 256
rows = 8

[train]
tokens = 400_000                                # the text four times over
learning_rate = 4e-3
```

Train. A value may be given behind the recipe instead of in it, by its dotted name:

```
interlace train mine.toml --dry-run             # parameters, FLOPs, memory, estimated time; nothing is started
interlace train mine.toml                       # into runs/mine
interlace train mine.toml train.learning_rate=2e-3 --out runs/slower
```

Killed at any moment, the same command goes on from the last checkpoint and ends with the same weights (CPU, float32). A
folder that holds another run, or whose data were changed, is refused.

```
interlace train mine.toml
```

Look at it, and use it. `runs/mine/report.html` shows loss, held-out scores, samples, recipe and machine:

```
interlace generate runs/mine "def " --max-tokens 64
interlace inspect runs/mine                     # parameters, state and cache by context
```

## The run folder

| | |
|---|---|
| `run.toml` | the whole recipe, defaults filled in; versions, machine, precision; hashes of the data and of the start |
| `metrics.jsonl` | a line for each step |
| `checkpoints/step-N/` | the last two, each a model to load; the run folder stands for the newest |
| `data/` | the prepared text, where the recipe names text |
| `report.html`, `loss.png` | written at the end, also where the run was interrupted |
| `samples.json` | what the model writes after three beginnings of held-out documents |

A line of `metrics.jsonl` has:

| key | unit | |
|---|---|---|
| `step`, `tokens` | steps, tokens | done so far |
| `loss` | nats per token | of this step's batch |
| `grad_norm` | | before clipping |
| `learning_rate` | | of this step |
| `tokens_per_second` | tokens/s | of this step |
| `seconds` | seconds | of this step, checkpoint and scores included |
| `held_out_bits_per_byte`, `held_out_loss` | bits per byte, nats per token | where the held-out text was scored |
| `horizon` | share of the steps | where the rate has fallen to 0 |
| `busiest_expert` | times its even share | with experts |
| `flops_utilisation` | share | on a GPU: the model's FLOPs/s beside those of a large matrix product there |
| `peak_memory_bytes` | bytes | on a GPU: the most that tensors took at once so far |
| `average_held_out_bits_per_byte`, ... | | the same scores of the averaged weights, with `train.average` |
| `skipped` | | in the place of loss and norm: why the step changed no weight |
| `diverged` | | why a run ended: three steps in a row were bad |

A step changes no weight if its loss or gradient is not finite, or if its gradient norm is a spike: more than
`train.spike` times the median of the last 64 good norms, once 16 are known. Its batch is not read again, and the
learning rate goes on as if it had been taken. Three in a row end the run; the last one's batch is kept in `stopped/`.

## On a GPU

Add `--device cuda`. With `--dry-run`, the GPU runs one block of each kind, to measure what it keeps, and the most
memory that a step takes is predicted. A run prints what it took beside that, and `run.toml` holds the prediction. Where
memory does not suffice, the message says what was asked for, what was free, and which of `data.rows`, `data.length` and
`train.recompute` would fit by the prediction.

Steps are enqueued, and the next batch is copied meanwhile: the host reads a step's results while the GPU does the
next one. A bad step changes nothing on the GPU, and is seen one step later under its own number. `flops_utilisation`
counts three forward passes for each step, whatever `train.recompute` does again. `train.compile = true` helps where
blocks are small; a kind of layer that cannot be compiled is named.

## Optimizers

`train.optimizer = "muon"` moves matrices by Muon and everything else by AdamW: embedding, head, norms, convolutions,
`A_log`, `dt_bias`, biases, and matrices of one row. `--dry-run` prints which parameter goes where. A matrix is what
the model multiplies by, not what a tensor stores: a fused projection is orthogonalised part by part, experts one by
one. The iteration is done in the precision of the training. Updates are as large as AdamW's, so the same learning
rate serves both (`train.matrix_learning_rate` sets another one for Muon).

`train.accumulate = 4` computes a batch in four parts, one after the other, with a quarter of the activations. A part
counts by its targets: losses and gradients are those of the whole batch, but for the balance loss of experts, which
is that of each part. `train.average = 0.999` keeps a moving average of the weights; it is scored beside them, and
lies in `checkpoints/step-N/average`, a checkpoint like any other. `interlace average` takes the mean of any
checkpoints:

```
interlace average runs/mine runs/slower --out runs/mean
```

## Other data, other starts

Rows of JSONL with a list of `messages` are conversations: the assistant's turns are learnt, and nothing else
([distill.md](distill.md#training-on-conversations)). To go on from a checkpoint, name it as `train.start` and leave
`[model]` and `data.tokenizer` out:

```toml
[data]
source = "texts/"

[train]
start = "runs/mine"
tokens = 100_000
learning_rate = 1e-3
```

# Every key

A recipe is a TOML file with `[model]`, `[data]` and `[train]`. `[model]` and the tables of its layers are in
[layers.md](layers.md). An unknown key is an error. Paths start from the folder in which the command runs.
"""

PREPARED = """
`field`, `template`, `turns`, `tokenizer` and `held_out` say how text is prepared. They are not used where `source` is a
folder that `interlace data prepare` wrote.
"""

TOKENS = """
Ids with a meaning. `eos` is the tokenizer's end of text if not given.
"""

UNITS = {
    "held_out": "share of the documents",
    "length": "tokens",
    "rows": "rows",
    "tokens": "tokens",
    "warmup": "share of the steps",
    "decay": "share of the steps",
    "horizons": "shares of the tokens",
    "momentum": "per step",
    "final_rate": "share of the learning rate",
    "weight_decay": "per step, times the learning rate",
    "betas": "per step",
    "clip": "norm of the gradient",
    "spike": "times the median norm",
    "z_loss": "times the loss",
    "accumulate": "parts",
    "average": "per step",
    "evaluations": "times",
    "evaluation_tokens": "tokens",
    "checkpoints": "times",
    "balance_loss": "times the loss",
    "balance_rate": "per step",
    "bos": "token id",
    "eos": "token ids",
    "pad": "token id",
}


def rows(schema: type[BaseModel]) -> list[str]:
    """A table of a schema's keys."""
    said = meanings(schema)
    lines = ["| key | value | default | unit | |", "|---|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        value = ", ".join([spelled(field.annotation), *bounds(field)])
        lines.append(f"| `{name}` | {value} | {default(field)} | {UNITS.get(name, '')} | {said[name]} |")
    return lines


def default(field: FieldInfo) -> str:
    """What holds where a recipe is silent, as TOML writes it."""
    value = field.default
    if field.is_required():
        return "required"
    return "" if value is None or value == () else f"`{json.dumps(value)}`"


def bounds(field: FieldInfo) -> list[str]:
    """The range of a number."""
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    found = [(words[w], getattr(rule, w)) for rule in field.metadata for w in words if hasattr(rule, w)]
    said = " ".join(f"{word} {'2^63' if value == 1 << 63 else value}" for word, value in found)
    return [said] if said else []


def page() -> str:
    """The whole of docs/train.md."""
    parts = [HEAD, "## `[data]`", PREPARED, *rows(DataSettings)]
    parts += ["\n## `[train]`\n", *rows(TrainSettings)]
    parts += ["\n## `[model.tokens]`", TOKENS, *rows(SpecialTokens)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
