"""The keys that requests bear: read from a file that only its owner can read, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

from interlace.base.errors import ConfigError

SHORTEST = 16  # characters


class Keys:
    """The keys of a server; who bears one is known by its digest alone."""

    def __init__(self, keys: list[str]):
        """keys: none lets everybody in."""
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._digests)

    @staticmethod
    def read(path: Path) -> Keys:
        """Read a key from each line of a file; empty lines and lines that begin with # are none.

        Raises:
            ConfigError: it cannot be read, others can read it, or a key is short.
        """
        try:
            mode = path.stat().st_mode
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file: {path}: cannot be read: {error}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"api_key_file: {path}: others can read it; run `chmod 600 {path}`")
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"api_key_file: {path}: holds no key; write one on a line")
        if any(len(key) < SHORTEST for key in keys):
            raise ConfigError(f"api_key_file: {path}: a key must have at least {SHORTEST} characters")
        return Keys(keys)

    def owner(self, authorization: bytes | None) -> str | None:
        """Return whose states a request may reuse, or None if it bears no key; "" where no key is asked for.

        authorization: the header's value.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        same = [hmac.compare_digest(digest, known) for known in self._digests]  # all, whichever it is
        return digest.hex() if any(same) and scheme.lower() == b"bearer" else None
