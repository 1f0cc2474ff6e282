"""A ladder as a TOML file, and the runs that it consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from interlace.base.errors import ConfigError, nearest
from interlace.base.schema import Closed, read_toml, validate
from interlace.model.config import ModelConfig
from interlace.study.ladder.match import Measure, match, parameters, training_flops
from interlace.train.recipe import DataSettings, Recipe, TrainSettings

LEFT_TO_THE_LADDER = ("tokens", "learning_rate", "horizons", "seed")


class LadderSettings(Closed):
    """The table of what a ladder compares.

    Attributes:
        multiples: tokens for each non-embedding parameter, rising; each is a horizon of the same run.
        seeds: runs of each size and architecture.
        match: what sizes of the same name have in common: "parameters" (all but embedding and head) or "flops"
            (training FLOPs per token, without embedding and head).
        free: the dimension that is solved for, dotted.
        tolerance: of the match, relative.
        reference: the architecture that the others are matched to; the first if not given.
    """

    multiples: tuple[float, ...] = Field(strict=False, min_length=1)
    seeds: int = Field(default=3, gt=0)
    match: Literal["parameters", "flops"] = "parameters"
    free: str = "mlp.width"
    tolerance: float = Field(default=0.005, gt=0)
    reference: str | None = None


class RateSettings(Closed):
    """The learning rate of each architecture.

    Attributes:
        tried: rates, on the smallest sizes, with the first seed.
        sizes: on how many of the smallest sizes.
        exponent: the rate falls with parameters to this power: rate = best (N / N_tried) ^ -exponent, the geometric
            mean of what each tried size says.
    """

    tried: tuple[float, ...] = Field(strict=False, min_length=1)
    sizes: int = Field(default=1, gt=0)
    exponent: float = Field(default=1 / 3, ge=0)


@dataclass(frozen=True, eq=False)
class Rung:
    """One architecture at one size.

    Attributes:
        config: the model, with its free dimension solved for.
        parameters: non-embedding ones.
        error: relative error of the match.
        target: non-embedding parameters of the reference at this size, which set the tokens.
    """

    arch: str
    size: str
    config: ModelConfig
    parameters: int
    error: float
    target: int
    rows: int


@dataclass(frozen=True)
class LadderCell:
    """One run: all horizons of a rung at one learning rate from one seed."""

    rung: Rung
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.rung.arch}-{self.rung.size}-rate{self.rate:.4g}-seed{self.seed}"


@dataclass(frozen=True)
class Ladder:
    """A whole ladder, checked.

    Attributes:
        raw: the file as plain data, with overrides applied.
        rungs: by (architecture, size).
    """

    raw: dict[str, Any]
    settings: LadderSettings
    rate: RateSettings
    data: dict[str, Any]
    train: dict[str, Any]
    archs: tuple[str, ...]
    sizes: tuple[str, ...]
    rungs: dict[tuple[str, str], Rung]

    @property
    def length(self) -> int:
        """Tokens per row."""
        return int(self.data.get("length", 512))

    def steps(self, rung: Rung) -> list[int]:
        """Return the step at which each horizon ends."""
        batch = rung.rows * self.length
        return [max(1, round(m * rung.target / batch)) for m in self.settings.multiples]

    def recipe(self, cell: LadderCell, corpus: str) -> Recipe:
        """Return the run as a recipe for `interlace train`."""
        steps = self.steps(cell.rung)
        train = {
            **self.train,
            "tokens": steps[-1] * cell.rung.rows * self.length,
            "learning_rate": cell.rate,
            "horizons": [s / steps[-1] for s in steps[:-1]],
            "seed": cell.seed,
        }
        data = {k: v for k, v in self.data.items() if k not in ("tokenizer", "field", "held_out")}
        table = {"model": cell.rung.config.to_dict(), "data": {**data, "source": corpus, "rows": cell.rung.rows}}
        return validate(Recipe, {**table, "train": train}, "")

    def tuned(self) -> list[str]:
        """Return the sizes on which rates are tried, smallest first."""
        return list(self.sizes[: self.rate.sizes])


def read_ladder(path: Path, overrides: Sequence[str] = ()) -> Ladder:
    """Read a ladder file with dotted overrides; every model is built and matched.

    Raises:
        ConfigError: the file is missing or not TOML, a key or value breaks a rule, or a size cannot be matched.
    """
    return build(read_toml(path, "ladder", overrides))


def build(raw: dict[str, Any]) -> Ladder:
    """Build a ladder from plain data; see `read_ladder`."""
    known = ("ladder", "rate", "data", "train", "model", "sizes", "architectures")
    for key in raw:
        if key not in known:
            raise ConfigError(f"{key}: unknown table; {nearest(key, known)}")
    for key in ("ladder", "rate", "sizes", "architectures"):
        if not isinstance(raw.get(key), dict) or not raw[key]:
            raise ConfigError(f"{key}: the table [{key}] is missing or empty")
    for key in ("sizes", "architectures"):
        for name, table in raw[key].items():
            if not isinstance(table, dict):
                raise ConfigError(f"{key}.{name}: must be a table [{key}.NAME], got {table!r}")
    settings = validate(LadderSettings, raw["ladder"], "ladder")
    rate = validate(RateSettings, raw["rate"], "rate")
    _rising(settings.multiples)
    if any(r <= 0 for r in rate.tried) or len(set(rate.tried)) < len(rate.tried):
        raise ConfigError(f"rate.tried: must be different positive rates, got {list(rate.tried)}")
    data, train = dict(raw.get("data", {})), dict(raw.get("train", {}))
    _check_tables(data, train)
    archs, sizes = tuple(raw["architectures"]), tuple(raw["sizes"])
    reference = settings.reference or archs[0]
    if reference not in archs:
        raise ConfigError(f"ladder.reference: {reference!r} is not an architecture; {nearest(reference, archs)}")
    if rate.sizes > len(sizes):
        raise ConfigError(f"rate.sizes: is {rate.sizes}, and there are {len(sizes)} sizes")
    measure = parameters if settings.match == "parameters" else training_flops(int(data.get("length", 512)))
    common = raw.get("model", {})
    models = {(a, s): _model(common, raw["architectures"], a, raw["sizes"], s) for a in archs for s in sizes}
    _check_size_tables(raw["architectures"], common, raw["sizes"])
    rows = {s: raw["sizes"][s].get("rows", data.get("rows", 8)) for s in sizes}
    for size, count in rows.items():
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"sizes.{size}.rows: must be a positive whole number, got {count!r}")
    rungs = _matched(models, archs, sizes, reference, settings, measure, rows)
    order = tuple(sorted(sizes, key=lambda s: rungs[reference, s].target))
    return Ladder(raw, settings, rate, data, train, archs, order, rungs)


def _rising(multiples: Sequence[float]) -> None:
    if any(m <= 0 for m in multiples) or list(multiples) != sorted(set(multiples)):
        raise ConfigError(f"ladder.multiples: must be positive and rising, got {list(multiples)}")


def _check_tables(data: dict[str, Any], train: dict[str, Any]) -> None:
    """Find what is wrong with [data] and [train] before any model is built."""
    for key in LEFT_TO_THE_LADDER:
        if key in train:
            raise ConfigError(f"train.{key}: the ladder sets it for each run; leave it out")
    precision = train.setdefault("precision", "float32")
    if precision == "auto":
        raise ConfigError("train.precision: must be named, so that all runs of a ladder agree: float32 or bfloat16")
    validate(TrainSettings, {"tokens": 1, **train}, "train")
    validate(DataSettings, {"source": "text", **data}, "data")


def _model(
    common: Mapping[str, Any], archs: Mapping[str, Any], arch: str, sizes: Mapping[str, Any], size: str
) -> ModelConfig:
    """Return an architecture's table with a size's values over it, without those for layers it does not have."""
    table = _merge(deepcopy(dict(common)), archs[arch])
    laid = {k: v for k, v in sizes[size].items() if k != "rows"}
    laid = {k: v for k, v in laid.items() if not isinstance(v, dict) or k in table or k == "mlp"}
    if not _uses_mlp(table):
        laid.pop("mlp", None)
    return ModelConfig.from_dict(_merge(table, laid), f"architectures.{arch}, sizes.{size}")


def _uses_mlp(table: Mapping[str, Any]) -> bool:
    """Return whether any layer of the pattern is followed by the table `mlp`, or is that table."""
    names = set(table.get("pattern", ()))
    return any(n == "mlp" or table.get(n, {}).get("mlp", True) in (True, "mlp") for n in names)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            below[key] = _merge(dict(below[key]), value)
        else:
            below[key] = deepcopy(value)
    return below


def _check_size_tables(archs: Mapping[str, Any], common: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Refuse a size's table for a layer that no architecture has: it is a slip of the pen."""
    tables = {k for t in (common, *archs.values()) for k, v in t.items() if isinstance(v, dict)} | {"mlp"}
    for size, table in sizes.items():
        for key, value in table.items():
            if isinstance(value, dict) and key not in tables:
                raise ConfigError(f"sizes.{size}.{key}: no architecture has this layer; {nearest(key, sorted(tables))}")


def _matched(
    models: Mapping[tuple[str, str], ModelConfig],
    archs: Sequence[str],
    sizes: Sequence[str],
    reference: str,
    settings: LadderSettings,
    measure: Measure,
    rows: Mapping[str, int],
) -> dict[tuple[str, str], Rung]:
    rungs = {}
    ordered = sorted(sizes, key=lambda s: parameters(models[reference, s]))
    for size in ordered:
        goal = models[reference, size]
        target = int(parameters(goal))
        for arch in archs:
            config, error = models[arch, size], 0.0
            if arch != reference:
                what = f"architectures.{arch} at sizes.{size} ({target:,} parameters)"
                config, error = match(config, settings.free, measure(goal), measure, settings.tolerance, what)
            rungs[arch, size] = Rung(arch, size, config, int(parameters(config)), error, target, rows[size])
    targets = [rungs[reference, s].target for s in ordered]
    if any(math.isclose(a, b, rel_tol=0.01) for a, b in pairwise(targets)):
        raise ConfigError(f"sizes: two of them have nearly equal parameters: {targets}")
    return rungs
