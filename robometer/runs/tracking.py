"""Tracking of runs in MLflow. If tracking is off, a run does nothing."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from robometer.configs.loading import to_dict
from robometer.configs.schema import Config
from robometer.errors import RobometerError
from robometer.runs.paths import SQLITE, absolute_path, make_folder
from robometer.runs.redaction import redacted, without_secrets

logger = logging.getLogger(__name__)

REGISTERED_MODEL = "robometer"

PATIENCE_S = 20.0
"""How long a store may take to answer the first request."""

LONGEST = 300
"""Most characters of a quoted reason."""

_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class TrackingError(RobometerError):
    """A tracking store that cannot be used. The message says why, and what to do."""


class TrackedRun(Protocol):
    """What a job can record."""

    run_id: str

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def artifact(self, path: str | Path) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def register_model(self, artifact: str, metrics: Mapping[str, float], name: str = REGISTERED_MODEL) -> str: ...


class NullRun:
    """A run that records nothing, as tracking is off."""

    run_id = ""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def artifact(self, path: str | Path) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def register_model(self, artifact: str, metrics: Mapping[str, float], name: str = REGISTERED_MODEL) -> str:
        return ""


class MlflowRun:
    """A run in an MLflow store."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step."""
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


def is_off(config: Config) -> bool:
    """Whether tracking is off."""
    return config.tracking.uri in ("", "none")


def version_of_alias(config: Config, name: str, alias: str) -> str:
    """The version of a registered model that has an alias; empty if none has."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client_of(config.tracking.uri).get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        # A missing alias and a name that no alias can have come with the same code.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or f"alias {alias} not found" in str(error):
            return ""
        raise TrackingError(f"the alias {alias!r} of {name} cannot be used: {' '.join(str(error).split())}") from error


def set_alias(config: Config, name: str, alias: str, version: str) -> None:
    """Give an alias to a version of a registered model; no other version has it then."""
    client_of(config.tracking.uri).set_registered_model_alias(name, alias, version)


def close_open_run(config: Config, run_id: str) -> None:
    """Mark a stopped run (such as an early-stopped trial) as KILLED, if it still counts as running."""
    if is_off(config) or not run_id:
        return
    client = client_of(config.tracking.uri)
    if _status(client, run_id) == "RUNNING":
        client.set_terminated(run_id, "KILLED")


def attached(config: Config, run_id: str) -> TrackedRun:
    """A run of another process, to add to it. Only that process ends the run."""
    return NullRun() if is_off(config) else MlflowRun(client_of(config.tracking.uri), run_id)


def continued(config: Config, run_id: str) -> str:
    """The id of a run that can be continued; empty, with a warning, if the store does not have it."""
    if is_off(config) or not run_id or _status(client_of(config.tracking.uri), run_id):
        return run_id
    store = redacted(absolute_path("tracking.uri", config.tracking.uri))
    logger.warning("%s does not have run %s: continuing in a new run", store, run_id)
    return ""


def _status(client: Any, run_id: str) -> str:
    """The status of a run; empty if the store does not have it, or has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return ""
        raise
    return str(info.status) if info.lifecycle_stage == "active" else ""


def client_of(uri: str) -> Any:
    """MLflow's client of a store that answers. A missing SQLite file is created.

    Raises:
        TrackingError: the store does not answer within seconds, is not MLflow's, or has another version.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # a server's URL may contain a password
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    store = absolute_path("tracking.uri", uri)
    if store.startswith(SQLITE):
        make_folder("tracking.uri", Path(store.removeprefix(SQLITE)).parent)
    try:
        with _without_retries():
            _reach(store)
            client = MlflowClient(tracking_uri=store, registry_uri=store)
            client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError) as error:
        reason = redacted(" ".join(str(error).split()).rstrip("."))
        reason = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."
        raise TrackingError(
            f"tracking.uri={redacted(store)} cannot be used ({reason}): start that store, give another one, or turn "
            "tracking off with tracking.uri=none"
        ) from error
    return client


def _reach(store: str) -> None:
    """Raise at once the error that MLflow would raise after minutes of retries."""
    if store.startswith(SQLITE):
        with closing(sqlite3.connect(store.removeprefix(SQLITE).partition("?")[0])) as database:
            database.execute("PRAGMA schema_version").fetchone()
        return
    where = urlsplit(store)
    scheme = where.scheme.partition("+")[0]
    socket.create_connection((where.hostname or "", where.port or _PORTS[scheme]), timeout=PATIENCE_S).close()
    if scheme not in ("http", "https"):
        from sqlalchemy import create_engine

        create_engine(store).connect().close()


@contextmanager
def _without_retries() -> Iterator[None]:
    """MLflow's client without its retries, which take minutes, for the first request to a store."""
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(PATIENCE_S))}
    before = {name: os.environ.get(name) for name in quick}
    os.environ.update(quick)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def start(config: Config, kind: str, run_id: str = "", parent_run_id: str = "") -> Iterator[TrackedRun]:
    """A run of `kind` (train, evaluate, ...) for the duration of the block. It ends as FAILED if the block raises.

    Args:
        config: the configuration, which is recorded.
        kind: of the run.
        run_id: run to continue (see `continued`); empty starts a new one.
        parent_run_id: run of the sweep that this is a trial of.

    Raises:
        TrackingError: the store cannot be used.
    """
    if is_off(config):
        yield NullRun()
        return
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    client = client_of(config.tracking.uri)
    if not run_id:
        tags = {"robometer.kind": kind, MLFLOW_RUN_NAME: config.tracking.run_name or kind}
        if parent_run_id:
            tags[MLFLOW_PARENT_RUN_ID] = parent_run_id
        run_id = client.create_run(_experiment(client, config), tags=tags).info.run_id
        _log_params(client, run_id, without_secrets(to_dict(config)))
    else:
        client.update_run(run_id, status="RUNNING")
    run = MlflowRun(client, run_id)
    try:
        yield run
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _experiment(client: Any, config: Config) -> str:
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    artifacts, store = None, absolute_path("tracking.uri", config.tracking.uri)
    if store.startswith(SQLITE):
        artifacts = (Path(store.removeprefix(SQLITE)).parent / "mlflow-artifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:  # another trial of the same sweep created it meanwhile
        return str(client.get_experiment_by_name(name).experiment_id)


def _log_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [
        Param(f"{section}.{key}", str(value)[:6000]) for section, keys in values.items() for key, value in keys.items()
    ]
    for start_at in range(0, len(flat), 100):
        client.log_batch(run_id, params=flat[start_at : start_at + 100])
