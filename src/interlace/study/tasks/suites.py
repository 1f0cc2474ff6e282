"""Suites: which tasks, which models, at which size and budget, and what each is expected to show."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from interlace.base.errors import ConfigError, nearest
from interlace.study.tasks.arms import Shape
from interlace.study.tasks.cell import Budget

SMALL, NARROW = Shape(), Shape(heads=1, mlp=0)
ARMS = ("transformer", "gated_delta", "hybrid")
EIGENVALUES = ("transformer", "gated_delta_positive", "gated_delta")

# What a task is trained with unless a suite says otherwise.
DEFAULTS: dict[str, tuple[Shape, Budget]] = {
    "parity": (SMALL, Budget(2000, 64)),
    "arithmetic": (replace(SMALL, depth=3), Budget(10_000, 128, (1e-3, 2e-3, 4e-3))),
    "arithmetic_brackets": (replace(SMALL, depth=3), Budget(10_000, 128, (1e-3, 2e-3, 4e-3))),
    "s3": (replace(SMALL, width=128, heads=4, mlp=0), Budget(2000, 64)),
    "z60": (replace(SMALL, width=128, heads=4, mlp=0), Budget(2000, 64)),
    "a5": (replace(SMALL, width=128, heads=4, mlp=0), Budget(4000, 64)),
    "s5": (replace(SMALL, width=128, heads=4, mlp=0), Budget(4000, 64)),
    "s5_swaps": (replace(SMALL, width=128, heads=4, convolution=2, mlp=0), Budget(1200, 64, (2e-3, 4e-3))),
    "swaps": (replace(SMALL, depth=3), Budget(3200, 64, (1e-3,))),
    "recall": (SMALL, Budget(4000, 64)),
    "state_recall": (replace(SMALL, convolution=2, mlp=0), Budget(6000, 64, (1e-3, 2e-3), evaluations=24)),
    "state_recall_16": (replace(NARROW, convolution=2), Budget(5000, 64, (1e-3, 2e-3), evaluations=20)),
    "mqar": (NARROW, Budget(900, 64, (2e-3, 4e-3))),
}
OTHERS = (SMALL, Budget(2000, 64))


@dataclass(frozen=True)
class Suite:
    """A study by name.

    Attributes:
        tasks, models, seeds: of the grid.
        settings: by task, where they are not the task's own.
        about: what it is for, what it reproduces, and what it costs.
    """

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    seeds: int
    about: str
    settings: dict[str, tuple[Shape, Budget]] = field(default_factory=dict)

    def setting(self, task: str) -> tuple[Shape, Budget]:
        """Return the size and budget of a task."""
        return self.settings.get(task) or DEFAULTS.get(task, OTHERS)


PAPER = Shape(width=256, depth=4, heads=4, mlp=1024)
SUITES = {
    "quick": Suite(
        ("parity", "mqar"),
        ARMS,
        3,
        "A separation in each direction: parity, which attention does not learn and a recurrence with negative "
        "eigenvalues does; recall of 16 pairs, the reverse; and the hybrid, which does both. Under ten minutes on two "
        "cores.",
        {
            "parity": (SMALL, Budget(1000, 64, (2e-3, 4e-3), evaluations=20)),
            "mqar": (NARROW, Budget(800, 64, (2e-3, 4e-3), evaluations=16)),
        },
    ),
    "state_tracking": Suite(
        ("parity", "s5_swaps"),
        EIGENVALUES,
        5,
        "Negative eigenvalues: with them Gated DeltaNet keeps the parity of bits and the product of swaps beyond the "
        "lengths it was trained on; without them, or with attention alone, it does not. After Grazzi et al., arXiv "
        "2411.12537, tables 3 and 5 and figure 4, at a smaller size. About 15 minutes on two cores.",
    ),
    "state_recall": Suite(
        ("state_recall", "state_recall_16"),
        ARMS,
        3,
        "State-based recall, in bits and with sixteen symbols: the hybrid against its two halves. After Merrill et "
        "al., arXiv 2604.03444, table 17, at a smaller size. Under 45 minutes on two cores.",
    ),
    "paper": Suite(
        ("swaps_long", "recall_long", "state_recall_long"),
        ("transformer", "gated_delta", "gated_delta_positive", "hybrid", "hybrid_positive"),
        5,
        "Tables 15 to 17 of Merrill et al., arXiv 2604.03444, in compact form at the paper's difficulties, size (4 "
        "layers, width 256) and budgets (20,000, 50,000 and 200,000 steps of 32). On a GPU such steps are bound by "
        "launching kernels: by estimate 5, 15 and 50 minutes a cell, about 37 hours in all; on two cores, weeks.",
        {
            "swaps_long": (PAPER, Budget(20_000, 32, (1e-4, 3e-4, 1e-3))),
            "recall_long": (PAPER, Budget(50_000, 32, (1e-4, 3e-4, 1e-3))),
            "state_recall_long": (PAPER, Budget(200_000, 32, (1e-4, 3e-4))),
        },
    ),
}


def suite(name: str) -> Suite:
    """Return the suite of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in SUITES:
        raise ConfigError(f"suite: {name!r} is not a suite; {nearest(name, list(SUITES))}")
    return SUITES[name]
