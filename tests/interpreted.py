"""Triton's interpreter in less time: it looks for what to patch once a launch, not at every call of a device function."""

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
    interpreter._get_np_dtype = functools.cache(interpreter._get_np_dtype)
