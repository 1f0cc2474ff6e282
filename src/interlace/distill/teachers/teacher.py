"""The table of a teacher: what it is, what its terms allow, what it costs."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from interlace.base.errors import ConfigError
from interlace.base.schema import Closed

PER = 1_000_000  # tokens that a price is for


class Teacher(Closed):
    """A table `[teachers.NAME]`.

    Attributes:
        kind: "endpoint", anything that speaks OpenAI's protocol, or "local", a checkpoint of ours in this process.
        model: the endpoint's name of the model.
        base_url: the address of the endpoint, such as "http://127.0.0.1:8000/v1".
        api: "chat", or "completions" for models without a chat template.
        key: the name of the environment variable that holds the key, in capitals; none is sent if empty.
        checkpoint: folder of a local teacher.
        device: the device that a local teacher computes on.
        batch: requests that a local teacher answers at once.
        licence: the licence of the model, as its publisher writes it.
        terms: whether its outputs may train other models: "own" (it is ours), "open" (its licence allows it),
            "permitted" (a contract allows it), "unknown", or "forbidden".
        authorisation: who allowed it, and when, where the terms forbid it.
        price_in, price_out: USD for a million tokens; needed for max_cost.
        connections: the most requests in flight.
        timeout_seconds: the time for one try, even if parts of the answer arrive meanwhile.
        tries: how often a request that fails for a passing reason is tried; rate limits do not count.
        patience_seconds: how long an endpoint may be dead, or send everything back, before the run stops.
    """

    kind: Literal["endpoint", "local"] = "endpoint"
    model: str = ""
    base_url: str = ""
    api: Literal["chat", "completions"] = "chat"
    key: str = ""
    checkpoint: str = ""
    device: str = "cpu"
    batch: int = Field(default=32, gt=0)
    licence: str = Field(min_length=1)
    terms: Literal["own", "open", "permitted", "unknown", "forbidden"]
    authorisation: str = ""
    price_in: float | None = Field(default=None, ge=0)
    price_out: float | None = Field(default=None, ge=0)
    connections: int = Field(default=64, gt=0)
    timeout_seconds: float = Field(default=300, gt=0)
    tries: int = Field(default=6, gt=0)
    patience_seconds: float = Field(default=300, ge=0)

    @field_validator("key")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # it may be the key itself: not shown
            raise ValueError(
                "must be the name of an environment variable in capitals, such as TEACHER_KEY, not the key"
            )
        return value

    @model_validator(mode="after")
    def _whole(self) -> Teacher:
        if self.kind == "local":
            if not self.checkpoint:
                raise ValueError("checkpoint: a local teacher needs the folder of its checkpoint")
            return self
        if not self.model or not self.base_url:
            raise ValueError(
                'model and base_url: an endpoint needs both, such as base_url = "http://127.0.0.1:8000/v1"'
            )
        parts = urlsplit(self.base_url)
        try:
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is no number, or too large
            whole = False
        if not whole:
            raise ValueError(f"base_url: must be http://HOST[:PORT]/... or https://..., got {self.base_url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url: holds a name, a password or a query; put the key into a variable and name it")
        return self

    def check_terms(self, name: str) -> None:
        """Raise ConfigError if the terms forbid training other models on its outputs, and nobody has allowed it."""
        if self.terms == "forbidden" and not self.authorisation.strip():
            raise ConfigError(
                f"teachers.{name}.terms: forbid training other models on what it writes; write down who allowed it in "
                f"teachers.{name}.authorisation, or choose a teacher whose terms allow it"
            )

    def secret(self, name: str) -> str:
        """Return the key from the environment; "" if the recipe names no variable.

        Raises:
            ConfigError: the variable is not set, or holds characters that cannot be sent.
        """
        if not self.key:
            return ""
        value = os.environ.get(self.key, "").strip()  # files of settings often leave spaces or \r at ends of lines
        if not value:
            raise ConfigError(f"teachers.{name}.key: the environment variable {self.key} is not set; export it first")
        if not value.isascii() or not value.isprintable():
            raise ConfigError(
                f"teachers.{name}.key: the environment variable {self.key} holds characters that no key has; export it "
                "again"
            )
        return value

    def identity(self) -> dict[str, str]:
        """Return what makes two requests the same question to the same teacher."""
        if self.kind == "local":
            from interlace.checkpoint.fingerprint import fingerprint

            return {"checkpoint": fingerprint(self.checkpoint)}
        return {"model": self.model, "base_url": self.base_url.rstrip("/"), "api": self.api}

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the USD for a request; 0 where no price is given."""
        return (prompt_tokens * (self.price_in or 0.0) + answer_tokens * (self.price_out or 0.0)) / PER
