"""The ids of words, kept: those of the library for every text that has an answer, and no answer for any other."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

from interlace.data.tokenizer import Tokenizer
from interlace.data.word_cache import GPT2, WordCache, _categories

# In the forms that published tokenizers have.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
READ = [chr(number) for number, category in enumerate(_categories()) if category]
COMMON = "aAbZ019 '\"!\n\r\t  sSlLdré’—中文 \xa0\u3000İıß"


@pytest.fixture(scope="module")
def learnt():
    text = ["the cat isn't 1234 here, it's\n\n  the Dog's — a cat’s 中文 day\r\n\t"] * 4
    return Tokenizer.train(text, 400).fast.to_str()


def split_by(learnt, *patterns, behavior="isolated", invert=False):
    fast = Fast.from_str(learnt)
    parts = [pre_tokenizers.Split(Regex(p), behavior, invert) for p in patterns]
    fast.pre_tokenizer = pre_tokenizers.Sequence([*parts, BYTES])
    return fast


def texts(step, count):
    draw = random.Random(0)
    found = ["", " ", "a" * 300, "\n" * 9, "'S 'ſ x'll"]
    for _ in range(count):
        letters = [draw.choice(COMMON if draw.random() < 0.6 else READ) for _ in range(draw.randint(0, 60))]
        found.append("".join(letters))
    return found + [f"a{c}1{c}!{c} {c}\n{c}'s{c}A" for c in READ[::step]]


@pytest.mark.parametrize("name", ["gpt2", "qwen", "llama", "tekken", "cl100k", "two"])
def test_ids_are_those_of_the_library(learnt, name):
    patterns = {"qwen": [QWEN], "llama": [LLAMA], "tekken": [TEKKEN], "cl100k": [CL100K], "two": [r"\p{N}{1,3}", GPT2]}
    fast = split_by(learnt, *patterns[name]) if name in patterns else Fast.from_str(learnt)
    words, given = WordCache.of(fast), texts(3 if name == "gpt2" else 47, 1000)
    assert words is not None
    answered = 0
    for text, encoding in zip(given, fast.encode_batch_fast(given, add_special_tokens=False), strict=True):
        ids = words.encode(text)
        assert ids is None or ids == encoding.ids, text
        answered += ids is not None
    assert answered > (0 if name == "two" else 0.99 * len(given))


@pytest.mark.parametrize(
    "pattern",
    [r"\d+|\D+", r"\p{L}+|.", r"[\w]+|\W+", r"[a-z&&[^b]]+|\s+", r"(?>a|b)+", r"(?<=a)b|a", r"\p{Han}+|\s", r"a{2,}+"],
)
def test_an_expression_that_may_be_read_otherwise_has_no_answer(learnt, pattern):
    assert WordCache.of(split_by(learnt, pattern)) is None


def test_other_tokenizers_have_no_answer(learnt):
    prefixed, lower, digits = Fast.from_str(learnt), Fast.from_str(learnt), Fast.from_str(learnt)
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lower.normalizer = normalizers.Lowercase()
    digits.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES])
    removed = split_by(learnt, r" ", behavior="removed")
    assert [WordCache.of(fast) for fast in (prefixed, lower, digits, removed, Fast(models.WordLevel()))] == [None] * 5


@pytest.mark.parametrize("text", ["a <|mark|> b", "smile 😀", "long ſ", "new ꟊ", "a<|endoftext|>"])
def test_texts_that_only_the_library_reads_have_no_answer(learnt, text):
    fast = Fast.from_str(learnt)
    fast.add_tokens([AddedToken("<|mark|>")])
    assert WordCache.of(fast).encode(text) is None


def test_texts_are_read_normalised(learnt):
    fast = Fast.from_str(learnt)
    fast.normalizer = normalizers.NFC()
    words = WordCache.of(fast)
    assert words.encode("e\u0301t") is None
    assert words.encode("\xe9t") == fast.encode("e\u0301t", add_special_tokens=False).ids


def test_what_an_expression_leaves_out_has_no_answer(learnt):
    words = WordCache.of(split_by(learnt, r"\p{L}+"))
    assert words.encode("abc") is not None
    assert words.encode("abc 1") is None


def test_a_batch_mixes_both(learnt):
    tokenizer = Tokenizer(Fast.from_str(learnt), None)
    given = ["the cat's day " * 2000, "a 😀 b", "the dog", ""]
    expected = [e.ids for e in tokenizer.fast.encode_batch_fast(given, add_special_tokens=False)]
    assert tokenizer.encode_batch(given) == expected
    tokenizer.fast.add_tokens(["dog"])  # what was kept must not outlive it
    expected = [e.ids for e in tokenizer.fast.encode_batch_fast(given, add_special_tokens=False)]
    assert tokenizer.encode_batch(given) == expected


def test_words_that_are_kept_are_bounded(learnt, monkeypatch):
    monkeypatch.setattr("interlace.data.word_cache.MOST_WORDS", 50)
    fast = Fast.from_str(learnt)
    words, text = WordCache.of(fast), " ".join(f"w{n}" for n in range(500))
    assert words.encode(text) == fast.encode(text, add_special_tokens=False).ids
    assert len(words) <= 50
