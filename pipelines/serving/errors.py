"""Errors that the endpoint answers: a status and a sentence, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        sentence: what was wrong, where, and what to do.
        headers: extra response headers.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def unavailable(sentence: str, retry_after_s: int = 1) -> ApiError:
    """A 503 that says when to try again."""
    return ApiError(503, sentence, {"Retry-After": str(retry_after_s)})


def no_such_route() -> ApiError:
    """The 404 of a path that the endpoint does not have."""
    return ApiError(404, "There is no such route. /docs lists the routes.")


def as_sentence(text: str) -> str:
    """An error message of other code as a sentence: a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def error_response(error: ApiError, request_id: str) -> Response:
    """The JSON body that every error has."""
    body = json.dumps({"error": error.sentence, "request_id": request_id})
    return Response(body, error.status, error.headers, media_type="application/json")
