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
from interlace.train.recipe import (
    DataSettings,
    LoraSettings,
    MixtureSource,
    ObjectiveSettings,
    ParallelSettings,
    Stage,
    TrainSettings,
)

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
folder that holds another run, or whose data were changed, is refused; the message lists what differs.

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
| `samples.jsonl` | what it writes after `train.prompts`, at each evaluation |
| `evaluations/` | every prompt and answer of `train.tasks`, by step, and of the model that the run starts from |
| `reference/` | of preferences: log-probabilities under the reference |

A line of `metrics.jsonl` has:

| key | unit | |
|---|---|---|
| `step`, `tokens` | steps, tokens | done so far; a step counts `data.rows` x `data.length`, whatever packs hold |
| `loss` | nats per token | of this step's batch |
| `grad_norm` | | before clipping |
| `learning_rate` | | of this step |
| `tokens_per_second` | tokens/s | of this step |
| `seconds` | seconds | since the line before: step, batch, scores, and the start of a checkpoint |
| `held_out_bits_per_byte`, `held_out_loss` | bits per byte, nats per token | where the held-out text was scored |
| `horizon` | share of the steps | where the rate has fallen to 0 |
| `busiest_expert` | times its even share | with experts |
| `update_ratio` | | at every tenth step: the length of what was added to the matrices, beside theirs |
| `flops_utilisation` | share | the model's FLOPs/s beside those of a large matrix product here |
| `peak_memory_bytes` | bytes | the most so far: of tensors on a GPU, of the process on a CPU |
| `gated_delta.decay_mean`, ... | | where the held-out text was scored: what recurrent layers keep and write, by table |
| `average_held_out_bits_per_byte`, ... | | the same scores of the averaged weights, with `train.average` |
| `tasks.NAME`, `tasks.NAME_wins`, `tasks.NAME_losses` | score; items | of `train.tasks`, beside the model that the run starts from |
| `next_token_nats`, `divergence` | nats per token | of distillation: the two parts of the loss |
| `hidden_distance`, `aligned` | share; share of the tokens | of distillation: of hidden states, squared, and of what two tokenizers have in common |
| `preferred`, `margin` | share of the pairs; | of preferences: how often, and by how much, the better answer is preferred |
| `chosen_nats`, `rejected_nats` | nats per token | of preferences: of the better and the worse answers |
| `held_out_wins`, `held_out_losses`, `held_out_margin` | pairs; pairs; | of held-out pairs, beside the reference |
| `skipped` | | in the place of loss and norm: why the step changed no weight |
| `diverged` | | why a run ended: three steps in a row were bad |

A step changes no weight if its loss or gradient is not finite, or if its gradient norm is a spike: more than
`train.spike` times the 90th percentile of the last 64 good norms, once 16 are known. Its batch is not read again, and
the learning rate goes on as if it had been taken. Three in a row end the run; the last one's batch is kept in
`stopped/`.

## On a GPU

Add `--device cuda`. With `--dry-run`, the GPU runs one block of each kind, to measure what it keeps, and the most
memory that a step takes is predicted. A run prints what it took beside that, and `run.toml` holds the prediction. Where
memory does not suffice, the message says what was asked for, what was free, and which of `data.rows`, `data.length` and
`train.recompute` would fit by the prediction.

Steps are enqueued, and the next batch is copied meanwhile: the host reads a step's results while the GPU does the
next one. A bad step changes nothing on the GPU, and is seen one step later under its own number. `flops_utilisation`
counts three forward passes for each step, whatever `train.recompute` does again. `train.compile = true` helps where
blocks are small; a kind of layer that cannot be compiled is named.

## Data of any size

