"""Runs tracked in MLflow; tracking that is off is a run that does nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from robometer.configs.loading import to_dict
from robometer.configs.schema import Config

logger = logging.getLogger(__name__)

REGISTERED_MODEL = "robometer"


class Run(Protocol):
    """What a job records."""

    run_id: str

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def artifact(self, path: str | Path) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def register_model(self, artifact: str, metrics: Mapping[str, float], name: str = REGISTERED_MODEL) -> str: ...


class NullRun:
    """Tracking that is off."""

    run_id = ""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def artifact(self, path: str | Path) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def register_model(self, artifact: str, metrics: Mapping[str, float], name: str = REGISTERED_MODEL) -> str:
        return ""


class MlflowRun:
    """One run of an MLflow store."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at a step; names keep to what MLflow allows."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, value in values.items()]
        for start in range(0, len(entries), 1000):
            self._client.log_batch(self.run_id, metrics=entries[start : start + 1000])

    def artifact(self, path: str | Path) -> None:
        """Copy a file or a folder into the store."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=Path(path).name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._client.set_tag(self.run_id, name, value)

    def register_model(self, artifact: str, metrics: Mapping[str, float], name: str = REGISTERED_MODEL) -> str:
        """Add an artifact of this run as a new version of a registered model, with its metrics as tags.

        Returns:
            The version.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException:
            logger.debug("%s is registered already", name)
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{artifact}"
        tags = {metric: f"{value:.6g}" for metric, value in metrics.items()}
        return str(self._client.create_model_version(name, source, self.run_id, tags=tags).version)


def absolute_uri(uri: str) -> str:
    """The URI with a relative SQLite path made absolute, so that every process of the run opens the same store."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return uri
    path = Path(uri.removeprefix(prefix)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{prefix}{path}"


def close_open_run(config: Config, run_id: str) -> None:
    """Mark a run that somebody stopped (an early-stopped trial) as KILLED, if it still counts as running."""
    if config.tracking.uri in ("", "none") or not run_id:
        return
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=absolute_uri(config.tracking.uri))
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


def attached(config: Config, run_id: str) -> Run:
    """A run that another process has open, to add to it: whether it has ended is that process's to say."""
    if config.tracking.uri in ("", "none"):
        return NullRun()
    from mlflow import MlflowClient

    return MlflowRun(MlflowClient(tracking_uri=absolute_uri(config.tracking.uri)), run_id)


@contextmanager
def start(config: Config, kind: str, run_id: str = "", parent_run_id: str = "") -> Iterator[Run]:
    """A run of `kind` (train, evaluate, ...) for the duration of the block; it ends FAILED when the block raises.

    Args:
        run_id: continue this run instead of opening a new one.
        parent_run_id: the sweep that this run is a trial of.
    """
    if config.tracking.uri in ("", "none"):
        yield NullRun()
        return
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = absolute_uri(config.tracking.uri)
    client = MlflowClient(tracking_uri=uri)
    if not run_id:
        tags = {"robometer.kind": kind, MLFLOW_RUN_NAME: config.tracking.run_name or kind}
        if parent_run_id:
            tags[MLFLOW_PARENT_RUN_ID] = parent_run_id
        run_id = client.create_run(_experiment(client, config, uri), tags=tags).info.run_id
        _log_params(client, run_id, to_dict(config))
    else:
        client.update_run(run_id, status="RUNNING")
    run = MlflowRun(client, run_id)
    try:
        yield run
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _experiment(client: Any, config: Config, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    artifacts = None
    if uri.startswith("sqlite:///"):
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:  # another process of the same sweep was faster
        return str(client.get_experiment_by_name(name).experiment_id)


def _log_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [
        Param(f"{section}.{key}", str(value)[:6000]) for section, keys in values.items() for key, value in keys.items()
    ]
    for start_at in range(0, len(flat), 100):
        client.log_batch(run_id, params=flat[start_at : start_at + 100])
