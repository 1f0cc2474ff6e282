"""Points of a scaling study: parameters, tokens and the loss they reached, and which run each came from."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from interlace.base.errors import DataError

REQUIRED, OPTIONAL = ("N", "D", "loss"), ("run", "seed", "arch", "flops", "diverged")
Floats = np.ndarray
Strings = np.ndarray


@dataclass(frozen=True)
class Points:
    """Columns of equal length.

    Attributes:
        n: parameters, float64.
        d: tokens, float64.
        loss: nats per token, or any other loss with a floor, float64.
        run: which training run a point was read from: points of one run share its luck.
        seed: which seed the run had.
        arch: which architecture.
        flops: training FLOPs; 6 N D where none were given.
        diverged: how many rows were left out because their run had diverged.
        grouped: whether the runs were named, and not taken to be one for each point.
    """

    n: Floats
    d: Floats
    loss: Floats
    run: Strings
    seed: Strings
    arch: Strings
    flops: Floats
    diverged: int = 0
    grouped: bool = True

    def __len__(self) -> int:
        """How many points."""
        return len(self.n)

    def where(self, keep: np.ndarray) -> Points:
        """The points that a mask or an index picks."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[keep] for k, v in columns.items() if isinstance(v, np.ndarray)})

    def of(self, arch: str) -> Points:
        """One architecture's."""
        return self.where(self.arch == arch)

    @property
    def archs(self) -> tuple[str, ...]:
        """In the order they first appear."""
        return tuple(dict.fromkeys(self.arch.tolist()))

    @property
    def sizes(self) -> list[float]:
        """Distinct parameter counts, smallest first; counts within 1 % of each other are one size."""
        found: list[float] = []
        for n in sorted(set(self.n.tolist())):
            if not found or n > 1.01 * found[-1]:
                found.append(n)
        return found

    @staticmethod
    def make(
        n: Sequence[float],
        d: Sequence[float],
        loss: Sequence[float],
        *,
        run: Sequence[str] | None = None,
        seed: Sequence[str] | None = None,
        arch: Sequence[str] | None = None,
        flops: Sequence[float] | None = None,
        diverged: int = 0,
    ) -> Points:
        """From plain lists.

        Without `run`, points of the same architecture, size and seed are one run where seeds are given, and every point
        is a run of its own where they are not. Runs of two architectures are two, even where they have the same name.
        """
        count = len(n)
        seeds = [""] * count if seed is None else list(seed)
        archs = ["model"] * count if arch is None else list(arch)
        grouped = run is not None or seed is not None
        if run is None:
            rows = range(count)
            run = [f"{archs[i]}/{n[i]:.6g}/{seeds[i]}" for i in rows] if seed is not None else [str(i) for i in rows]
        else:
            owners: dict[str, set[str]] = {}
            for name, own in zip(run, archs, strict=True):
                owners.setdefault(str(name), set()).add(own)
            run = [f"{a}/{r}" if len(owners[str(r)]) > 1 else r for r, a in zip(run, archs, strict=True)]
        n_, d_, loss_ = (np.asarray(x, dtype=np.float64) for x in (n, d, loss))
        flops_ = 6 * n_ * d_ if flops is None else np.asarray(flops, dtype=np.float64)
        words = [np.asarray([str(v) for v in x], dtype=object) for x in (run, seeds, archs)]
        return Points(n_, d_, loss_, words[0], words[1], words[2], flops_, diverged, grouped)


def read_csv(path: Path) -> Points:
    """Points of a CSV file with columns N, D and loss, and any of run, seed, arch, flops and diverged.

    Rows of a run that is marked as diverged in any row are left out, all of them.

    Raises:
        DataError: the file is missing or empty, a column is missing, or a value is not a positive number; the message
            names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    reader = csv.DictReader(text.splitlines())
    header = [h.strip() for h in reader.fieldnames or []]
    missing = [c for c in REQUIRED if c not in header]
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; it has {', '.join(header) or 'no header'}, and N (parameters), "
            f"D (tokens) and loss are needed; {', '.join(OPTIONAL)} are optional"
        )
    rows = [(reader.line_num, {(k or "").strip(): (v or "").strip() for k, v in row.items() if k}) for row in reader]
    if not rows:
        raise DataError(f"{path}: has a header and no rows")
    bad = {_run_of(r) for _, r in rows if r.get("diverged", "").lower() in ("1", "true", "yes")}
    kept = [(line, r) for line, r in rows if _run_of(r) not in bad or r.get("diverged") is None]
    if not kept:
        raise DataError(f"{path}: every run has diverged; nothing is left to fit")

    def column(name: str) -> list[float]:
        return [_positive(path, line, name, r[name]) for line, r in kept]

    def words(name: str) -> list[str] | None:
        return [r[name] for _, r in kept] if name in header else None

    return Points.make(
        column("N"),
        column("D"),
        column("loss"),
        run=words("run"),
        seed=words("seed"),
        arch=words("arch"),
        flops=column("flops") if "flops" in header else None,
        diverged=len(rows) - len(kept),
    )


def _run_of(row: dict[str, str]) -> tuple[str, ...]:
    return (row.get("arch", ""), row["run"]) if row.get("run") else tuple(row.get(c, "") for c in ("arch", "N", "seed"))


def _positive(path: Path, line: int, name: str, raw: str) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DataError(
            f"{path}: line {line}: {name} is {raw!r}, and must be a positive number, since its logarithm is fitted; "
            "leave the row out, or mark its run in a column 'diverged'"
        )
    return value


def check_identified(points: Points, fixed: dict[str, float]) -> None:
    """Whether these points can tell the coefficients apart at all, for each architecture.

    Raises:
        DataError: they cannot; the message says which coefficients, and what would do.
    """
    for arch in points.archs:
        own = points.of(arch)
        sizes, tokens = len(own.sizes), len({round(math.log(d), 2) for d in own.d.tolist()})
        for name, count, exponent, floor in (
            ("sizes (N)", sizes, "alpha", "A"),
            ("token counts (D)", tokens, "beta", "B"),
        ):
            needed = 2 if exponent in fixed else 3
            if count < needed:
                lost = f"{floor} and E" if count < 2 else f"{exponent}, {floor} and E"
                remedy = f"give at least {needed}" + (f", or 2 with --{exponent} fixed" if needed == 3 else "")
                raise DataError(f"points: {arch} has {count} {name}, from which {lost} cannot be told apart; {remedy}")
        free = 5 - len(fixed)
        if len(own) < free + 1:
            raise DataError(f"points: {arch} has {len(own)} points for {free} coefficients; give at least {free + 1}")