`interlace data prepare` streams text, JSONL, Parquet, gzip, zstd, folders and globs that are larger than memory, with
`--workers N`. The work is cut into pieces of 8 MiB: a preparation that was killed goes on with those that are left,
and the result is the same for any number of workers. Documents with the same text are kept once. Rows that cannot be
used are counted, and kept in `aside.jsonl` with their file, line and fault. A compressed file, and a data set of the
hub, is one piece. Byte-level BPE is read by a table of words, with the ids of the `tokenizers` library
([2.6 times as fast](performance.md#preparing-text) as `map` of `datasets`).

```
interlace data prepare 'texts/*' --tokenizer data/mine/tokenizer.json --out data/again --workers 2
```

A mixture has several sources, with one tokenizer. Of every 64 rows, each source has its share, counted from the
beginning. A source that has been read as often as `epochs` says ends, which is said, and its weight goes to the
others:

```toml
[data.mixture.web]
source = "data/web"
weight = 3.0

[data.mixture.books]
source = "data/books"
weight = 1.0
epochs = 4
```

A batch is a function of the seed and the step, whatever the number of workers. By default it has rows of one length,
which are cut from documents that lie end to end. `data.packing = "documents"` packs whole documents instead, as many
as fit into `rows` x `length` tokens; a document longer than `length` is cut into several, or refused with `data.long
= "refuse"`.

## Stages

Pre-training, mid-training and long context in one recipe. Each `[[stage]]` says what differs, starts from the last
stage's checkpoint with fresh moments of the optimizer, and has a run folder of its own below that of the whole. Between
stages, attention's positions may change: its rope (base, YaRN, ...), its window, or no position at all.

```toml
[[stage]]
name = "pretrain"

[[stage]]
name = "long"

[stage.model]
max_positions = 2048

[stage.model.attention.rope]
theta = 500_000.0

[stage.data]
length = 1024
rows = 2

[stage.train]
tokens = 100_000
learning_rate = 5e-4
decay = 1.0
```

On the command line a stage goes by its name: `stage.long.train.tokens=50_000`. `interlace recipes stages-small`
copies a whole one. Several workers can be laid out otherwise for a stage: `stage.long.parallel.context=2`.

## Several workers

The same recipe, started by torchrun on one machine or many; a plain `interlace train` is one worker:

```
torchrun --nproc-per-node 2 -m interlace train mine.toml --out runs/two parallel.shard=2
```

| | what is cut | what goes between workers at each step |
|---|---|---|
| `replicate` | rows of the batch | gradients |
| `shard` | rows of the batch; weights, gradients and moments, block by block (FSDP2) | weights twice, gradients once |
| `tensor` | heads, and hidden columns of MLPs and experts | activations, four times in each layer |
| `context` | every row, into stretches; weights as with `shard` | states of recurrent layers, keys and values |

Losses, gradients and weights are those of one worker, to what float32 rounds. Recurrent layers go on over the context
exactly: a worker hands on what its stretch does to a state, as P S + B in float32, whatever the length; or heads are
traded for tokens. `parallel.context_by` says which; by default an estimate does. Convolutions take their window from
the worker before, attention gathers keys and values.

Checkpoints are written in the background by every worker what it holds (`state/`, safetensors by
`torch.distributed.checkpoint`), and any other number of workers goes on from them. The last one is also a model like
any other. A worker that ends, or says nothing for half a minute, ends the others with its name and its reason.

A run can be gone on with after keys of `[train]`, `data.rows` or `data.length` were changed, if that is asked for:

```
interlace train mine.toml train.evaluations=20 --allow-changes train.evaluations
```

Each worker draws or reads the whole model once, in its host's memory, before it keeps its part. A pack of whole
documents that the workers of a context cannot divide is filled up with single tokens, whose loss does not count;
experts count them in their load.

## Watching

`metrics.jsonl` has everything; `--log wandb`, `--log tensorboard` or `--log trackio` hands its rows on. One page
compares any runs, also while they are trained (`--watch`). A step is taken again by itself, and the first layer with
a bad value is named:

```
interlace report runs/mine runs/slower --out compared.html
interlace replay runs/mine --step 5
```

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
([distill.md](distill.md#training-on-conversations)). Rows with `chosen` and `rejected` are pairs of answers, which
`[objective]` says how to learn; adapters and preferences are in [finetune.md](finetune.md), a teacher's distribution in
[distill.md](distill.md#a-teacher-whose-weights-you-have). To go on from a checkpoint, name it as `train.start` and leave
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
    "weight": "share, beside the other weights",
    "epochs": "times",
    "replicate": "groups of workers",
    "shard": "workers",
    "tensor": "workers",
    "context": "workers",
    "tokens": "tokens",
    "warmup": "share of the steps",
    "decay": "share of the steps",
    "horizons": "shares of the tokens",
    "momentum": "per step",
    "final_rate": "share of the learning rate",
    "weight_decay": "per step, times the learning rate",
    "betas": "per step",
    "clip": "norm of the gradient",
    "spike": "times the 90th percentile",
    "z_loss": "times the loss",
    "accumulate": "parts",
    "average": "per step",
    "evaluations": "times",
    "evaluation_tokens": "tokens",
    "checkpoints": "times",
    "balance_loss": "times the loss",
    "balance_rate": "per step",
    "task_items": "items",
    "prompt_tokens": "tokens",
    "rank": "columns of B",
    "alpha": "times 1 / rank",
    "dropout": "share of the inputs",
    "beta": "per nat",
    "margin": "beta times nats per token",
    "label_smoothing": "share of the pairs",
    "sft": "times the loss",
    "mixture": "share of the teacher",
    "soft": "share of the loss",
    "hidden": "times the loss",
    "limit": "rows",
    "shots": "rows",
    "tolerance": "relative",
    "seconds": "seconds",
    "memory_mb": "MiB",
    "max_tokens": "tokens",
    "temperature": "divides the logits",
    "top_p": "probability",
    "samples": "answers",
    "bos": "token id",
    "eos": "token ids",
    "pad": "token id",
}


def rows(schema: type[BaseModel]) -> list[str]:
    """A table of a schema's keys."""
    said = meanings(schema)
    lines = ["| key | value | default | unit | |", "|---|---|---|---|---|"]
    for own, field in schema.model_fields.items():
        name = field.alias or own
        value = ", ".join([spelled(field.annotation), *bounds(field)])
        lines.append(f"| `{name}` | {value} | {default(field)} | {UNITS.get(name, '')} | {said[name]} |")
    return lines


def default(field: FieldInfo) -> str:
    """What holds where a recipe is silent, as TOML writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value == {}:
        return ""
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
    parts += ["\n## `[data.mixture.NAME]`\n", *rows(MixtureSource)]
    parts += ["\n## `[train]`\n", *rows(TrainSettings)]
    parts += ["\n## `[train.lora]`\n", *rows(LoraSettings)]
    parts += ["\n## `[objective]`\n", *rows(ObjectiveSettings)]
    parts += ["\n## `[[stage]]`\n", *rows(Stage)]
    parts += ["\n## `[parallel]`\n", *rows(ParallelSettings)]
    parts += ["\n## `[model.tokens]`", TOKENS, *rows(SpecialTokens)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
