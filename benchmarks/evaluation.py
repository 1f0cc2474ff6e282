"""Items a second of an evaluation beside `lm_eval` with `transformers`, on prompts of mixed lengths.

    python benchmarks/evaluation.py          # five minutes on two cores; needs lm-eval and transformers

Both score the same choices and write the same answers with the same weights, in Olmo Hybrid's form; the numbers are
compared first. lm_eval pads the rows of a batch to the longest; here they are ragged, and choices of one prompt read it
once. Each side is timed on its own requests alone, by turns, after one round to warm up.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch

import interlace
from interlace.data.library import sources
from interlace.data.tokenizer import Tokenizer

CONFIG = {
    "width": 384,
    "depth": 8,
    "vocabulary": 4096,
    "pattern": ["gated_delta", "gated_delta", "gated_delta", "attention"],
    "gated_delta": {"heads": 6, "key_dim": 48, "value_dim": 96},
    "attention": {"heads": 6, "norm": "output"},
    "mlp": {"width": 1024},
}


def items(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Return prompts of 16 to 1,024 tokens of real text, log-normal, with four continuations each."""
    text = "\n".join(document.text for document, _ in zip(sources(None), range(60), strict=False))
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        size = int(np.clip(draw.lognormal(4.6, 1.0), 16, 1024))
        start = int(draw.integers(len(text) - 8000))
        ids = tokenizer.encode(text[start : start + 8000])[: size + 64]
        rest = [tokenizer.decode(ids[size + 16 * i : size + 16 * i + int(draw.integers(1, 16))]) for i in range(4)]
        found.append((tokenizer.decode(ids[:size]), [f" {one.strip() or 'it'}" for one in rest]))
    return found


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Return requests as lm_eval makes them."""
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=i, metadata=("", i, 1))
        for i, args in enumerate(arguments)
    ]


def main() -> None:
    """Compare the numbers, then time both sides by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch of lm_eval with transformers")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import transformers
    from lm_eval.models.huggingface import HFLM

    from interlace.evaluate.lm_eval import InterlaceLM

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = interlace.HybridLM(interlace.ModelConfig.from_dict(CONFIG))
        texts = (document.text for document, _ in zip(sources(None), range(60), strict=False))
        model.tokenizer = Tokenizer.train(texts, 4096)
        interlace.save(model, folder / "model")
        asked = items(model.tokenizer, given.items)
        pairs = [(prompt, choice) for prompt, choices in asked for choice in choices]
        how = {"until": ["\n\n\n"], "max_gen_toks": given.answer, "do_sample": False}
        writes = [(prompt, how) for prompt, _ in asked]
        sides = {
            "ours": InterlaceLM(str(folder / "model"), dtype="float32"),
            "transformers": HFLM(
                str(folder / "model"), dtype="float32", device="cpu", batch_size=given.batch, logits_cache=False
            ),
        }
        work = {
            "choices": lambda lm: lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True),
            "answers": lambda lm: lm.generate_until(requests("generate_until", writes), disable_tqdm=True),
        }
        print(
            f"prompts of {min(len(model.tokenizer.encode(p)) for p, _ in asked)} to "
            f"{max(len(model.tokenizer.encode(p)) for p, _ in asked)} tokens, batch of transformers {given.batch}"
        )
        for name, do in work.items():
            found = {side: do(lm) for side, lm in sides.items()}
            if name == "choices":
                worst = max(abs(a[0] - b[0]) for a, b in zip(found["ours"], found["transformers"], strict=True))
                print(f"largest difference of a log-likelihood: {worst:.1e}")
            else:
                same = sum(a == b for a, b in zip(found["ours"], found["transformers"], strict=True))
                print(
                    f"answers that are the same: {same} of {len(asked)} (padding on the left reaches the state there)"
                )
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(given.rounds):
                for side, lm in sides.items():
                    start = time.perf_counter()
                    do(lm)
                    seconds[side].append(time.perf_counter() - start)
            rates = {side: len(asked) / statistics.median(spent) for side, spent in seconds.items()}
            ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)]
            print(
                json.dumps(
                    {
                        "what": name,
                        **{f"{k}_items_per_second": round(v, 2) for k, v in rates.items()},
                        "ratio_of_medians": round(rates["ours"] / rates["transformers"], 2),
                        "ratios": [round(r, 2) for r in ratios],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
