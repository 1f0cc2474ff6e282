"""A tokenizer of any kind: text to ids, ids to text as they come, and the bytes that each id stands for."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from interlace.base.errors import DataError
from interlace.base.files import write_file
from interlace.base.links import alongside, inside
from interlace.base.text import clean
from interlace.data.chat import ChatTemplate
from interlace.data.decoding import Decoding
from interlace.data.strangers import guarded, open_fast
from interlace.data.word_cache import WordCache

END_OF_TEXT = "<|endoftext|>"
TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, PROCESSOR_TEMPLATE = "chat_template.jinja", "chat_template.json"
MANY_CHARACTERS = 1 << 14  # for which the ids of words are kept
CONFIGS, EOS_ID = ("config.json", "generation_config.json"), "eos_token_id"  # of the model, beside its tokenizer
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    TEMPLATE,
    PROCESSOR_TEMPLATE,
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tiktoken.model",
    "additional_chat_templates/*.jinja",
)


class Tokenizer:
    """Wraps a `tokenizers` tokenizer.

    Attributes:
        fast: the wrapped object.
        eos: id of the token that ends a text, or None.
        bos: the text of the token that begins one, for chat templates.
        chat_template: Jinja that writes conversations, or None.
        begin: ids that the tokenizer's post-processor puts before every text; conversations have their template's.
        files: what lay beside the tokenizer, by name, to be saved again.
    """

    def __init__(
        self,
        fast: Fast,
        eos: int | None,
        chat_template: str | None = None,
        bos: str = "",
        files: Mapping[str, bytes] | None = None,
    ):
        """Take the attributes as arguments."""
        self.fast, self.eos, self.chat_template, self.bos = fast, eos, chat_template, bos
        self.begin = tuple(_begins(fast))
        self.files = dict(files or {})
        self._as_read = (eos, chat_template, bos)
        self._own = (-1, 0)
        self._words: tuple[int, WordCache | None] = (-1, None)
        self._says_end = True  # whether its own files name an end of text, or say that it has none

    def chat(self) -> ChatTemplate:
        """Return the chat template that writes conversations: the tokenizer's own, or the default one."""
        eos = "" if self.eos is None else self.fast.id_to_token(self.eos) or ""
        return ChatTemplate(self.chat_template, eos, self.bos)

    @staticmethod
    def train(texts: Iterable[str], vocabulary: int, special: Sequence[str] = ()) -> Tokenizer:
        """Learn a byte-level BPE of at most `vocabulary` entries, one of them the end of a text.

        special: texts that are to be one entry each, such as what ends a turn.

        Raises:
            DataError: fewer entries than there are bytes, or no text.
        """
        if vocabulary < 257:
            raise DataError(f"tokenizer: a byte-level BPE needs at least 257 entries, got {vocabulary}")
        fast = Fast(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[END_OF_TEXT, *special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        fast.train_from_iterator(texts, trainer)
        return Tokenizer(fast, fast.token_to_id(END_OF_TEXT))

    @staticmethod
    def from_file(path: Path) -> Tokenizer:
        """Read a tokenizer.json, with what the files beside it say.

        Where the tokenizer's own files name no end of text, it is the one of config.json or generation_config.json.

        Raises:
            DataError: it is missing or is no tokenizer, or a file beside it is damaged or leads out of the folder.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer file")
        inside(path.parent, path)
        tokenizer = Tokenizer.from_files({**alongside(path.parent, TOKENIZER_FILES[1:]), TOKENIZER: path})
        if not tokenizer._says_end:
            tokenizer.eos = next(iter(_ends_beside(path.parent, tokenizer.fast)), tokenizer.eos)
        return tokenizer

    @staticmethod
    def from_files(files: Mapping[str, Path]) -> Tokenizer:
        """The tokenizer of some files by the names of TOKENIZER_FILES, tokenizer.json among them.

        Truncation, padding and dropout that a file was saved with are switched off: texts are read whole.

        Raises:
            DataError: one is damaged; the message names it.
        """
        raw = {}
        for name, file in files.items():
            try:
                raw[name] = file.read_bytes()
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
        fast = _whole_texts(open_fast(raw[TOKENIZER], files[TOKENIZER]))
        tables = [(files[n], _table(raw[n], files[n])) for n in (TOKENIZER_CONFIG, SPECIAL_TOKENS) if n in raw]
        named = {
            kind: next((text for path, table in tables if (text := token_text(table, f"{kind}_token", path))), "")
            for kind in ("eos", "bos")
        }
        none = not named["eos"] and any("eos_token" in table for path, table in tables if path.name == SPECIAL_TOKENS)
        eos = None if none else fast.token_to_id(named["eos"] or END_OF_TEXT)
        tokenizer = Tokenizer(fast, eos, _template(raw, files), named["bos"], files=raw)
        tokenizer._says_end = none or (bool(named["eos"]) and eos is not None)
        return tokenizer

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer | None:
        """The tokenizer of a folder, or None if it has none."""
        path = folder / TOKENIZER
        return Tokenizer.from_file(path) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Write the files that `transformers` reads: as they were read, with what was changed since."""
        fast = self.fast.to_str()
        kept = dict(self.files)
        if TOKENIZER not in kept or _whole_texts(open_fast(kept[TOKENIZER], TOKENIZER)).to_str() != fast:
            kept[TOKENIZER] = fast.encode()
        if TOKENIZER_CONFIG not in kept or self._as_read != (self.eos, self.chat_template, self.bos):
            kept = self._changed(kept)
        for name, raw in kept.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_file(folder / name, raw)

    def _changed(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """Return the files with the end of text, the beginning and the template that this tokenizer now has."""
        new = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config = _table(files[TOKENIZER_CONFIG], TOKENIZER_CONFIG) if TOKENIZER_CONFIG in files else new
        eos = None if self.eos is None else self.fast.id_to_token(self.eos)
        for key, text, as_read in (
            ("eos_token", eos, self.eos == self._as_read[0]),
            ("bos_token", self.bos or None, self.bos == self._as_read[2]),
        ):
            if token_text(config, key, TOKENIZER_CONFIG) != (text or ""):
                config = {**config, key: text} if text else {k: v for k, v in config.items() if k != key}
            if not as_read:
                files = _with_special(files, key, text)
        if self.chat_template != self._as_read[1] or TOKENIZER_CONFIG not in files:
            files.pop(PROCESSOR_TEMPLATE, None)
            config.pop("chat_template", None)
            if TEMPLATE in files and self.chat_template is not None:
                files[TEMPLATE] = self.chat_template.encode()
            else:
                files.pop(TEMPLATE, None)
                config |= {} if self.chat_template is None else {"chat_template": self.chat_template}
        files[TOKENIZER_CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
        return files

    @property
    def vocabulary(self) -> int:
        """The largest id, added tokens included, plus one; ids may have holes."""
        return max([self.own_vocabulary - 1, *self.fast.get_added_tokens_decoder()]) + 1

    @property
    def own_vocabulary(self) -> int:
        """The largest id without the tokens that were added to its model, plus one."""
        count = self.fast.get_vocab_size(with_added_tokens=False)
        if self._own[0] != count:
            self._own = (count, max(self.fast.get_vocab(with_added_tokens=False).values(), default=-1) + 1)
        return self._own[1]

    def hash(self) -> str:
        """sha256 of the tokenizer's own JSON."""
        return hashlib.sha256(self.fast.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with nothing added."""
        return guarded(lambda: self.fast.encode(text, add_special_tokens=False).ids, "tokenizer: cannot read this text")

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text that stands by itself, begun as the tokenizer begins texts."""
        return self.begun(self.encode(text))

    def begun(self, ids: list[int]) -> list[int]:
        """Return the ids with those that begin a text before them, unless they are there already."""
        begin = list(self.begin)
        return ids if ids[: len(begin)] == begin else begin + ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of many texts, with nothing added."""
        return guarded(lambda: self._encoded(texts), "tokenizer: cannot read a text")

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        words = self._words_of() if sum(map(len, texts)) >= MANY_CHARACTERS else None
        found = [None] * len(texts) if words is None else [words.encode(text) for text in texts]
        rest = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        others = iter(self.fast.encode_batch_fast(rest, add_special_tokens=False) if rest else ())
        return [next(others).ids if ids is None else ids for ids in found]

    def _words_of(self) -> WordCache | None:
        """Return the ids of words, as long as the tokenizer has the tokens that it had."""
        count = self.fast.get_vocab_size()
        if self._words[0] != count:
            self._words = (count, WordCache.of(self.fast))
        return self._words[1]

    def encode_pieces(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Return the ids of each piece of each text, cut where the text is cut.

        Text before a cut is read as it would be without the text that follows, which is how a model is asked. Text
        after a cut is read as the middle of a text: no tokenizer puts a blank before it.
        """
        alone = iter(self.encode_batch([piece for pieces in texts for piece in pieces]))
        pairs = [before + piece for pieces in texts for before, piece in itertools.pairwise(pieces)]
        joined = iter(self.encode_batch(pairs))
        found = []
        for pieces in texts:
            ids = [next(alone) for _ in pieces]
            in_text = ids[:1]
            for before, own in itertools.pairwise(ids):
                both = next(joined)
                in_text.append(both[len(before) :] if both[: len(before)] == before else own)
            found.append(in_text)
        return found

    def end_ids(self, end: str) -> tuple[int, ...]:
        """Return the ids that tell that an answer has ended, from the text that a template ends it with.

        It is the only token of that text, or its first special one; none if it has neither.
        """
        ids, special = self.encode(end), self.special_ids()
        return tuple(ids) if len(ids) == 1 else tuple([i for i in ids if i in special][:1])

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens are left out."""
        return guarded(lambda: self.fast.decode(ids, skip_special_tokens=True), "tokenizer: cannot write these ids")

    def stream(self, ids: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
        """Yield pieces of text as ids come; joined, they are what `decode` makes of all ids.

        after: ids of the text that these continue; with it, a blank at their start stays.
        """
        decoding = self.decoding(after)
        for token in ids:
            if piece := decoding.push(token):
                yield piece
        if piece := decoding.end():
            yield piece

    def decoding(self, after: Sequence[int] = ()) -> Decoding:
        """Return the decoder of one text; it begins in the middle of a text if ids of one came before."""
        decoding = Decoding(self.fast)
        last = next((token for token in reversed(after) if decoding.token(token) is not None), None)
        if last is not None:
            decoding.begin_after()
        return decoding

    def special_ids(self) -> dict[int, str]:
        """Ids that are left out of decoded texts, and their own texts."""
        return {i: token.content for i, token in self.fast.get_added_tokens_decoder().items() if token.special}

    def byte_lengths(self) -> Tensor:
        """int32 [vocabulary]: how many bytes of text each id stands for in the middle of one, 0 for special tokens."""
        decoding = Decoding(self.fast)
        return torch.tensor([decoding.size_bytes(i) for i in range(self.vocabulary)], dtype=torch.int32)

    def lead_bytes(self, ids: Sequence[int]) -> int:
        """Return how many bytes fewer ids at the start of a text have than `byte_lengths` says."""
        return Decoding(self.fast).lead_bytes(ids)


def token_text(table: Mapping[str, Any], key: str, path: Path | str) -> str:
    """The text of a token that a tokenizer's config names, as it is or as a table with its content; "" for none.

    Raises:
        DataError: something else stands there.
    """
    given = table.get(key)
    text = given.get("content", given) if isinstance(given, dict) else given
    if text is None:
        return ""
    if not isinstance(text, str) or clean(text) != text:
        raise DataError(f"{path}: {key} must be a token's text, or a table with its content, got {given!r:.80}")
    return text


def _whole_texts(fast: Fast) -> Fast:
    """Switch off the truncation, padding and dropout that a file was saved with: they would cut or fill texts."""
    fast.no_truncation()
    fast.no_padding()
    if getattr(fast.model, "dropout", None):
        fast.model.dropout = None
    return fast


def _begins(fast: Fast) -> list[int]:
    """Return the ids that a tokenizer's post-processor puts before a text."""
    encoding = guarded(lambda: fast.encode("a"), "tokenizer: cannot read a text")
    first = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    return encoding.ids[:first]


def _table(raw: bytes, path: Path | str) -> dict[str, Any]:
    """Return a JSON table, or raise DataError."""
    try:
        table = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{path}: must be a table, got {type(table).__name__}")
    return table


def _ends_beside(folder: Path, fast: Fast) -> list[int]:
    """Return the ends of text that the model's configs name and the tokenizer has; ids below 0 are left out."""
    configs = alongside(folder, CONFIGS)
    tables = [(path, _table(path.read_bytes(), path)) for path in configs.values()]
    inner = [(path, table.get("text_config")) for path, table in tables]
    found: list[int] = []
    for path, table in [*inner, *tables]:
        given = table.get(EOS_ID) if isinstance(table, dict) else None
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if any(type(i) is not int for i in ids):
            raise DataError(f"{path}: {EOS_ID} must be an id or a list of ids, got {given!r:.80}")
        found += ids
    return [i for i in found if 0 <= i < 1 << 32 and fast.id_to_token(i) is not None]


def _with_special(files: dict[str, bytes], key: str, text: str | None) -> dict[str, bytes]:
    """Return the files, with special_tokens_map.json naming this token alone; null there means that there is none."""
    table = _table(files[SPECIAL_TOKENS], SPECIAL_TOKENS) if SPECIAL_TOKENS in files else {}
    if text is not None and token_text(table, key, SPECIAL_TOKENS) in ("", text):
        return files
    return {**files, SPECIAL_TOKENS: (json.dumps({**table, key: text}, indent=2) + "\n").encode()}


def _is_named_template(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _template(raw: Mapping[str, bytes], files: Mapping[str, Path]) -> str | None:
    """Return the chat template: a file of its own, or the default one of a tokenizer's or processor's config."""
    if TEMPLATE in raw:
        try:
            return raw[TEMPLATE].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{files[TEMPLATE]}: is not UTF-8: {error}") from None
    for name in (PROCESSOR_TEMPLATE, TOKENIZER_CONFIG):
        given = _table(raw[name], files[name]).get("chat_template") if name in raw else None
        if given is None:
            continue
        if isinstance(given, list):  # several by name
            if wrong := [entry for entry in given if not _is_named_template(entry)]:
                raise DataError(f"{files[name]}: chat_template holds {wrong[0]!r:.80}, not a name and a template")
            given = {t["name"]: t["template"] for t in given}
        if isinstance(given, dict):
            given = given.get("default")
        if given is not None and not isinstance(given, str):
            raise DataError(f"{files[name]}: chat_template must be text, or a list of named texts, got {given!r:.80}")
        return given
    return None
