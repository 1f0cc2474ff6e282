"""Answers of a given form: a JSON schema, a regular expression, a choice or a grammar, kept at every token.

`llguidance` says which tokens may come next. Work on one token is bounded, so that no form holds up others for long.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from interlace.base.errors import ConfigError
from interlace.data.tokenizer import Tokenizer
from interlace.generation.enforced import check_schema, enforced, schemas
from interlace.model.model import HybridLM

WHITESPACE = r" |\n {0,32}"  # between the marks of JSON; without a bound, a weak model writes blanks for ever
LONGEST, MOST_CHOICES = 64 << 10, 1000  # characters of a regular expression or grammar, and texts to choose among
KEPT = 64  # compiled grammars of a model
ASKED = 100  # schemas that are tried by themselves, to say which one cannot be enforced


@dataclass(frozen=True)
class Structure:
    """The form of an answer.

    Attributes:
        grammar: as llguidance reads it.
        after: the form begins after this text, and what comes before is free; "" for at once.
        first: a text before which `after` is not looked for, such as the end of a thought; "" for none.
        again: whether the form may come several times, with free text between; else the answer ends with it.
        field: what asks for it, for messages.
    """

    grammar: str
    after: str = ""
    first: str = ""
    again: bool = False
    field: str = "structure"

    @staticmethod
    def json_schema(schema: Any, field: str = "schema", after: str = "") -> Structure:
        """Return the form of JSON that a schema allows.

        Raises:
            ConfigError: part of the schema would not be enforced; the message holds a JSON pointer to it.
        """
        check_schema(schema, field)
        return Structure(_of_schema(enforced(schema)), after, field=field)

    @staticmethod
    def json_object(after: str = "") -> Structure:
        """Return the form of any JSON object."""
        return Structure(_of_schema({"type": "object"}), after)

    @staticmethod
    def regex(pattern: str, field: str = "regex", after: str = "") -> Structure:
        """Return the form of a text that a regular expression matches as a whole; it cannot look around or back.

        Raises:
            ConfigError: it is too long.
        """
        _check_length(pattern, field)
        from llguidance import LLMatcher

        return Structure(LLMatcher.grammar_from_regex(pattern), after, field=field)

    @staticmethod
    def choice(texts: Sequence[str], field: str = "choice", after: str = "") -> Structure:
        """Return the form of one of some texts.

        Raises:
            ConfigError: there is none, or one is empty.
        """
        if not texts or len(texts) > MOST_CHOICES or not all(isinstance(t, str) and t for t in texts):
            raise ConfigError(f"{field}: must be a list of 1 to {MOST_CHOICES} texts that are not empty")
        _check_length("".join(texts), field)
        return Structure.lark("start: " + " | ".join(json.dumps(text) for text in texts), field, after)

    @staticmethod
    def lark(grammar: str, field: str = "grammar", after: str = "") -> Structure:
        """Return the form of what a grammar in llguidance's dialect of Lark derives.

        Raises:
            ConfigError: it is too long.
        """
        _check_length(grammar, field)
        return Structure(json.dumps({"grammars": [{"lark_grammar": grammar}]}), after, field=field)


def spaced(schema: Any) -> Any:
    """Return a schema as llguidance reads it, with a bound on the blanks between the marks of JSON."""
    return {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}} if isinstance(schema, dict) else schema


def _of_schema(schema: Any) -> str:
    return json.dumps({"grammars": [{"json_schema": spaced(schema)}]})


def _check_length(text: str, field: str) -> None:
    if not isinstance(text, str) or not text or len(text) > LONGEST:
        raise ConfigError(f"{field}: must be a text of 1 to {LONGEST:,} characters")


class Grammars:
    """Compiled grammars of a model, the latest of which are kept; any thread may ask.

    Attributes:
        ends: tokens that stand for an end, and for no text.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: Collection[int]):
        """Read the tokenizer, which takes a second for a large one.

        ends: tokens that end an answer.

        Raises:
            ConfigError: llguidance is missing, or cannot read this tokenizer.
        """
        try:
            from llguidance import LLMatcher, LLParserLimits, LLTokenizer
        except ImportError:
            raise ConfigError('structure: needs llguidance; run `pip install "interlace[serve]"`') from None
        size = min(vocabulary, tokenizer.fast.get_vocab_size())
        self.ends = [token for token in sorted(ends) if token < size] or [size - 1]  # one must be named
        try:
            self._tokens = LLTokenizer(tokenizer.fast.to_str(), n_vocab=vocabulary, eos_token=self.ends)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"structure: forms cannot be kept with this tokenizer: {error}") from None
        self._matcher = LLMatcher
        self._limits = LLParserLimits(
            initial_lexer_fuel=500_000, step_lexer_fuel=50_000, step_max_items=20_000, verbose_errors=False
        )
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, structure: Structure) -> Any:
        """Return what follows a form, at its beginning.

        Raises:
            ConfigError: there is no such form, or it is too complex.
        """
        with self._lock:
            found = self._kept.get(structure.grammar)
            if found is not None:
                self._kept.move_to_end(structure.grammar)
        if found is None:
            found = self._compiled(structure)
            with self._lock:
                self._kept[structure.grammar] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found.deep_copy()

    def _compiled(self, structure: Structure) -> Any:
        made = self._matcher(self._tokens, structure.grammar, log_level=0, limits=self._limits)
        if not made.is_error():
            made.compute_bitmask()  # what the first token costs is paid once, and a form that allows none is refused
        if made.is_error():
            raise ConfigError(f"{structure.field}: {self._reason(made.get_error(), structure.grammar)}")
        return made

    def _reason(self, error: str, grammar: str) -> str:
        """Return why a grammar was refused; of a schema, with a pointer to the smallest part that is."""
        schema = json.loads(grammar)["grammars"][0].get("json_schema")
        pointer = ""
        if isinstance(schema, dict):
            tables = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            for count, (place, one) in enumerate(schemas(schema)):
                if count == ASKED:
                    break
                if not isinstance(one, dict) or "$ref" in one or not place:
                    continue
                alone = self._matcher(self._tokens, _of_schema({**tables, **one}), log_level=0, limits=self._limits)
                if alone.is_error() and len(place) > len(pointer):
                    pointer, error = place, alone.get_error()
        return f"#{pointer}: {_short(error)}" if isinstance(schema, dict) else _short(error)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token."""
        return bytes(self._tokens.decode_bytes([token]))

    def spelled(self, text: bytes) -> list[int]:
        """Return tokens that spell bytes."""
        return list(self._tokens.tokenize_bytes(text))


def _short(error: str) -> str:
    return " ".join(error.split())[:300]


class Shape:
    """Where one answer stands in its form.

    Attributes:
        met: whether the answer is complete, and can only end.
    """

    def __init__(self, grammars: Grammars, structure: Structure, ends: Collection[int], vocabulary: int):
        """Stand at the beginning.

        ends: tokens that may end the answer wherever the form is complete.

        Raises:
            ConfigError: as `Grammars.matcher`.
        """
        self._grammars, self._structure, self._vocabulary = grammars, structure, vocabulary
        self._ends = torch.tensor(sorted(token for token in ends if token < vocabulary), dtype=torch.int64)
        self._matcher = grammars.matcher(structure)
        self._marks = [mark.encode() for mark in (structure.first, structure.after) if mark]  # that the form waits for
        self._free, self._tail = bool(self._marks), b""
        self.met = False

    def mask(self, logits: Tensor) -> Tensor:
        """Return logits [vocabulary] in which only what the form allows is left.

        Raises:
            ConfigError: the form has grown too complex, or nothing is allowed.
        """
        if self._free:
            return logits
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        if self._matcher.is_error():
            raise ConfigError(f"{self._structure.field}: {_short(self._matcher.get_error())}")
        allowed[self._grammars.ends] = False
        allowed[self._ends] = self._matcher.is_accepting()
        if not bool(allowed.any()):
            raise ConfigError(f"{self._structure.field}: no token of this model goes on in the form that was asked for")
        return logits.masked_fill(~allowed[: self._vocabulary].to(logits.device), float("-inf"))

    def push(self, token: int) -> None:
        """Take a token that was allowed.

        Raises:
            ConfigError: the form has grown too complex.
        """
        if not self._free:
            self._follow([token])
            return
        self._tail += self._grammars.bytes_of(token)
        while self._marks:
            before, found, rest = self._tail.partition(self._marks[0])
            if not found:
                self._tail = before[-len(self._marks[0]) :]
                return
            del self._marks[0]
            self._tail = rest
        self._free, self._tail = False, b""
        self._matcher = self._grammars.matcher(self._structure)
        rest = rest if self._structure.again else rest.lstrip()
        if rest and not self._follow(self._grammars.spelled(rest)):
            if not self._structure.again:
                raise ConfigError(f"{self._structure.field}: a token that ends the thought begins another form")
            self._wait()  # what follows the mark is none of ours

    def _wait(self) -> None:
        """Wait for the mark again."""
        self._free, self._marks = True, [self._structure.after.encode()]

    def _follow(self, tokens: Sequence[int]) -> bool:
        """Take tokens within the form; return whether all fit."""
        taken = self._matcher.try_consume_tokens(list(tokens))
        if self._matcher.is_error():
            raise ConfigError(f"{self._structure.field}: {_short(self._matcher.get_error())}")
        if self._matcher.is_stopped():
            self.met = not self._structure.again
            if self._structure.again:
                self._wait()
        return bool(taken == len(tokens))


_KNOWN: WeakKeyDictionary[HybridLM, Grammars] = WeakKeyDictionary()
_LOCK = threading.Lock()


def grammars_of(model: HybridLM) -> Grammars:
    """Return the grammars of a model; they are made once.

    Raises:
        ConfigError: the model has no tokenizer, or as `Grammars`.
    """
    if model.tokenizer is None:
        raise ConfigError("structure: needs a tokenizer, and the model has none")
    with _LOCK:
        if model not in _KNOWN:
            _KNOWN[model] = Grammars(model.tokenizer, model.config.vocabulary, model.config.tokens.eos)
        return _KNOWN[model]
