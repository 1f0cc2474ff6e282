"""What to say of a stored tensor whose name the model lacks: a wrapper's prefix, an adapter, or a misspelling."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from interlace.base.errors import nearest

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.")
LACKED = ("model.", "backbone.")


def unknown_name(name: str, stored: Sequence[str], known: Mapping[str, Any], family: str) -> str:
    """One sentence about the first unknown name, or about all of them where they have one fault.

    Args:
        stored: the names that are to be loaded.
        known: the names that the model has.
    """
    if any(".lora_A." in n or ".base_layer." in n for n in stored):
        return "holds LoRA weights that were not merged; merge the adapter into its base model, and load the result"
    if prefix := _prefix(stored, known):
        return (
            f"every tensor's name begins with the prefix '{prefix}', as wrappers (PEFT, torch.compile, DDP, FSDP) save "
            "them; save the model that is inside, or rename its tensors"
        )
    if lacked := next((p for p in LACKED if _most_known([p + n for n in stored], stored, known)), ""):
        return f"the tensors' names lack the prefix '{lacked}'; rename them, or save the whole model"
    for wrapper in WRAPPERS:
        if any(wrapper in n for n in stored) and all(n.replace(wrapper, "") in known for n in stored):
            return f"the tensors' names hold '{wrapper.strip('.')}', a wrapper's; save the model that is inside it"
    return f"tensor '{name}' does not belong to this model ({family}); {nearest(name, known)}"


def _prefix(stored: Sequence[str], known: Collection[str]) -> str:
    """The text before all names without which they are known."""
    first = stored[0]
    cuts = [i + 1 for i, letter in enumerate(first) if letter == "."]
    for cut in reversed(cuts):
        prefix = first[:cut]
        if all(n.startswith(prefix) and n[cut:] in known for n in stored):
            return prefix
    return ""


def _most_known(renamed: Sequence[str], stored: Sequence[str], known: Collection[str]) -> bool:
    """Whether all names but the head's are known by their new form."""
    return all(new in known or old in known for new, old in zip(renamed, stored, strict=True)) and any(
        new in known and old not in known for new, old in zip(renamed, stored, strict=True)
    )
