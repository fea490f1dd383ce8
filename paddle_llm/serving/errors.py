"""Errors of requests, with the status and the fields of OpenAI's error object."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is not answered.

    Args:
        message: What is wrong, and what to do.
        status: Status of the response; default 400.
        param: Name of the field that is wrong; None: no single field.
        code: Name of the kind of error for programs; None: the status is enough.
        retry_after: Seconds after which the client may try again; None: trying again does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.retry_after = message, status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        return {"error": {"message": self.message, "type": self._kind, "param": self.param, "code": self.code}}

    @property
    def _kind(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"
