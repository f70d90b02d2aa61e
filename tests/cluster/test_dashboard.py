"""The dashboard of the pipeline asks for metrics that exist; serving/test_metrics.py tests that of the endpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import ray

from pipelines.serving.metrics import Metrics
from tests.cluster.manifests import CLUSTER
from tests.pipelines.serving.test_metrics import ENDINGS, EXPORTED, Exported


def test_every_metric_of_the_pipeline_exists() -> None:
    dashboard = json.loads((CLUSTER / "grafana_pipeline.json").read_text())
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    names = {
        name.removeprefix("ray_")
        for name in re.findall(r"\bray_\w+(?=[{\[)])", re.sub(r"by \([^)]*\)", "", " ".join(asked)))
    }
    assert len(names) >= len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]}) == 16
    EXPORTED.clear()
    Metrics("a", SimpleNamespace(Counter=Exported, Gauge=Exported, Histogram=Exported))
    folder = Path(ray.__file__).parent
    parts = ("data/_internal/stats.py", "serve/_private", "train/v2/_internal/metrics", "dashboard/modules/reporter")
    files = [
        file
        for part in parts
        for file in ((folder / part).rglob("*.py") if (folder / part).is_dir() else [folder / part])
    ]
    source = "".join(file.read_text() for file in files).encode() + (folder / "core/src/ray/raylet/raylet").read_bytes()
    for name in sorted(names):
        known = re.sub(ENDINGS, "", name) in EXPORTED if name.startswith("robometer_") else None
        assert known or f'"{name}"'.encode() in source or f"\0{name}\0".encode() in source, name
