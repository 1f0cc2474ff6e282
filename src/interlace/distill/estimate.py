"""Estimate what a recipe may take, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from interlace.base.errors import ConfigError
from interlace.distill.desk import Desk
from interlace.distill.recipe import DistillRecipe, Stage
from interlace.distill.steps.ask import Asking
from interlace.sandbox.templates import Templates

LOOKED_AT = 50  # rows of a source whose prompts are rendered
TOKENS_PER_BYTE = 0.3  # in English prompts
USUAL = 0.5  # share of max_tokens that an answer is taken to have


@dataclass(frozen=True)
class StepEstimate:
    """The estimate for one step.

    Attributes:
        rows: the most rows that leave the step.
        requests: the most requests, without retries.
        prompt_tokens: about how many prompt tokens, in all.
        answer_tokens: the most answer tokens, in all.
        cost: about how many USD, if answers are half as long as they may be.
        most: the most USD, if answers are as long as they may be and a prompt has a token for each byte; repairs come
            on top.
    """

    step: str
    kind: str
    rows: int
    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    most: float = 0.0


def estimate(recipe: DistillRecipe, limit: int | None = None) -> list[StepEstimate]:
    """Estimate every step as if no row were dropped; sources are read once, and nothing is sent."""
    templates = Templates()
    found: dict[str, StepEstimate] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    try:
        for name, stage in recipe.stages.items():
            desk = Desk(name, recipe.folder, recipe.run.seed, templates)
            if stage.step.FEEDS:
                found[name], samples[name] = _source(stage, desk, limit)
                continue
            rows_in = sum(found[f].rows for f in stage.feeds)
            seen = [row for f in stage.feeds for row in samples[f]]
            found[name], samples[name] = _step(recipe, stage, rows_in, seen, desk)
    finally:
        templates.close()
    return list(found.values())


def _source(stage: Stage, desk: Desk, limit: int | None) -> tuple[StepEstimate, list[dict[str, Any]]]:
    limits = [x for x in (limit, getattr(stage.step, "limit", None)) if x]
    rows = islice(stage.step.rows(desk), min(limits) if limits else None)
    seen = list(islice(rows, LOOKED_AT))
    return StepEstimate(stage.step.name, stage.step.kind, len(seen) + sum(1 for _ in rows)), seen


def _step(
    recipe: DistillRecipe, stage: Stage, rows: int, seen: list[dict[str, Any]], desk: Desk
) -> tuple[StepEstimate, list[dict[str, Any]]]:
    """Return a step's estimate, and sample rows as they may leave it.

    Columns that the step makes hold a text as long as an answer is taken to be (USUAL).
    """
    step = stage.step
    most = step.max_tokens if isinstance(step, Asking) else 0
    new = "x" * int(USUAL * most / TOKENS_PER_BYTE)
    after = [{**dict.fromkeys(stage.columns, new), **row} for row in seen]
    requests = step.requests(rows)
    if not requests:
        return StepEstimate(step.name, step.kind, step.fan(rows)), after
    sizes = [_prompt_bytes(step, row, desk) for row in seen] or [0]
    prompt = int(TOKENS_PER_BYTE * sum(sizes) / len(sizes) * requests)
    teachers = [recipe.teachers[t] for t in step.asks()]
    longest = int(sum(sizes) / len(sizes) * requests)
    costs = [(t.cost(prompt, int(USUAL * most * requests)), t.cost(longest, most * requests)) for t in teachers]
    return (
        StepEstimate(
            step.name,
            step.kind,
            step.fan(rows),
            requests,
            prompt,
            most * requests,
            max(c[0] for c in costs),
            max(c[1] for c in costs),
        ),
        after,
    )


def _prompt_bytes(step: Any, row: dict[str, Any], desk: Desk) -> int:
    total = step.frame_bytes(row) if isinstance(step, Asking) else 0
    for field, template in step.templates().items():
        try:
            total += len(desk.render(template, row, field).encode("utf-8", "replace"))
        except ConfigError:
            total += len(template)
    return total
