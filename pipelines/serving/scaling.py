"""How many replicas of the model Ray Serve runs: as many as the requests in progress and their latency ask for."""

from __future__ import annotations

from statistics import fmean
from typing import Any

LATENCY = "latency_s"
"""Name of the metric that the replicas report: mean seconds of a request."""


class QueueAndLatency:
    """An autoscaling policy of Ray Serve, which applies bounds and delays to what it returns.

    By the queue, each replica should have `target_ongoing_requests` in progress. By latency, replicas are added as far
    as the mean is above its target, at most twice as many at once; where no request waits, more would not help.
    """

    def __init__(self, target_latency_s: float = 0.0) -> None:
        self._target_s = target_latency_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The wanted number of replicas for an `AutoscalingContext`, and no state."""
        running: int = context.current_num_replicas
        if running == 0:
            return context.target_num_replicas, {}
        by_queue: float = context.total_num_requests / context.config.get_target_ongoing_requests()
        reported = (context.aggregated_metrics or {}).get(LATENCY, {}).values()
        seconds = [one for one in reported if one > 0]
        if not (self._target_s and seconds and context.total_num_requests > running):
            return by_queue, {}
        return max(by_queue, running * min(fmean(seconds) / self._target_s, 2.0)), {}
