"""Find the ids that end, begin and pad a text, in all of a release's files: each release states them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace.checkpoint.families.parts import token_ids
from interlace.checkpoint.folder import CONFIG, GENERATION, read_table
from interlace.data.tokenizer import SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, token_text
from interlace.model.config import SpecialTokens

KEYS = {"eos": "eos_token_id", "bos": "bos_token_id", "pad": "pad_token_id"}


def special_tokens(folder: Path, config: Mapping[str, Any], text: Mapping[str, Any], vocabulary: int) -> SpecialTokens:
    """Return the union of the ends, and the first id that begins and that pads a text.

    Sources, in order: the config of the text model, the config around it, generation_config.json, and the tokens that
    the tokenizer's own files name. Ids below 0 mean none. Ids that the model's vocabulary lacks are left out.

    Args:
        config: config.json.
        text: the part of it that describes the text model.

    Raises:
        CheckpointError: a key holds no id, or a file is damaged.
    """
    tables = [(CONFIG, text), (CONFIG, config), (GENERATION, generation_config(folder))]
    found: dict[str, list[int]] = {kind: [] for kind in KEYS}
    for name, table in tables:
        for kind, key in KEYS.items():
            found[kind] += token_ids(table, key, folder / name)
    for kind, ids in _named_by_the_tokenizer(folder).items():
        found[kind] += ids
    eos, bos, pad = (list(dict.fromkeys(i for i in found[kind] if i < vocabulary)) for kind in KEYS)
    return SpecialTokens(eos=tuple(eos), bos=next(iter(bos), None), pad=next(iter(pad), None))


def generation_config(folder: Path) -> dict[str, Any]:
    """Return generation_config.json, empty if there is none."""
    path = folder / GENERATION
    return read_table(folder, GENERATION, "the generation config") if path.exists() or path.is_symlink() else {}


def _named_by_the_tokenizer(folder: Path) -> dict[str, list[int]]:
    """Return the ids of the tokens that the tokenizer's files name as eos, bos and pad."""
    named: dict[str, list[str]] = {kind: [] for kind in KEYS}
    ids: dict[str, int] = {}
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        if not (folder / name).exists():
            continue
        table = read_table(folder, name, "the tokenizer's config")
        for kind in KEYS:
            if text := token_text(table, f"{kind}_token", folder / name):
                named[kind].append(text)
        decoder = table.get("added_tokens_decoder")
        for number, token in decoder.items() if isinstance(decoder, dict) else ():
            content = token.get("content") if isinstance(token, dict) else None
            if number.isascii() and number.isdigit() and len(number) < 10 and isinstance(content, str):
                ids[content] = int(number)
    wanted = {text for texts in named.values() for text in texts}
    if wanted - ids.keys() and (folder / TOKENIZER).exists():
        ids |= _ids_of(read_table(folder, TOKENIZER, "the tokenizer"), wanted)
    return {kind: [ids[text] for text in texts if text in ids] for kind, texts in named.items()}


def _ids_of(tokenizer: Mapping[str, Any], wanted: set[str]) -> dict[str, int]:
    """Return the ids of these texts in a tokenizer.json, whose model may be a table of ids or a list of pieces."""
    found: dict[str, int] = {}
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        found |= {text: vocabulary[text] for text in wanted if isinstance(vocabulary.get(text), int)}
    elif isinstance(vocabulary, list):
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in vocabulary]
        found |= {text: pieces.index(text) for text in wanted if text in pieces}
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and token.get("content") in wanted and isinstance(token.get("id"), int):
            found[token["content"]] = token["id"]
    return found
