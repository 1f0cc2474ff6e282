"""Small texts, and a run on them that takes a second."""

from __future__ import annotations


def texts_in(folder):
    """A folder of small text files with something to learn in them."""
    folder.mkdir()
    for i in range(12):
        words = " ".join(f"the {'quick' if j % 3 else 'slow'} fox {i * j % 17} jumps" for j in range(120))
        (folder / f"{i:02}.txt").write_text(words + "\n", encoding="utf-8")
    return folder


def recipe_of(texts):
    """Plain data of a run that takes a second."""
    return {
        "model": {
            "width": 32,
            "depth": 2,
            "vocabulary": 300,
            "pattern": ["gated_delta", "attention"],
            "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
            "attention": {"heads": 2, "norm": "output", "position": "none"},
            "mlp": {"width": 48},
        },
        "data": {"source": [str(texts)], "tokenizer": "train:300", "length": 48, "rows": 4},
        "train": {"tokens": 20 * 192, "evaluations": 4, "evaluation_tokens": 960, "checkpoints": 5},
    }
