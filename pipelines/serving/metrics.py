"""Prometheus metrics of one ingress replica. A label names the replica, so that several can be scraped in turn."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of the HTTP interface. Ray's own metrics (queues, replicas, resources) go to Ray's exporter."""

    def __init__(self, replica: str) -> None:
        self.registry = CollectorRegistry()
        registry, labels = self.registry, ("replica",)
        self.replica = replica
        self._requests = Counter(
            "robometer_requests", "Requests by route and status.", (*labels, "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "robometer_request_seconds", "Time to the last byte.", (*labels, "route"), registry=registry
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
        self._in_flight = Gauge(
            "robometer_in_flight", "Scoring requests being served.", labels, registry=registry
        ).labels(replica)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        self._requests.labels(self.replica, route, str(status)).inc()
        self._seconds.labels(self.replica, route).observe(seconds)

    def observe_decoder_death(self, cause: str) -> None:
        """Count one upload over which its decoder ended."""
        self._decoder_deaths.labels(self.replica, cause).inc()

    def observe_batch(self, size: int) -> None:
        """Count one forward pass over `size` requests."""
        self._batches.observe(size)

    def set_in_flight(self, count: int) -> None:
        """Set the number of scoring requests that are admitted and not answered yet."""
        self._in_flight.set(count)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
