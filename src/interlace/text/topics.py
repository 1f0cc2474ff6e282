"""Find what many texts are about, and how much they repeat themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

WORD = re.compile(r"[^\W\d_]{3,}")
TOKEN = re.compile(r"\w+")
WORDS, DIRECTIONS, MOST_TOPICS = 5000, 40, 12


@dataclass(frozen=True)
class Topic:
    """A cluster of texts.

    Attributes:
        words: that set it apart from the others.
        texts: places of its texts, the most typical first.
    """

    words: tuple[str, ...]
    texts: tuple[int, ...]


def topics(texts: Sequence[str], seed: int = 0) -> list[Topic]:
    """Return clusters of texts, largest first; none for fewer than 20 texts.

    k-means over the leading directions of TF-IDF; k is the square root of half the number of texts, at most 12. Source
    of the
    method: Deerwester et al., 1990 (latent semantic analysis); weights log(1 + tf) log(n / df).
    """
    if len(texts) < 20:
        return []
    found = [Counter(WORD.findall(t.lower())) for t in texts]
    spread = Counter(w for words in found for w in words)
    known = [w for w, n in spread.most_common(2 * WORDS) if 2 <= n <= 0.5 * len(texts)][:WORDS]
    if len(known) < 10:
        return []
    place = {w: i for i, w in enumerate(known)}
    rows, columns, values = [], [], []
    for row, words in enumerate(found):
        for word, n in words.items():
            if word in place:
                rows.append(row)
                columns.append(place[word])
                values.append(np.log1p(n) * np.log(len(texts) / spread[word]))
    matrix = csr_matrix((values, (rows, columns)), shape=(len(texts), len(known)))
    k = int(min(MOST_TOPICS, max(2, np.sqrt(len(texts) / 2))))
    size = min(DIRECTIONS, min(matrix.shape) - 1)
    left, scale, _ = svds(matrix, k=size, random_state=np.random.default_rng(seed))
    points = left * scale
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
    centres, own = kmeans2(points, k, minit="++", rng=np.random.default_rng(seed), missing="warn")
    mean = np.asarray(matrix.mean(0)).ravel()
    made = []
    for c in range(k):
        members = np.flatnonzero(own == c)
        if not len(members):
            continue
        lift = np.asarray(matrix[members].mean(0)).ravel() - mean
        order = members[np.argsort(-(points[members] @ centres[c]))]
        made.append(Topic(tuple(known[i] for i in np.argsort(-lift)[:6]), tuple(int(i) for i in order)))
    return sorted(made, key=lambda t: -len(t.texts))


def distinct(texts: Sequence[str], longest: int = 4) -> list[tuple[int, int, int]]:
    """Return (n, different runs of n words, all runs) for n from 1; few different ones mean that texts repeat.

    Source: distinct-n, Li et al., arXiv 1510.03055.
    """
    made = []
    for n in range(1, longest + 1):
        seen: set[tuple[str, ...]] = set()
        total = 0
        for text in texts:
            words = TOKEN.findall(text.lower())
            for i in range(len(words) - n + 1):
                seen.add(tuple(words[i : i + n]))
                total += 1
        made.append((n, len(seen), total))
    return made
