"""What the routes make of the model's answers."""

from __future__ import annotations

from pipelines.serving.backend import Outcome
from pipelines.serving.errors import ApiError, as_sentence
from pipelines.serving.metrics import Metrics


def checked(outcome: Outcome, metrics: Metrics) -> Outcome:
    """The outcome of a request, counted.

    Raises:
        ApiError: 422 where the model refused the input (of a session also 404, 409, 429 or 503), 500 where it failed.
    """
    if outcome.first:
        metrics.observe_batch(outcome.batch_size)
    metrics.observe_model(outcome)
    if outcome.error:
        status = outcome.status if outcome.rejected else 500
        raise ApiError(status, as_sentence(outcome.error), {"Retry-After": "5"} if status in (429, 503) else None)
    return outcome
