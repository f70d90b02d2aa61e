"""Prometheus metrics of one ingress replica. A label names the replica, so that several can be scraped in turn."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from pipelines.serving.backend import Outcome
from pipelines.serving.records import Record
from robometer.scoring import ClipScore

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of the HTTP interface. Ray's own metrics (queues, replicas, resources) go to Ray's exporter."""

    def __init__(self, replica: str) -> None:
        self.registry = CollectorRegistry()
        registry, labels = self.registry, ("replica",)
        self.replica = replica
        self._requests = Counter(
            "robometer_requests",
            "Requests by route, status, name of the token, and model.",
            (*labels, "route", "status", "token", "model"),
            registry=registry,
        )
        self._seconds = Histogram(
            "robometer_request_seconds", "Time to the last byte.", (*labels, "route"), registry=registry
        )
        self._stages = Histogram(
            "robometer_stage_seconds",
            "Time of a request by stage: decode, queue, model.",
            (*labels, "route", "stage"),
            registry=registry,
        )
        self._batches = Histogram(
            "robometer_batch_size", "Requests per forward pass.", labels, buckets=_BATCH_BUCKETS, registry=registry
        ).labels(replica)
        self._decoder_deaths = Counter(
            "robometer_decoder_deaths",
            "Uploads over which the decoder process ended, by cause.",
            (*labels, "cause"),
            registry=registry,
        )
        by_model = (*labels, "model")
        self._of_model = Counter(
            "robometer_model_requests", "Answers by model and result.", (*by_model, "result"), registry=registry
        )
        self._model_seconds = Histogram(
            "robometer_model_seconds", "Time of a request in the model, with its wait.", by_model, registry=registry
        )
        self._model_progress = Summary(
            "robometer_model_progress", "Progress at the last frame of scored clips.", by_model, registry=registry
        )
        self._in_flight = Gauge(
            "robometer_in_flight", "Scoring requests being served.", labels, registry=registry
        ).labels(replica)

    def observe_request(self, record: Record, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests.labels(self.replica, record.route, str(status), record.client, record.model).inc()
        self._seconds.labels(self.replica, record.route).observe(seconds)
        for stage, stage_s in record.seconds.items():
            self._stages.labels(self.replica, record.route, stage).observe(stage_s)

    def observe_decoder_death(self, cause: str) -> None:
        """Count one upload over which its decoder ended."""
        self._decoder_deaths.labels(self.replica, cause).inc()

    def observe_batch(self, size: int) -> None:
        """Count one forward pass over `size` requests."""
        self._batches.observe(size)

    def observe_model(self, outcome: Outcome) -> None:
        """Count one answer of a model, so that a canary can be compared with the default."""
        result = "ok" if not outcome.error else "rejected" if outcome.rejected else "failed"
        self._of_model.labels(self.replica, outcome.model, result).inc()
        self._model_seconds.labels(self.replica, outcome.model).observe(outcome.seconds)
        if isinstance(outcome.value, ClipScore) and len(outcome.value.progress):
            self._model_progress.labels(self.replica, outcome.model).observe(float(outcome.value.progress[-1]))

    def set_in_flight(self, count: int) -> None:
        """Set the number of scoring requests that are admitted and not answered yet."""
        self._in_flight.set(count)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
