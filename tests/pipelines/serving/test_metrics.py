"""Metrics have the same numbers in both places, and the dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from pipelines.serving.metrics import SESSIONS_METRIC, Metrics
from pipelines.serving.records import Record

ROOT = Path(__file__).resolve().parents[3]
ENDINGS = r"_(total|bucket|sum|count)$"


class Exported:
    """What a metric of Ray's exporter is told."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] | None, boundaries: Any = None) -> None:
        assert tag_keys is None or (isinstance(tag_keys, tuple) and tag_keys)
        self.name, self.values = name, list[tuple[float, dict[str, str]]]()
        EXPORTED[name] = self

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((value, tags))

    set = observe = inc


EXPORTED: dict[str, Exported] = {}


def test_what_is_observed_stands_in_both_places() -> None:
    EXPORTED.clear()
    metrics = Metrics("a", SimpleNamespace(Counter=Exported, Gauge=Exported, Histogram=Exported))
    record = Record(client="lab", route="/v1/score", model="m@1", seconds={"decode": 0.5})
    metrics.observe_request(record, 200, 1.5)
    metrics.set_in_flight(3)
    labels = {"route": "/v1/score", "status": "200", "token": "lab", "model": "m@1"}
    assert EXPORTED["robometer_requests"].values == [(1, labels)]
    assert EXPORTED["robometer_request_seconds"].values == [(1.5, {"route": "/v1/score"})]
    assert EXPORTED["robometer_stage_seconds"].values == [(0.5, {"route": "/v1/score", "stage": "decode"})]
    assert EXPORTED["robometer_in_flight"].values == [(3, {})]
    text = metrics.render().decode()
    assert 'robometer_stage_seconds_sum{replica="a",route="/v1/score",stage="decode"} 0.5' in text
    assert 'robometer_in_flight{replica="a"} 3.0' in text
    assert 'robometer_requests_total{model="m@1",replica="a",route="/v1/score",status="200",token="lab"} 1.0' in text


def test_every_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads((ROOT / "cluster/grafana_dashboard.json").read_text())
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    names = set(re.findall(r"\bray_\w+", " ".join(asked)))
    EXPORTED.clear()
    Metrics("a", SimpleNamespace(Counter=Exported, Gauge=Exported, Histogram=Exported))
    ours = {re.sub(ENDINGS, "", name.removeprefix("ray_")) for name in names if name.startswith("ray_robometer_")}
    assert ours == {*EXPORTED, SESSIONS_METRIC} - {"robometer_model_seconds"}
    serve = Path(ray.__file__).parent / "serve/_private"
    source = "".join(file.read_text() for file in serve.rglob("*.py"))
    for name in names - {name for name in names if name.startswith("ray_robometer_")}:
        assert f'"{name.removeprefix("ray_")}"' in source, name
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) >= 12
