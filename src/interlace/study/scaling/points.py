"""The points of a scaling study: parameters, tokens, the loss they reached, and the run of each."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from interlace.base.errors import DataError

REQUIRED, OPTIONAL = ("N", "D", "loss"), ("run", "seed", "arch", "flops", "diverged")
YES, NO = ("1", "true", "yes", "y", "t"), ("", "0", "false", "no", "n", "f")
Floats = np.ndarray
Strings = np.ndarray


@dataclass(frozen=True)
class Points:
    """Points as columns of equal length.

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
        """Return the number of points."""
        return len(self.n)

    def where(self, keep: np.ndarray) -> Points:
        """Return the points that a mask or an index picks."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[keep] for k, v in columns.items() if isinstance(v, np.ndarray)})

    def of(self, arch: str) -> Points:
        """Return the points of one architecture."""
        return self.where(self.arch == arch)

    @property
    def archs(self) -> tuple[str, ...]:
        """The architectures, in the order they first appear."""
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
        """Make points from plain lists.

        A point without a run (none are given, or its own is "") belongs with those of its architecture, size and seed.
        If it has no seed either, it is a run of its own. Runs of two architectures are two, even if they have the same
        name.
        """
        count = len(n)
        seeds = [""] * count if seed is None else [str(s) for s in seed]
        archs = ["model"] * count if arch is None else list(arch)
        names = [""] * count if run is None else [str(r) for r in run]
        grouped = any(names) or any(seeds)
        owners: dict[str, set[str]] = {}
        for name, own in zip(names, archs, strict=True):
            owners.setdefault(name, set()).add(own)
        for i, name in enumerate(names):
            if name:
                names[i] = f"{archs[i]}/{name}" if len(owners[name]) > 1 else name
            else:
                names[i] = f"{archs[i]}/{n[i]:.6g}/{seeds[i]}" if seeds[i] else f"point {i}"
        n_, d_, loss_ = (np.asarray(x, dtype=np.float64) for x in (n, d, loss))
        flops_ = 6 * n_ * d_ if flops is None else np.asarray(flops, dtype=np.float64)
        words = [np.asarray([str(v) for v in x], dtype=object) for x in (names, seeds, archs)]
        return Points(n_, d_, loss_, words[0], words[1], words[2], flops_, diverged, grouped)


def read_csv(path: Path) -> Points:
    """Return the points of a CSV file with columns N, D and loss, and any of run, seed, arch, flops and diverged.

    If any row of a run is marked as diverged, all rows of the run are left out: those with its name, or with its
    architecture, size and seed. A row that has neither a run nor a seed is left out alone.

    Raises:
        DataError: the file is missing or empty, a column is missing, a value is not a positive number, or a mark is
            neither yes nor no; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    reader = csv.DictReader(text.splitlines())
    try:
        header = [h.strip() for h in reader.fieldnames or []]
        rows = [(reader.line_num, {(k or "").strip(): (v or "").strip() for k, v in r.items() if k}) for r in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + 1}: is not CSV: {error}") from None
    missing = [c for c in REQUIRED if c not in header]
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing; it has {', '.join(header) or 'no header'}, and N (parameters), "
            f"D (tokens) and loss are needed; {', '.join(OPTIONAL)} are optional"
        )
    if not rows:
        raise DataError(f"{path}: has a header and no rows")
    bad = {_run_of(line, r) for line, r in rows if _marked(path, line, r.get("diverged", ""))}
    kept = [(line, r) for line, r in rows if _run_of(line, r) not in bad]
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


def _run_of(line: int, row: dict[str, str]) -> tuple[str, ...]:
    """Return a key for the run of a row, with which it shares its luck."""
    arch = row.get("arch", "")
    if row.get("run"):
        return "run", arch, row["run"]
    if not row.get("seed"):
        return "line", str(line)
    try:
        size = f"{float(row['N']):.6g}"  # 1e6 and 1000000 are one size
    except ValueError:
        size = row["N"]
    return "seed", arch, size, row["seed"]


def _marked(path: Path, line: int, raw: str) -> bool:
    """Return whether a cell says yes."""
    word = raw.lower().removesuffix(".0")
    if word in YES or word in NO:
        return word in YES
    raise DataError(f"{path}: line {line}: diverged is {raw!r}, and must be 1 or 0 (or yes, no, true, false, empty)")


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
    """Check for each architecture that these points can tell the coefficients apart.

    Raises:
        DataError: they cannot; the message says which coefficients, and what would help.
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
