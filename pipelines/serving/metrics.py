"""Metrics of an ingress replica: in Ray's exporter, where those of all replicas add up, and at its own `/metrics`.

The two have the same numbers under different names, `ray_robometer_...` and `robometer_...`, so that none counts twice.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipelines.serving.backend import Outcome
from pipelines.serving.records import Record
from robometer.scoring import ClipScore

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

SESSIONS_METRIC = "robometer_sessions"
"""A gauge that the replicas of the model set, in Ray's exporter only."""


class Metrics:
    """Counters of the HTTP interface. Ray adds its own of queues, replicas and resources."""

    def __init__(self, replica: str, exporter: Any = None) -> None:
        """Register all metrics.

        Args:
            replica: the label at `/metrics`, where several replicas answer in turn.
            exporter: the module `ray.serve.metrics`; None outside of Ray.
        """
        self.registry, self.replica, self._exporter = CollectorRegistry(), replica, exporter
        self._requests = self._counter(
            "requests", "Requests by route, status, name of the token, and model.", "route", "status", "token", "model"
        )
        self._seconds = self._histogram("request_seconds", "Time to the last byte.", _SECONDS, "route")
        self._stages = self._histogram(
            "stage_seconds", "Time of a request by stage: decode, queue, model.", _SECONDS, "route", "stage"
        )
        self._batches = self._histogram("batch_size", "Requests per forward pass.", _BATCH_BUCKETS)
        self._decoder_deaths = self._counter(
            "decoder_deaths", "Uploads over which the decoder process ended, by cause.", "cause"
        )
        self._of_model = self._counter("model_requests", "Answers by model and result.", "model", "result")
        self._model_seconds = self._histogram(
            "model_seconds", "Time of a request in the model, with its wait.", _SECONDS, "model"
        )
        self._model_progress = self._histogram(
            "model_progress", "Progress at the last frame of scored clips.", _TENTHS, "model"
        )
        self._in_flight = _Metric(self, Gauge, "in_flight", "Scoring requests being served.", ())

    def observe_request(self, record: Record, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests.add(1, record.route, str(status), record.client, record.model)
        self._seconds.add(seconds, record.route)
        for stage, stage_s in record.seconds.items():
            self._stages.add(stage_s, record.route, stage)

    def observe_decoder_death(self, cause: str) -> None:
        """Count one upload over which its decoder ended."""
        self._decoder_deaths.add(1, cause)

    def observe_batch(self, size: int) -> None:
        """Count one forward pass over `size` requests."""
        self._batches.add(size)

    def observe_model(self, outcome: Outcome) -> None:
        """Count one answer of a model, so that a canary can be compared with the default."""
        result = "ok" if not outcome.error else "rejected" if outcome.rejected else "failed"
        self._of_model.add(1, outcome.model, result)
        self._model_seconds.add(outcome.seconds, outcome.model)
        if isinstance(outcome.value, ClipScore) and len(outcome.value.progress):
            self._model_progress.add(float(outcome.value.progress[-1]), outcome.model)

    def set_in_flight(self, count: int) -> None:
        """Set the number of scoring requests that are admitted and not answered yet."""
        self._in_flight.add(count)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> _Metric:
        return _Metric(self, Counter, name, meaning, labels)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> _Metric:
        return _Metric(self, Histogram, name, meaning, labels, buckets)


class _Metric:
    """One metric, in both places."""

    def __init__(
        self,
        metrics: Metrics,
        kind: type[Any],
        name: str,
        meaning: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...] = (),
    ) -> None:
        name, more = f"robometer_{name}", {"buckets": buckets} if buckets else {}
        self._labels, self._replica = labels, metrics.replica
        self._own = kind(name, meaning, ("replica", *labels), registry=metrics.registry, **more)
        self._add = {"Counter": "inc", "Gauge": "set", "Histogram": "observe"}[kind.__name__]
        if not labels:
            self._own.labels(self._replica)  # so that it is there before its first value
        self._in_ray = None
        if metrics._exporter is not None:
            ray_more = {"boundaries": list(buckets)} if buckets else {}
            make = getattr(metrics._exporter, kind.__name__)
            self._in_ray = make(name, description=meaning, tag_keys=labels or None, **ray_more)

    def add(self, value: float, *labels: str) -> None:
        """Add a count, set a gauge, or observe a value."""
        getattr(self._own.labels(self._replica, *labels), self._add)(value)
        if self._in_ray is not None:
            getattr(self._in_ray, self._add)(value, dict(zip(self._labels, labels, strict=True)))
