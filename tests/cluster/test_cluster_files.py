"""The cluster YAML fits the schema of the installed Ray."""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.autoscaler._private.util import validate_config

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


def test_the_cluster_yaml_is_valid_and_asks_for_a_token() -> None:
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    validate_config(config)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in config[key])
