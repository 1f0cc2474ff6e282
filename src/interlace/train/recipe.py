"""A training run as a TOML file: the model, the data, the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator, model_validator

from interlace.base.errors import ConfigError, nearest
from interlace.base.files import user_path
from interlace.base.schema import Closed, read_toml, validate
from interlace.checkpoint.adapter import base_of
from interlace.checkpoint.folder import is_adapter, resolve
from interlace.checkpoint.load import describe
from interlace.data.prepare import MANIFEST, new_entries
from interlace.data.sources import is_hub
from interlace.data.tokenizer import TOKENIZER
from interlace.model.config import ModelConfig
from interlace.runs.folder import differences


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _none_empty(value: Any) -> Any:
    if any(not name.strip() for name in ([value] if isinstance(value, str) else value)):  # "" would be here
        raise ValueError("must not be empty; is a variable of the shell not set?")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_none_empty)]


class MixtureSource(Closed):
    """One source of a mixture.

    Attributes:
        source: as for `[data]`.
        weight: its share of the rows, beside the other weights.
        epochs: how often it is read at most, such as 2 or 0.5; its weight then goes to the others. Any number if not
            given.
    """

    source: Names = Field(strict=False, min_length=1)
    weight: float = Field(default=1.0, ge=0)
    epochs: float | None = Field(default=None, gt=0)


class DataSettings(Closed):
    """Where the tokens come from and how they are cut.

    Attributes:
        source: one or a list of text files (plain, JSONL, Parquet, gzip, zstd), folders, globs, and data sets of the
            hub (hf:OWNER/NAME), or one folder that `interlace data prepare` wrote.
        field: the key, or the column, that holds the text of a row; rows with a list of `messages` instead are
            conversations, of which the assistant's turns are learnt.
        kind: what rows with turns are: "conversations", or "pairs" of answers (chosen and rejected); "auto" takes
            messages where a row has both.
        template: a file with the chat template that writes conversations; the tokenizer's own, or a plain one.
        turns: which of a conversation's answers are learnt: "all", or "last".
        tokenizer: a tokenizer.json, or "train:N" to learn one of N entries from the text that is trained on.
        held_out: share of documents never trained on; whole ones, chosen by a hash of their names.
        length: tokens of a row; a longer document goes on in another row, a longer conversation is cut at its end.
        rows: rows of a batch, which holds rows x length tokens.
        packing: "rows" of one length, or whole "documents", as many as fit into rows x length tokens.
        long: what happens to a document of more than `length` tokens where documents are packed whole: "cut" into
            several of that length, or "refuse". Pairs are left out, or refused.
        mixture: sources by name, in the place of `source`, each with a weight; see below.
    """

    source: Names = Field(default=(), strict=False)
    field: str = "text"
    kind: Literal["auto", "conversations", "pairs"] = "auto"
    template: str = ""
    turns: Literal["all", "last"] = "all"
    tokenizer: Annotated[str, AfterValidator(_none_empty)] = "train:4096"
    held_out: float = Field(default=0.05, gt=0, lt=1)
    length: int = Field(default=512, gt=1)
    rows: int = Field(default=8, gt=0)
    packing: Literal["rows", "documents"] = "rows"
    long: Literal["cut", "refuse"] = "cut"
    mixture: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], MixtureSource] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _from_somewhere(self) -> DataSettings:
        if bool(self.source) == bool(self.mixture):
            what = "give one of them" if not self.source else "leave one of them out"
            raise ValueError(f"source: text comes from source or from mixture; {what}")
        if self.mixture and not sum(one.weight for one in self.mixture.values()):
            raise ValueError("mixture: the weights sum to nothing; give at least one source a weight above 0")
        if self.long == "refuse" and self.packing == "rows" and self.kind != "pairs":
            raise ValueError('long: is for packing = "documents", and for kind = "pairs"; rows go on in another row')
        if self.mixture and self.packing != "rows":
            raise ValueError("packing: a mixture is of rows; leave packing out")
        return self


class LoraSettings(Closed):
    """Low-rank adapters beside frozen weights (LoRA): only they are trained, and only they are in checkpoints.

    Attributes:
        rank: of each adapter's product B A.
        alpha: what an adapter adds is multiplied by alpha / rank.
        dropout: share of a layer's inputs that its adapter does not see at a step; experts have none.
        layers: "all" linear layers but head and routers, or a list of tables of [model] such as "attention", of layers
            in them such as "gated_delta.query" or "moe.first", and "head".
    """

    rank: int = Field(gt=0)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: Names = Field(default=("all",), strict=False, min_length=1)


class TrainSettings(Closed):
    """How the model is trained.

    Attributes:
        tokens: tokens to train on, rounded up to whole batches; text is read again where there is less.
        start: a checkpoint to start from; its weights, and its config and tokenizer where [model] and data.tokenizer
            are not given. Fresh weights if empty. Attention's positions, its window and max_positions may change.
        freeze: what is not trained: "embedding", "head", "norms" (all outside of layers), or tables of [model].
        lora: a table that trains adapters beside the weights of `start`, which stay as they are; see below.
        optimizer: "adamw" for all parameters, or "muon" for matrices and AdamW for the rest; `--dry-run` prints which.
        learning_rate: the learning rate after warm-up, before it falls.
        matrix_learning_rate: Muon's learning rate; learning_rate if not given, since Muon's updates are scaled to
            AdamW's size.
        momentum: Muon's Nesterov momentum.
        schedule: "wsd" (warm-up, plateau, decay), "cosine" or "linear": warm-up, then a fall over all other steps.
        warmup: share of the steps, up to the first horizon, in which the rate rises from 0.
        decay: share of the steps, at the end, in which the rate of "wsd" falls.
        decay_shape: how it falls there: "linear", "cosine", or "sqrt" (one minus a square root: fast at first).
        final_rate: share of the learning rate that it falls to.
        horizons: of "wsd", shares of the tokens, rising, at which the rate has fallen too, is taken up again, and the
            held-out text is scored: one run that has been trained to several lengths.
        weight_decay: of both optimizers, on matrices other than the embedding.
        betas: AdamW's betas, for the means of gradients and of their squares.
        clip: the largest gradient norm; a longer gradient is scaled down to it.
        spike: a step whose gradient norm is more than so many times the 90th percentile of the last 64 good ones
            changes no weight, nor does one that is not finite; three in a row end the run. 0 for no limit.
        z_loss: weight of the squared logarithm of the softmax's sum, which keeps logits small.
        accumulate: gradient accumulation: the number of parts of a batch, computed one after the other.
        average: decay of an exponential moving average (EMA) of the weights, such as 0.999; the average is scored and
            saved beside the weights. 0 for none.
        seed: the seed of the weights and of the data order.
        precision: "float32", "bfloat16" (float32 master weights), or "auto": bfloat16 where it is faster here.
        evaluations: how often the held-out text is scored, the end included.
        evaluation_tokens: how much held-out text a score reads at most.
        tasks: files of tasks (see `interlace evaluate`) that are asked at each evaluation, and of the model in `start`
            too: scores, and how many items are won and lost beside that model, are logged.
        task_items: how many items of each task are asked.
        prompts: texts that the model goes on from at each evaluation, as a user's turns where there is a chat template;
            what it writes is kept in samples.jsonl.
        prompt_tokens: the most tokens of each of these.
        checkpoints: how many are written over the run, the end included; the last two are kept.
        balance_loss: weight of the loss that evens the load of experts, where they have no correction.
        balance_rate: by how much a step moves the corrections, where they have some.
        compile: whether torch.compile makes one graph of each kind of block; the first steps are slow.
        recompute: "none", or "block" (activation checkpointing): a block keeps its input alone and is run again in the
            backward pass, which saves memory and costs a third more time.
    """

    tokens: int = Field(gt=0)
    start: str = ""
    freeze: Names = Field(default=(), strict=False)
    lora: LoraSettings | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=2e-3, gt=0)
    matrix_learning_rate: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0, le=1)
    decay_shape: Literal["linear", "cosine", "sqrt"] = "linear"
    final_rate: float = Field(default=0.0, ge=0, le=1)
    horizons: tuple[float, ...] = Field(default=(), strict=False)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.95), strict=False)
    clip: float = Field(default=1.0, gt=0)
    spike: float = Field(default=10.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0)
    accumulate: int = Field(default=1, gt=0)
    average: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluations: int = Field(default=10, gt=0)
    evaluation_tokens: int = Field(default=65_536, gt=0)
    tasks: Names = Field(default=(), strict=False)
    task_items: int = Field(default=100, gt=0)
    prompts: Names = Field(default=(), strict=False)
    prompt_tokens: int = Field(default=64, gt=0)
    checkpoints: int = Field(default=10, gt=0)
    balance_loss: float = Field(default=0.01, ge=0)
    balance_rate: float = Field(default=1e-3, ge=0)
    compile: bool = False
    recompute: Literal["none", "block"] = "none"

    @field_validator("betas")
    @classmethod
    def _shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if any(not 0 <= beta < 1 for beta in value):
            raise ValueError("must lie from 0 up to 1, 1 left out, such as [0.9, 0.95]")
        return value

    @field_validator("horizons")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < h < 1 for h in value) or list(value) != sorted(set(value)):
            raise ValueError("must be shares of the tokens between 0 and 1, rising, such as [0.25, 0.5]")
        return value

    @field_validator("spike")
    @classmethod
    def _above_one(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError("must be above 1, since a tenth of the norms lies above it, or 0 for no limit")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> TrainSettings:
        if self.horizons and self.schedule != "wsd":
            raise ValueError(f'horizons: are of schedule = "wsd", not of "{self.schedule}"; leave one of them out')
        if self.matrix_learning_rate is not None and self.optimizer != "muon":
            raise ValueError('matrix_learning_rate: is Muon\'s; set optimizer = "muon", or leave it out')
        if self.lora is not None:
            self._check_lora()
        return self

    def _check_lora(self) -> None:
        if self.freeze:
            raise ValueError("freeze: with lora all weights are frozen; leave freeze out")
        if self.optimizer != "adamw":
            raise ValueError('optimizer: adapters are trained by "adamw"; leave optimizer out')


Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl", "total_variation"]
# Keys of the kind "distill" alone.
DISTILLED = ("teacher", "cache", "divergence", "mixture", "temperature", "soft", "hidden", "align")


class ObjectiveSettings(Closed):
    """What training minimises.

    Attributes:
        kind: "next_token" or "distill" (a teacher's distribution over the next token), of texts and conversations; or
            of pairs of answers "dpo", "dpo_norm" (per token of each answer), "ipo" or "simpo" (without a reference).
        beta: how strongly a pair counts: the inverse of how far the model may move from the reference.
        margin: of "simpo", what the better answer must be ahead by; its gamma.
        label_smoothing: of "dpo" and "dpo_norm", share of the pairs that may be labelled the wrong way round.
        sft: weight of the nats per token of the better answer, which is then learnt as well.
        reference: the checkpoint whose log-probabilities count as before training; train.start if empty.
        share_prompt: whether a pair's prompt is read once for both answers; the results are the same but for rounding.
        teacher: of "distill", the checkpoint that is learnt from; it has the tokenizer of the data.
        cache: in its place, what `interlace distill logits` kept of one for this data. A cache of draws or of likeliest
            tokens is of "forward_kl" at its own temperature; one of hidden states serves all.
        divergence: of "distill", from the teacher p to the student q: "forward_kl" KL(p, q), "reverse_kl" KL(q, p),
            "jensen_shannon" (mixture KL(p, m) + (1 - mixture) KL(q, m), m = mixture p + (1 - mixture) q), "skew_kl"
            KL(p, mixture p + (1 - mixture) q), "skew_reverse_kl" KL(q, (1 - mixture) p + mixture q), or
            "total_variation".
        mixture: of the divergences that are of a mixture.
        temperature: of both distributions in the divergence, which counts times its square.
        soft: of "distill", weight of the divergence; the rest is that of the next tokens.
        hidden: of "distill", weight of the squared distance between what the teacher's head reads and a learnt
            projection of what the student's reads, beside the square of the first's length.
        align: of "distill", "tokens" for a teacher with the tokenizer of the data, or "text" for one with another:
            both say how likely the same shortest stretches of text are, at whose ends both have a border. It is of
            texts and of "forward_kl"; soft below 1 keeps the next tokens beside it.
    """

    kind: Literal["next_token", "distill", "dpo", "dpo_norm", "ipo", "simpo"] = "next_token"
    beta: float = Field(default=0.1, gt=0)
    margin: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    sft: float = Field(default=0.0, ge=0)
    reference: str = ""
    share_prompt: bool = True
    teacher: str = ""
    cache: str = ""
    divergence: Divergence = "forward_kl"
    mixture: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    soft: float = Field(default=1.0, ge=0, le=1)
    hidden: float = Field(default=0.0, ge=0)
    align: Literal["tokens", "text"] = "tokens"

    @property
    def of_pairs(self) -> bool:
        """Whether it is of pairs of answers."""
        return self.kind not in ("next_token", "distill")

    @property
    def has_reference(self) -> bool:
        """Whether it compares the model with another."""
        return self.of_pairs and self.kind != "simpo"

    @model_validator(mode="after")
    def _of_its_kind(self) -> ObjectiveSettings:
        if self.margin and self.kind != "simpo":
            raise ValueError('margin: is of kind = "simpo"; leave it out')
        if self.label_smoothing and self.kind not in ("dpo", "dpo_norm"):
            raise ValueError('label_smoothing: is of kind = "dpo" and "dpo_norm"; leave it out')
        if self.reference and not self.has_reference:
            raise ValueError(f'reference: kind = "{self.kind}" has none; leave it out')
        return self

    @model_validator(mode="after")
    def _distilled(self) -> ObjectiveSettings:
        defaults = type(self).model_fields
        changed = [name for name in DISTILLED if getattr(self, name) != defaults[name].default]
        if self.kind != "distill" and changed:
            raise ValueError(f'{changed[0]}: is of kind = "distill"; leave it out')
        if self.kind == "distill" and bool(self.teacher) == bool(self.cache):
            raise ValueError('teacher: kind = "distill" learns from one; name a checkpoint, or a cache of one')
        if self.align == "text" and (self.cache or self.hidden or self.divergence != "forward_kl"):
            raise ValueError('align: "text" needs a teacher in this process, divergence = "forward_kl", and hidden = 0')
        if self.soft == 0 and not self.hidden:
            raise ValueError("soft: is 0, so that nothing is learnt from the teacher; raise it, or hidden")
        if "mixture" in changed and self.divergence not in ("jensen_shannon", "skew_kl", "skew_reverse_kl"):
            raise ValueError(f'mixture: divergence = "{self.divergence}" has none; leave it out')
        return self


# Keys that a run which has begun cannot change: what it has learnt from, and what its checkpoints hold.
FIXED = (
    "model",
    *(f"data.{name}" for name in ("source", "field", "kind", "template", "turns", "tokenizer", "held_out")),
    *(f"train.{name}" for name in ("start", "optimizer", "lora")),
    "objective",
)


class ParallelSettings(Closed):
    """How many workers there are in each direction; the product is what torchrun starts. "auto" takes what is left.

    Attributes:
        replicate: data parallelism (the outer dimension of HSDP): groups of workers that hold the same weights, and
            read different rows.
        shard: fully sharded data parallelism (FSDP2, ZeRO-3): workers that divide weights, gradients and moments, and
            read different rows.
        tensor: tensor parallelism: workers that divide heads and hidden columns, and read the same tokens.
        context: context parallelism: workers that divide each row into equal stretches; weights are divided too.
        context_by: how recurrent layers cross the stretches: "state" passes states on, "heads" exchanges heads for
            tokens by all-to-all (DeepSpeed-Ulysses), "auto" takes what an estimate finds faster; `--dry-run` prints it.
    """

    replicate: int | str = 1
    shard: int | str = 1
    tensor: int | str = 1
    context: int | str = 1
    context_by: Literal["auto", "state", "heads"] = "auto"

    @field_validator("replicate", "shard", "tensor", "context", mode="before")
    @classmethod
    def _a_number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f'must be a number of workers from 1 on, or "auto", got {value!r}')
        return value


class Stage(Closed):
    """One stage of a run: what differs from the tables of the recipe. It starts from the last stage's checkpoint.

    Attributes:
        name: of its run folder, below that of the whole.
        data: keys of [data].
        train: keys of [train].
        model: keys of [model] that say where attention stands; they hold for later stages too.
        parallel: keys of [parallel], such as a context for long rows; the number of workers stays.
        objective: keys of [objective].
    """

    name: str = Field(pattern=r"^[\w-]+$")
    data: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    parallel: dict[str, Any] = Field(default_factory=dict)
    objective: dict[str, Any] = Field(default_factory=dict)


class Recipe(Closed):
    """A whole training run: model, data and training, in one or several stages, and over how many workers."""

    model: ModelConfig
    data: DataSettings
    train: TrainSettings
    stage: tuple[Stage, ...] = Field(default=(), strict=False)
    parallel: ParallelSettings = ParallelSettings()
    objective: ObjectiveSettings = ObjectiveSettings()

    @model_validator(mode="after")
    def _stages_by_name(self) -> Recipe:
        names = [stage.name for stage in self.stage]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"stage: two stages are called '{twice}'; their run folders need different names")
        if self.stage and self.train.start:
            raise ValueError("train.start: a run of stages starts afresh; set it in the first stage")
        return self

    @model_validator(mode="after")
    def _beside_a_checkpoint(self) -> Recipe:
        if self.train.lora is not None and not (self.train.start or self.stage):
            raise ValueError("train.lora: adapts a checkpoint; set train.start to one")
        if self.train.z_loss and self.objective.kind != "next_token":
            raise ValueError(
                f'train.z_loss: is of next tokens, not of objective.kind = "{self.objective.kind}"; leave it out'
            )
        return self

    @model_validator(mode="after")
    def _with_a_reference(self) -> Recipe:
        if self.objective.has_reference and not (self.objective.reference or self.train.start or self.stage):
            raise ValueError(
                f'objective.reference: kind = "{self.objective.kind}" compares with a model; set train.start, or '
                "objective.reference"
            )
        return self

    @model_validator(mode="after")
    def _freeze_known(self) -> Recipe:
        tables = {*FROZEN, *self.model.layers}
        used = {*self.model.kinds, *(self.model.mlp_name(i) for i in range(self.model.depth))} - {None}
        if {*self.train.freeze} >= {*FROZEN, *used}:
            raise ValueError("train.freeze: leaves nothing to train; name fewer parts")
        if wrong := next((name for name in self.train.freeze if name not in tables), None):
            raise ValueError(f"train.freeze: there is no '{wrong}' in the model; {nearest(wrong, tables)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain data that builds the same run, whatever the number of workers."""
        rest = self.model_dump(mode="json", exclude={"model", "parallel", "stage"}, exclude_none=True)
        stages = [stage.model_dump(exclude_defaults=True, exclude={"parallel"}) for stage in self.stage]
        return {"model": self.model.to_dict(), **rest, **({"stage": stages} if stages else {})}

    def stages(self, out: Path) -> list[tuple[str, Recipe]]:
        """Return the recipe of each stage by name; one starts from where the one before ends, below `out`.

        Raises:
            ConfigError: a stage changes something that it cannot, or breaks a rule; the message names it.
        """
        base, found = self.to_dict(), list[tuple[str, Recipe]]()
        base.pop("stage", None)
        workers = self.parallel.model_dump(mode="json")
        start, model = "", base["model"]
        for stage in self.stage:
            model = laid_over(model, stage.model)
            data = laid_over(base["data"], stage.data)
            data = _one_kind_of_source(data, stage.data)
            train = laid_over(base["train"], {**({"start": start} if start else {}), **stage.train})
            if found and not stage.data.get("tokenizer"):
                data["tokenizer"] = _tokenizer_of(found[0][1].data, out / found[0][0])
            own = {"model": model, "data": data, "train": train, "parallel": laid_over(workers, stage.parallel)}
            own["objective"] = laid_over(base["objective"], stage.objective)
            try:
                recipe = validate(Recipe, {**base, **own}, where="")
            except ConfigError as error:
                raise ConfigError(f"stage.{stage.name}: {error}") from None
            if found:
                _check_positions(found[-1][1].model, recipe.model, f"stage.{stage.name}.model")
            found.append((stage.name, recipe))
            start = str(out / stage.name)
        return found


FROZEN = ("embedding", "head", "norms")
DRAWN = {"decay_range", "step_range", "step_floor", "mlp"}  # of a layer: initial values; and a name
MOVABLE = ("position", "max_positions", "window")  # keys of a model that a stage may change; and all of rope


def _tokenizer_of(data: DataSettings, run: Path) -> str:
    """Return the tokenizer's file of a run: that of a prepared folder that it reads, or the one that it makes."""
    named = [*data.source, *(path for one in data.mixture.values() for path in one.source)]
    for source in named:
        if not is_hub(source) and (user_path(source) / MANIFEST).is_file():
            return str(Path(source) / TOKENIZER)
    return data.tokenizer if new_entries(data.tokenizer) is None else str(run / "data" / TOKENIZER)


def laid_over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return a table with another laid over it, tables inside as well."""
    found = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = laid_over(found[key], value) if both else value
    return found


def _one_kind_of_source(data: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's data without the sources of the recipe where it names its own."""
    if "source" in own:
        return {**data, "mixture": {}}
    return {**data, "source": [], "mixture": own["mixture"]} if "mixture" in own else data


def moved(old: ModelConfig, new: ModelConfig) -> list[str]:
    """Return the keys in which two models differ beside attention's positions, window and limit.

    Layers are compared one by one, whatever their tables are called; what only initial values are drawn from, which
    published formats do not hold, does not count.
    """
    found = [key for key, _, _ in differences(_by_layers(old), _by_layers(new))]
    kept = [key for key in found if key.rpartition(".")[2] not in MOVABLE and "rope" not in key.split(".")]
    return list(dict.fromkeys(_named(key, new) for key in kept))


def _named(key: str, model: ModelConfig) -> str:
    """Return the key of a layer by the name of its table."""
    words = key.split(".")
    return ".".join([model.kinds[int(words[1])], *words[2:]]) if words[0] == "layer" else key


def _by_layers(config: ModelConfig) -> dict[str, Any]:
    """Return a model's numbers, and each layer's, as plain data."""
    found: dict[str, Any] = config.model_dump(mode="json", exclude={"layers", "pattern", "tokens", "init_std"})
    layers = {}
    for index in range(config.depth):
        parts = {"": config.kind(index), "mlp": config.mlp_of(index)}
        layers[str(index)] = {
            f"{name}{'.' if name else ''}{key}": value
            for name, part in parts.items()
            if part is not None
            for key, value in {"kind": type(part).__name__, **part.model_dump(mode="json", exclude=DRAWN)}.items()
        }
    return {**found, "layer": layers}


def _check_positions(old: ModelConfig, new: ModelConfig, where: str) -> None:
    if wrong := moved(old, new):
        raise ConfigError(
            f"{where}: changes {', '.join(wrong)}; between stages only attention's position, rope, window and "
            "max_positions can change"
        )


def known_keys(recipe: Recipe) -> set[str]:
    """Return the dotted keys that a run of a recipe may have, set or not; tables among them."""
    found = set[str]()

    def see(model: BaseModel, before: str) -> None:
        for name in type(model).model_fields:
            found.add(f"{before}{name}")
            if isinstance(inner := getattr(model, name), BaseModel):
                see(inner, f"{before}{name}.")

    for _, stage in [("", recipe), *recipe.stages(Path())]:
        see(stage.train, "train.")
        see(stage.objective, "objective.")
        see(stage.data, "data.")
        found.update(_dotted(stage.to_dict()))
    return found


def _dotted(config: dict[str, Any], before: str = "") -> Iterator[str]:
    """Yield the dotted keys of plain data, its tables among them."""
    for key, value in config.items():
        yield f"{before}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{key}.")


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """Return the plain data of a recipe with defaults written out, of keys that it may be older than."""
    try:
        return validate(Recipe, config, where="").to_dict()
    except ConfigError:
        return config


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with dotted overrides such as "train.learning_rate=1e-3" laid over it.

    Raises:
        ConfigError: the file is missing or not TOML, or a key or value breaks a rule.
    """
    data = read_toml(path, "recipe", overrides)
    stages = data.get("stage")
    first = stages[0].get("train") if isinstance(stages, list) and stages and isinstance(stages[0], dict) else None
    for train in (data.get("train"), first):
        if isinstance(train, dict) and isinstance(start := train.get("start"), str) and start:
            _from_start(data, start)
    return validate(Recipe, data, where="")


def _from_start(data: dict[str, Any], start: str) -> None:
    """Fill in what a checkpoint says: its config, and its tokenizer."""
    folder = resolve(start, weights=False)
    known, own = describe(folder)[1].to_dict(), data.get("model", {})
    if isinstance(own, dict) and "width" not in own:  # then it says only what changes
        data["model"] = laid_over(known, own)
    table = data.setdefault("data", {})
    if is_adapter(folder) and not (folder / TOKENIZER).is_file():
        folder = resolve(base_of(folder), weights=False)
    if isinstance(table, dict) and (folder / TOKENIZER).is_file():
        table.setdefault("tokenizer", str(folder / TOKENIZER))
