"""The only training loop: `interlace train`, quickstart's race and a study's cells call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from interlace.base.errors import Diverged
from interlace.data.batches import Batch
from interlace.train.ahead import Ahead
from interlace.train.trainer import StepResult, Trainer


def take_steps(
    trainers: Sequence[Trainer],
    batch: Callable[[int], Batch],
    after: Callable[[Trainer, StepResult], None] = lambda *_: None,
    *,
    before: Callable[[int], None] = lambda _: None,
    diverged: Callable[[Trainer, Diverged], None] = lambda *_: None,
) -> None:
    """Take all steps that are left, of several trainers by turns on the same batches.

    Args:
        trainers: of one schedule; those that are ahead wait for the others.
        batch: of a step counted from 0; a function of the step alone. On a GPU it is asked for one step ahead.
        after: (who, what) called after each step, to log, score and write checkpoints. On a GPU, reading a result
            waits for the step.
        before: called with each step counted from 0; may change the schedules.
        diverged: called before the error is raised.

    Raises:
        Diverged: three steps in a row were bad.
    """
    first = trainers[0]
    given = Ahead(lambda step: first.shares(batch(step)), first.model.device)
    while (step := min(t.done for t in trainers)) < first.steps:
        before(step)
        read = given(step)
        for trainer in trainers:
            if trainer.done == step:
                try:
                    taken = trainer.step(*read)
                    if trainer is trainers[-1] and step + 1 < trainer.steps:
                        given.prepare(step + 1)
                    after(trainer, taken)
                    if trainer.done == trainer.steps:
                        trainer.settle()
                except Diverged as error:
                    diverged(trainer, error)
                    raise
