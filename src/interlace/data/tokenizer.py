"""A byte-level BPE tokenizer: text to ids, ids to text as they come, and how many bytes each id stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from interlace.base.errors import DataError
from interlace.base.files import write_file
from interlace.data.chat import ChatTemplate

END_OF_TEXT = "<|endoftext|>"
SPECIAL = ("eos_token", "bos_token")


class Tokenizer:
    """Wraps a `tokenizers` tokenizer.

    Attributes:
        fast: the wrapped object.
        eos: id of the token that ends a text, or None.
        chat_template: Jinja that writes conversations, or None.
    """

    def __init__(self, fast: Fast, eos: int | None, chat_template: str | None = None, bos: str = ""):
        """eos: id of the token that ends a text; bos: the text of the one that begins it, for chat templates."""
        self.fast, self.eos, self.chat_template, self.bos = fast, eos, chat_template, bos

    def chat(self) -> ChatTemplate:
        """What writes conversations: the tokenizer's own template, or the default one."""
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
        """Read tokenizer.json, with the end of text that tokenizer_config.json beside it names.

        Raises:
            DataError: it is missing or is no tokenizer.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer file")
        try:
            fast = Fast.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise DataError(f"{path}: is no tokenizer.json: {str(error).splitlines()[0]}") from None
        beside = path.with_name("tokenizer_config.json")
        config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        names = {key: given["content"] if isinstance(given := config.get(key), dict) else given for key in SPECIAL}
        template = config.get("chat_template")
        if isinstance(template, list):  # several by name
            template = next((t["template"] for t in template if t.get("name") == "default"), None)
        file = path.with_name("chat_template.jinja")
        if file.is_file():
            template = file.read_text(encoding="utf-8")
        eos = fast.token_to_id(names["eos_token"] or END_OF_TEXT)
        return Tokenizer(fast, eos, template if isinstance(template, str) else None, names["bos_token"] or "")

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer | None:
        """The tokenizer of a checkpoint folder, or None if it has none."""
        path = folder / "tokenizer.json"
        return Tokenizer.from_file(path) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, as `transformers` reads them."""
        write_file(folder / "tokenizer.json", self.fast.to_str())
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.eos is not None:
            config["eos_token"] = self.fast.id_to_token(self.eos)
        if self.bos:
            config["bos_token"] = self.bos
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        write_file(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    @property
    def vocabulary(self) -> int:
        """Number of ids, special ones included."""
        return self.fast.get_vocab_size(with_added_tokens=True)

    def hash(self) -> str:
        """sha256 of the tokenizer's own JSON."""
        return hashlib.sha256(self.fast.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        return [e.ids for e in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.fast.decode(ids, skip_special_tokens=True)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Pieces of text as ids come; a character split over several ids is held back until it is whole."""
        held: list[int] = []
        shown = ""
        for token in ids:
            held.append(token)
            text = self.decode(held)
            if text.endswith("�") and len(held) < 16:
                continue
            if len(text) > len(shown):
                yield text[len(shown) :]
            shown = text
            if len(held) > 4 and not text.endswith("�"):  # the last id keeps the decoder's context
                held = held[-1:]
                shown = self.decode(held)
        text = self.decode(held)
        if len(text) > len(shown):
            yield text[len(shown) :]

    def byte_lengths(self) -> Tensor:
        """int32 [vocabulary]: how many bytes of text each id stands for, 0 for special tokens."""
        special = set(self.fast.get_added_tokens_decoder())
        names = (self.fast.id_to_token(i) or "" for i in range(self.vocabulary))
        # a byte-level token's name has one character for each byte
        return torch.tensor([0 if i in special else len(n) for i, n in enumerate(names)], dtype=torch.int32)
