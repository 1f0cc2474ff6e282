"""The report of a scaling study, in one file that a reader can judge: figures, tables, exact commands and versions."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interlace.base.files import disk_errors, write_file
from interlace.runs.page import page, picture, table
from interlace.runs.versions import versions
from interlace.study.scaling.compare import BELIEVED, Saving, flops_per_token
from interlace.study.scaling.fit import NAMES, Fit
from interlace.study.scaling.study import Study

COLOURS = ("#7a7a7a", "#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490")


def number(value: float) -> str:
    """Return a number with four digits; large ones in units: 1.23M."""
    if math.isinf(value):
        return "no bound"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"


def times(value: float) -> str:
    """Return a factor as text."""
    return number(value) if math.isinf(value) else f"{value:.2f}"


def span(pair: tuple[float, float], write: Callable[[float], str] = number) -> str:
    """Return an interval as text."""
    return f"{write(pair[0])} to {write(pair[1])}"


def coefficient_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return each coefficient with the interval of every bootstrap."""
    kinds = [r.kind for r in study.resampled]
    rows = []
    for arch, law in study.fit.laws.items():
        for name in NAMES:
            known = study.known(arch, name)
            spans = [span(r.interval_of(arch, name)) if known else "" for r in study.resampled]
            rows.append([f"{arch}: {name}", number(getattr(law, name)) if known else "explains nothing", *spans])
    return ["coefficient", "fit", *(_kind(k) for k in kinds)], rows


def _kind(kind: str) -> str:
    return f"over {kind}" + (" (naive)" if kind == "points" else "")


def saving_rows(savings: Sequence[Saving], most: int = 3) -> tuple[list[str], list[list[str]]]:
    """Return token and compute savings at each size, with at most so many kinds of interval."""
    kinds = list(savings[0].intervals)[:most]
    head = ["", "N", "D", "loss", "tokens", *(_kind(k) for k in kinds), "FLOPs", *(_kind(k) for k in kinds[:1])]
    rows = []
    for s in savings:
        tokens = [span(s.intervals[k]["tokens"], times) for k in kinds]
        flops = [span(s.intervals[k]["flops"], times) for k in kinds[:1]]
        name = f"{s.other} / {s.base}" + ("" if s.measured else " *")
        rows.append(
            [
                name,
                number(s.n),
                number(s.d),
                f"{s.loss:.4f}",
                times(s.tokens),
                *tokens,
                times(s.flops),
                *flops,
            ]
        )
    return head, rows


def nested_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return rows for models with more and more in common."""
    head = ["in common", "coefficients", "objective", "BIC (runs)", "p against the row above"]
    return head, [
        [
            r["shared"],
            str(r["coefficients"]),
            f"{r['objective']:.5g}",
            f"{r['bic']:.1f}",
            "" if r["p"] is None else f"{r['p']:.3f}",
        ]
        for r in rows
    ]


def held_out_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return rows for the largest size, predicted from the others."""
    head = ["architecture", "N", "D", "loss", "predicted", "error"]
    return head, [
        [r["arch"], number(r["N"]), number(r["D"]), f"{r['loss']:.4f}", f"{r['predicted']:.4f}", f"{r['error']:+.2%}"]
        for r in rows
    ]


