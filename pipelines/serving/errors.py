"""Errors that the endpoint answers: a status and a sentence, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

PROBLEM_JSON = "application/problem+json"
"""The media type of every error (RFC 9457)."""


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


AGAIN_HEADER = "x-robometer-again"
"""Marks a replica's refusal after which another replica may answer."""


def updating() -> ApiError:
    """The 503 where an update has replaced only some replicas, and those of the request do not fit each other."""
    refusal = unavailable("The endpoint is being updated to a model that sees other frames. Try again in a moment.")
    refusal.headers[AGAIN_HEADER] = "1"
    return refusal


def replaced() -> ApiError:
    """The 503 where an update has replaced the model between two clips of a request."""
    refusal = unavailable("The model was replaced while it answered this request. Send it again.")
    refusal.headers[AGAIN_HEADER] = "1"
    return refusal


def no_such_route() -> ApiError:
    """The 404 of a path that the endpoint does not have."""
    return ApiError(404, "There is no such route. /docs lists the routes.")


def as_sentence(text: str) -> str:
    """An error message of other code as a sentence: a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def problem(error: ApiError, request_id: str) -> dict[str, Any]:
    """The problem details (RFC 9457) of an error. `error` repeats `detail` for clients that look for it."""
    title = HTTPStatus(error.status).phrase
    details = {"type": "about:blank", "title": title, "status": error.status, "detail": error.sentence}
    return details | {"error": error.sentence, "request_id": request_id}


def error_response(error: ApiError, request_id: str) -> Response:
    """The answer that every error has."""
    return Response(json.dumps(problem(error, request_id)), error.status, error.headers, media_type=PROBLEM_JSON)
