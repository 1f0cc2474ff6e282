"""Preference losses and their gradients against `trl` on the same weights and the same tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from configs import VOCABULARY

import interlace
from interlace.data.batches import IGNORE, Batch
from interlace.data.tokenizer import Tokenizer
from interlace.train.objectives.preference import Preference, pair_log_probs
from interlace.train.recipe import ObjectiveSettings

KINDS = {"dpo": ("sigmoid", 0.3), "dpo_norm": ("sigmoid_norm", 2.0), "ipo": ("ipo", 0.4)}
LENGTHS = [(9, 5, 3), (4, 2, 7), (6, 8, 2)]


def trained_by_trl(theirs, reference, examples, kind, beta, folder):
    """(loss, gradients by name) of `trl` for pairs given as ids."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    Tokenizer.train(iter(["a few words of text " * 20]), 300).write(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="<|endoftext|>")
    settings = trl.DPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        beta=beta,
        loss_type=[kind],
        max_length=None,
    )
    unused = Dataset.from_dict({"prompt": ["a", "b"], "chosen": [" c", " d"], "rejected": [" e", " f"]})
    made = trl.DPOTrainer(theirs, reference, args=settings, train_dataset=unused, processing_class=tokenizer)
    loss = made.compute_loss(made.model, DataCollatorForPreference(pad_token_id=0)(examples))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "olmo_hybrid"])
def test_loss_and_gradients_are_those_of_trl(pair, name, kind):
    theirs, ours, folder = pair
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = 0
    reference, examples, pieces, goals = copy.deepcopy(theirs), [], [], []
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.05 * torch.randn_like(p))
    reference.save_pretrained(folder / "reference")
    for prompt, better, worse in LENGTHS:
        ids = [torch.randint(1, VOCABULARY, (n,)) for n in (prompt, better, worse)]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        examples.append({n: x.tolist() for n, x in zip(names, ids, strict=True)})
        pieces += ids
        goals += [torch.full_like(ids[0], IGNORE), *ids[1:]]
    segments = interlace.Segments.from_lengths([len(x) for x in pieces])
    batch = Batch(torch.cat(pieces), torch.cat(goals), segments, pairs=torch.arange(len(LENGTHS)))
    with torch.no_grad():
        known = pair_log_probs(interlace.load(folder / "reference"), batch).sums
    word, beta = KINDS[kind]
    found = Preference(ObjectiveSettings(kind=kind, beta=beta), known)(ours, batch)
    found.minimised.backward()
    want, gradients = trained_by_trl(theirs, reference, examples, word, beta, folder / "tokenizer")
    assert found.minimised.item() == pytest.approx(want, rel=2e-5)
    ours_too = {"mlp.down_proj": "mlp.down", "mlp.gate_proj": "mlp.gate", "o_proj": "mixer.output"}
    compared = 0
    for n, grad in gradients.items():
        if (last := next((k for k in ours_too if n.endswith(f"{k}.weight")), None)) is not None:
            mine = ours.get_parameter(f"blocks.{n.split('.')[2]}.{ours_too[last]}.weight").grad
            assert (mine - grad).norm() < 1e-4 * grad.norm(), n
            compared += 1
    assert compared == 3 * ours.config.depth