def split_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Return rows for the exponent of the best size in the compute, found in two ways."""
    head = ["architecture", "beta / (alpha + beta)", "over runs", "IsoFLOP", "budgets with a bottom"]
    rows = []
    for arch, law in study.fit.laws.items():
        runs = next((r for r in study.resampled if r.kind == "runs"), None)
        iso, known = study.isoflop[arch], study.known(arch, "split")
        rows.append(
            [
                arch,
                number(law.split) if known else "-",
                span(runs.interval_of(arch, "split")) if runs and known else "",
                "-" if iso.split is None else number(iso.split),
                f"{sum(v.best is not None for v in iso.valleys)} of {len(iso.valleys)}",
            ]
        )
    return head, rows


def _save(draw: Callable[[Any], None], size: tuple[float, float]) -> dict[str, bytes]:
    """Save the same figure as PNG and as PDF."""
    from matplotlib.figure import Figure

    out = {}
    for kind in ("png", "pdf"):
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        draw(figure)
        for axis in figure.axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
        target = io.BytesIO()
        figure.savefig(target, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
        out[kind] = target.getvalue()
    return out


def _plain_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Give a logarithmic axis at most four ticks, with plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    low, high = limits
    ladder = [m * 10.0**p for p in range(-4, 14) for m in (1, 1.5, 2, 3, 5, 7)]
    inside = [t for t in ladder if low <= t <= high]
    axis.set_major_locator(FixedLocator(inside[:: max(1, math.ceil(len(inside) / 4))]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def loss_figure(fit: Fit) -> dict[str, bytes]:
    """Plot loss against tokens, a colour for each size, a panel for each architecture; residuals below."""

    def draw(figure: Any) -> None:
        archs = fit.structure.archs
        panels = figure.subplots(2, len(archs), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 1))
        residuals = fit.residuals
        sizes = fit.points.sizes
        from matplotlib import colormaps

        shades = colormaps["viridis"](np.linspace(0.05, 0.85, len(sizes)))
        for column, arch in enumerate(archs):
            top, bottom = panels[0][column], panels[1][column]
            for size, colour in zip(sizes, shades, strict=True):
                keep = (fit.points.arch == arch) & (np.abs(fit.points.n / size - 1) < 0.011)
                if not keep.any():
                    continue
                n, d = float(fit.points.n[keep].mean()), fit.points.d[keep]
                line = np.geomspace(d.min(), d.max(), 50)
                top.plot(line, fit.laws[arch].loss(n, line), color=colour, linewidth=1.2, label=f"{number(n)}")
                top.scatter(d, fit.points.loss[keep], color=colour, s=14, zorder=3)
                bottom.scatter(d, 100 * residuals[keep], color=colour, s=10)
            top.set_title(arch, fontsize=10)
            top.set_xscale("log")
            bottom.axhline(0, color="#999999", linewidth=0.8)
            bottom.set_xlabel("tokens")
            _plain_ticks(bottom.xaxis, bottom.get_xlim())
        panels[0][0].set_ylabel("loss")
        panels[1][0].set_ylabel("found / fitted, %")
        panels[0][-1].legend(frameon=False, fontsize=8, title="parameters", title_fontsize=8)

    return _save(draw, (3.6 * len(fit.structure.archs) + 1, 5.4))


def saving_figure(savings: Sequence[Saving]) -> dict[str, bytes]:
    """Plot token savings by size, with intervals over runs or seeds if there are any; at 1 there is no saving."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        pairs = list(dict.fromkeys((s.base, s.other) for s in savings))
        for index, (pair, colour) in enumerate(zip(pairs, COLOURS[1:] * 3, strict=False)):
            own = [s for s in savings if (s.base, s.other) == pair and math.isfinite(s.tokens)]
            x = [s.n * 1.03 ** (index - (len(pairs) - 1) / 2) for s in own]
            kind = next((k for k in BELIEVED if own and k in own[0].intervals), None)
            axis.plot(
                x, [s.tokens for s in own], color=colour, marker="o", markersize=4, label=f"{pair[1]} against {pair[0]}"
            )
            for at, s in zip(x, own, strict=True):
                if kind is not None:
                    low, high = (min(max(v, 0.05), 20.0) for v in s.intervals[kind]["tokens"])
                    axis.plot([at, at], [low, high], color=colour, linewidth=2, alpha=0.5)
        axis.axhline(1, color="#999999", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_yscale("log")
        _plain_ticks(axis.xaxis, axis.get_xlim())
        _plain_ticks(axis.yaxis, axis.get_ylim())
        axis.set_xlabel("parameters")
        found = next((k for k in BELIEVED if any(k in s.intervals for s in savings)), None)
        axis.set_ylabel("tokens saved (factor)" + (f", 95 % over {found}" if found else ""))
        axis.legend(frameon=False, fontsize=8)

    return _save(draw, (6.2, 3.8))


def profile_figure(study: Study) -> dict[str, bytes]:
    """Plot the profile deviance of each coefficient; the data cannot rule out values under the line."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(NAMES), sharey=True)
        for axis, name in zip(panels, NAMES, strict=True):
            for colour, arch in zip(COLOURS * 3, study.fit.structure.archs, strict=False):
                if (arch, name) in study.profiles:
                    x, y = study.profiles[arch, name]
                    axis.plot(x, y, color=colour, linewidth=1.3, label=arch)
            axis.axhline(3.84, color="#999999", linewidth=0.8, linestyle="--")
            axis.set_ylim(0, 10)
            axis.set_xlabel(name)
            if name in ("A", "B"):
                axis.set_xscale("log")
                _plain_ticks(axis.xaxis, axis.get_xlim())
        panels[0].set_ylabel("profile deviance")
        panels[0].legend(frameon=False, fontsize=8)

    return _save(draw, (11, 3.0))


def isoflop_figure(study: Study) -> dict[str, bytes]:
    """Plot valleys of loss over size at equal compute: dots are measured, lines fitted."""

    def draw(figure: Any) -> None:
        archs = study.fit.structure.archs
        panels = figure.subplots(1, len(archs), squeeze=False, sharey=True)[0]
        from matplotlib import colormaps

        for axis, arch in zip(panels, archs, strict=True):
            valleys, law = study.isoflop[arch].valleys, study.fit.laws[arch]
            rate = np.vectorize(flops_per_token(study.fit.points, arch))
            shades = colormaps["plasma"](np.linspace(0.05, 0.85, max(1, len(valleys))))
            for v, colour in zip(valleys, shades, strict=False):
                axis.scatter(v.n, v.loss, color=colour, s=14)
                line = np.geomspace(min(v.n), max(v.n), 50)
                axis.plot(line, law.loss(line, v.flops / rate(line)), color=colour, linewidth=1, label=f"{v.flops:.1e}")
            axis.set_xscale("log")
            _plain_ticks(axis.xaxis, axis.get_xlim())
            axis.set_title(arch, fontsize=10)
            axis.set_xlabel("parameters")
        panels[0].set_ylabel("loss at equal FLOPs")
        panels[-1].legend(frameon=False, fontsize=8, title="FLOPs", title_fontsize=8)

    return _save(draw, (3.6 * len(study.fit.structure.archs) + 1, 3.4))


def write_report(out: Path, study: Study, commands: Sequence[str], before: Sequence[str] = ()) -> Path:
    """Write report.html with everything inside, and each figure as PNG and PDF beside it; it begins with `before`."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    figures = {"loss": loss_figure(study.fit), "profiles": profile_figure(study)}
    if study.savings:
        figures["savings"] = saving_figure(study.savings)
    if any(i.valleys for i in study.isoflop.values()):
        figures["isoflop"] = isoflop_figure(study)
    for name, kinds in figures.items():
        for kind, raw in kinds.items():
            write_file(out / f"{name}.{kind}", raw)
    points, fit = study.fit.points, study.fit
    runs = len(set(points.run.tolist()))
    lead = [f'<p class="lead">{html.escape(s)}</p>' for s in study.sentences]
    fixed = ", ".join(f"{k} fixed at {v:g}" for k, v in fit.structure.fixed)
    about = (
        f"{len(points)} points of {runs} runs. L = E + A / N^alpha + B / D^beta, Huber's loss (delta {fit.delta:g}) on "
        f"log residuals, all points with equal weight{'; ' + fixed if fixed else ''}. In common: "
        f"{', '.join(sorted(fit.structure.shared)) or 'nothing'}. {study.optimum} Intervals: {study.times:,} resamples."
    )
    left = f" {points.diverged} points of runs that diverged are left out." if points.diverged else ""
    lead += [f"<p>Note: {html.escape(note)}</p>" for note in study.notes]
    sections = [
        *lead,
        *before,
        "<h2>The fit</h2>",
        f"<p>{html.escape(about + left)}</p>",
        picture(figures["loss"]["png"], "loss and fits"),
    ]
    sections += [
        "<h2>Coefficients, with 95 % intervals</h2>",
        table(*coefficient_rows(study)),
        picture(figures["profiles"]["png"], "profiles"),
    ]
    sections.append("<p>Profile deviance counts a run as one observation; the dashed line bounds 95 %.</p>")
    if study.savings:
        head, rows = saving_rows(study.savings)
        sections += [
            "<h2>Savings at equal loss: factors, with 95 % intervals</h2>",
            table(head, rows),
            picture(figures["savings"]["png"], "token savings by size"),
        ]
        if any(not s.measured for s in study.savings):
            sections.append("<p>* a size beyond those that were trained.</p>")
    if study.nested:
        sections += ["<h2>What the architectures have in common</h2>", table(*nested_rows(study.nested))]
    sections.append("<h2>The largest size, predicted from the others</h2>")
    if study.held_out:
        sections.append(table(*held_out_rows(study.held_out)))
    else:
        sections.append("<p>Not possible: too few sizes are left without the largest.</p>")
    sections += ["<h2>IsoFLOP beside the parametric fit</h2>", table(*split_rows(study))]
    sections.append(
        "<p>The exponent of the best size in the compute. beta / (alpha + beta) takes compute to be 6 N D; IsoFLOP "
        "takes the FLOPs that the runs spent, the head's and attention's included.</p>"
    )
    if "isoflop" in figures:
        sections.append(picture(figures["isoflop"]["png"], "loss at equal FLOPs"))
    made = "\n".join([*commands, "", *(f"{k} {v}" for k, v in versions().items())])
    sections += ["<h2>How this was made</h2>", f"<pre>{html.escape(made)}</pre>"]
    write_file(out / "report.html", page("interlace study: scaling", sections))
    return out / "report.html"


__all__ = ["coefficient_rows", "held_out_rows", "nested_rows", "saving_rows", "split_rows", "write_report"]
