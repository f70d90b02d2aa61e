"""Settings of the tracking of runs."""

from __future__ import annotations

from dataclasses import dataclass

from robometer.runs import paths
from robometer.settings import Settings


@dataclass
class TrackingConfig(Settings, section="tracking"):
    """Tracking with MLflow."""

    uri: str = "sqlite:///outputs/mlflow.db"
    """Database (`sqlite:///...`) or server (`http://...`) of MLflow; `none`, or nothing, turns tracking off."""
    experiment: str = "robometer"
    """Experiment of MLflow that holds the runs."""
    run_name: str = ""
    """Name of the run; empty: the name of the command, such as `train`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_tracking("tracking.uri", self.uri)
