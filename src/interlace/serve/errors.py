"""What goes wrong with a request, as OpenAI's clients read it: a status, and a body that names the field."""

from __future__ import annotations

from typing import Any

from interlace.base.errors import ConfigError, DataError, InterlaceError, PromptTooLong, ShapeError

FIELDS = {"memory", "engine"}  # what a message may begin with that is no field of a request


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: what is wrong, and the remedy.
        kind: OpenAI's type of error.
        param: the field, or None.
        code: OpenAI's code, or None.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ):
        """See the attributes."""
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def of_request(error: InterlaceError) -> ApiError:
    """Return the answer to a request that the engine refuses, or that failed."""
    message = str(error)
    if isinstance(error, PromptTooLong):
        return ApiError(400, message, "messages", "context_length_exceeded")
    if isinstance(error, ConfigError | DataError | ShapeError):
        field = message.partition(":")[0]
        known = field.isidentifier() and field not in FIELDS
        return ApiError(400, message, field if known else None, "invalid_value")
    return ApiError(500, "the answer could not be made; the server goes on", kind="server_error")


def unsupported(field: str, why: str) -> ApiError:
    """Return the answer to a field that this server does not serve."""
    return ApiError(400, f"{field}: {why}", field, "unsupported_parameter")
