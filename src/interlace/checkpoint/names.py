"""Explain a stored tensor whose name the model lacks: a wrapper's prefix, an adapter, or a misspelling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from interlace.base.errors import nearest
from interlace.checkpoint.family import Family

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.")
LACKED = ("model.", "backbone.")


def unknown_name(name: str, stored: Sequence[str], known: Collection[str], family: Family) -> str:
    """Return one sentence about the first unknown name, or about nearly all of them if they have one fault.

    Args:
        stored: the names that are to be loaded.
        known: the names that the model has.
    """
    if any(".lora_A." in n or ".base_layer." in n for n in stored):
        return "holds LoRA weights that were not merged; merge the adapter into its base model, and load the result"

    def belongs(n: str) -> bool:
        return n in known or family.keeps(n) or family.ignores(n)

    if prefix := _prefix(stored, belongs):
        every = "every" if all(n.startswith(prefix) for n in stored) else "nearly every"
        return (
            f"{every} tensor's name begins with the prefix '{prefix}', as wrappers (PEFT, torch.compile, DDP, FSDP) "
            "save them; save the model that is inside, or rename its tensors"
        )
    if lacked := next((p for p in LACKED if _renamed(stored, [p + n for n in stored], belongs)), ""):
        return f"the tensors' names lack the prefix '{lacked}'; rename them, or save the whole model"
    for wrapper in WRAPPERS:
        if _renamed(stored, [n.replace(wrapper, "") for n in stored], belongs):
            return f"the tensors' names hold '{wrapper.strip('.')}', a wrapper's; save the model that is inside it"
    return f"tensor '{name}' does not belong to this model ({family.model_type}); {nearest(name, known)}"


def _few(stored: Sequence[str]) -> int:
    """Return how many names may be unknown for another reason than the rest."""
    return max(1, len(stored) // 10)


def _prefix(stored: Sequence[str], belongs: Callable[[str], bool]) -> str:
    """Return the text before nearly all names; without it they belong to the model."""
    unknown = [n for n in stored if not belongs(n)]
    cuts = Counter(n[: i + 1] for n in unknown for i, letter in enumerate(n) if letter == "." and belongs(n[i + 1 :]))
    prefix, count = max(cuts.items(), key=lambda item: item[1], default=("", 0))
    return prefix if len(stored) - count <= _few(stored) else ""


def _renamed(stored: Sequence[str], renamed: Sequence[str], belongs: Callable[[str], bool]) -> bool:
    """Return whether names that do not belong to the model do so by their new form, all but a few."""
    unknown = [new for old, new in zip(stored, renamed, strict=True) if not belongs(old)]
    left = [new for new in unknown if not belongs(new)]
    return len(left) < len(unknown) and len(left) <= _few(stored)
