"""Triton's interpreter in less time: it looks for what to patch once a launch, not at every call within it."""

from __future__ import annotations

import functools


def hasten() -> None:
    """Leave the language as it is where a launch has patched it for the functions that it calls."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    patch, nothing = interpreter._patch_lang, interpreter._LangPatchScope

    def unless_patched(fn):
        seen = [language for language in (tl, tl.core) if any(language is x for x in fn.__globals__.values())]
        done = all(not tl.core.is_builtin(language.load) for language in seen)
        return nothing() if done else patch(fn)

    interpreter._patch_lang = unless_patched
    of_scalars = functools.cache(interpreter._get_np_dtype)

    def np_dtype(kind):
        scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return address if isinstance(scalar, tl.pointer_type) else of_scalars(scalar)

    address = interpreter._get_np_dtype(tl.pointer_type(tl.float32))
    interpreter._get_np_dtype = np_dtype
