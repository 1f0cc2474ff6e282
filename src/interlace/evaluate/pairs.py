"""Score a model on held-out pairs of answers: how often, and by how much, it has come to prefer the better one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from interlace.data.batches import IGNORE
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.train.objectives.preference import pair_log_probs, preference_losses
from interlace.train.recipe import Recipe
from interlace.train.reference import held_out_places, pairs_of
from interlace.train.workers import Alone

NAMES = ("loss", "wins", "losses", "margin", "bytes", "nats", "pairs")


class HeldOutPairs:
    """A fixed part of a corpus' held-out pairs."""

    def __init__(self, corpus: Corpus, recipe: Recipe, reference: Tensor | None, precision: str = "float32"):
        """Take the pairs that a run scores.

        Args:
            reference: float64 [pairs of the split, 2], log-probabilities under it; None where there is none.
            precision: of the training.
        """
        pairs = pairs_of(corpus, recipe, "held_out")
        self.settings, self.reference, self.precision = recipe.objective, reference, precision
        self.batches = [pairs.of(places) for places in held_out_places(corpus, recipe)]
        self.byte_lengths = corpus.tokenizer.byte_lengths()

    @torch.no_grad()
    def score(self, model: HybridLM, workers: Alone | None = None) -> dict[str, float]:
        """Return the loss, counts of pairs, and bits per byte of the better answers.

        A pair is won if the model prefers the better answer more than the reference does, and lost if less; without a
        reference, if it prefers it at all.

        workers: who share the batches among them; each calls this, and has the score of all.
        """
        workers = workers or Alone()
        training = model.training
        model.eval()
        sums = dict.fromkeys(NAMES, 0.0)
        reader, readers = workers.reader
        for turn in range(-(-len(self.batches) // readers)):
            place = turn * readers + reader
            batch = self.batches[place % len(self.batches)]
            assert batch.pairs is not None
            policy = pair_log_probs(model, batch, self.precision, self.settings.share_prompt)
            if place >= len(self.batches):  # which another scores; all workers pass through the model as often
                continue
            known = None if self.reference is None else self.reference[batch.pairs].to(policy.sums.device)
            losses, preferred = preference_losses(policy, known, self.settings)
            kinds = torch.tensor([False, True, False]).repeat(len(batch.pairs))
            better = torch.repeat_interleave(kinds, torch.diff(batch.segments.offsets).long())
            written = batch.targets[better & (batch.targets != IGNORE)]
            found: dict[str, Any] = {
                "loss": losses.sum(),
                "wins": (preferred > 0).sum(),
                "losses": (preferred < 0).sum(),
                "margin": preferred.sum(),
                "nats": -policy.sums[:, 0].sum(),
                "bytes": self.byte_lengths[written].sum(),
                "pairs": len(batch.pairs),
            }
            for name, value in found.items():
                sums[name] += float(value)
        model.train(training)
        here = model.device if workers.count > 1 else "cpu"  # some devices have no float64
        totals = workers.total(torch.tensor([sums[name] for name in NAMES], dtype=torch.float64, device=here))
        whole = dict(zip(NAMES, totals.tolist(), strict=True))
        pairs = max(1.0, whole["pairs"])
        return {
            "held_out_bits_per_byte": whole["nats"] / math.log(2) / max(1.0, whole["bytes"]),
            "held_out_loss": whole["loss"] / pairs,
            "held_out_wins": int(whole["wins"]),
            "held_out_losses": int(whole["losses"]),
            "held_out_margin": whole["margin"] / pairs,
        }
