"""Where a checkpoint lies: a folder, a hub id `org/name[@revision]`, or an MLflow URI, always as a local folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robometer.baselines import PREFIX
from robometer.configs.schema import TrackingConfig
from robometer.models.weights import MODEL_FILES, CheckpointError
from robometer.runs.paths import SQLITE, absolute_path
from robometer.runs.redaction import redacted
from robometer.runs.tracking import client_of

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
MLFLOW_SCHEMES = ("models:/", "runs:/")

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/]+))")


def locate(source: str | Path, tracking_uri: str = "") -> Path:
    """The local folder of a checkpoint, fetched first where it is elsewhere.

    `models:/NAME/VERSION`, `models:/NAME@ALIAS` and `runs:/ID/PATH` are artifacts of MLflow. Else what exists as a path
    is that path. Else `org/name[@revision]` (one slash, no leading dot) is a repository of the Hugging Face hub, whose
    cache is enough when the hub cannot be reached; without a revision it is the main branch.

    Args:
        tracking_uri: of MLflow; empty: MLFLOW_TRACKING_URI, or the default store of `robometer`.

    Raises:
        CheckpointError: it is none of these, or cannot be fetched.
    """
    name = str(source)
    if name.startswith(MLFLOW_SCHEMES):
        return _from_mlflow(name, tracking_uri)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name} is a file: give the folder of the checkpoint that it belongs to")
    hub_id = HUB_ID.fullmatch(name)
    if hub_id is None:
        raise CheckpointError(
            f"{name} is no folder here, and no hub id either: give a checkpoint folder, org/name[@revision], "
            "models:/NAME/VERSION or runs:/ID/PATH"
        )
    return _from_hub(name, hub_id["repo"], hub_id["revision"])


def for_workers(source: str, tracking_uri: str = "") -> str:
    """A name of the checkpoint that means the same in a worker, whose working directory may be another."""
    if not source:
        return ""
    if source.startswith(MLFLOW_SCHEMES):
        return str(locate(source, tracking_uri).absolute())
    is_elsewhere = (
        "://" in source or source.startswith(PREFIX) or (HUB_ID.fullmatch(source) and not Path(source).exists())
    )
    return source if is_elsewhere else os.path.abspath(source)


def _from_hub(name: str, repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError, HTTPError) as error:  # what the hub's client raises: cache, offline, HTTP, the id
        absent = isinstance(error, LocalEntryNotFoundError)
        reason = "no hub can be reached, and the local cache does not hold it" if absent else _short(error)
        raise CheckpointError(
            f"{name} is no folder here, and as a hub id it cannot be had ({reason}): give a folder that exists, or "
            "fetch it once while online (private repositories need HF_TOKEN), so that it is in the cache"
        ) from error


def _from_mlflow(uri: str, tracking_uri: str) -> Path:
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or TrackingConfig().uri
    store = absolute_path("tracking.uri", given)
    if store == "none":
        raise CheckpointError(f"{uri} needs a tracking store: give tracking.uri=...")
    if store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).is_file():
        raise CheckpointError(f"{uri} cannot be fetched: there is no tracking store {store}; give tracking.uri=...")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        client_of(store)  # says in seconds that nobody answers
        artifacts = _registered(uri, store) if uri.startswith("models:/") else uri
        return Path(download_artifacts(artifact_uri=artifacts, tracking_uri=store))
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            f"{uri} cannot be fetched from {redacted(store)} ({_short(error)}): check the name and tracking.uri"
        ) from error


def _registered(uri: str, store: str) -> str:
    """Where the artifacts of a registered model lie; `download_artifacts` would ask the process's registry instead."""
    found = _REGISTERED.fullmatch(uri)
    if found is None:
        raise CheckpointError(f"{uri} names no version: give models:/NAME/VERSION or models:/NAME@ALIAS")
    client = client_of(store)
    version = found["version"] or client.get_model_version_by_alias(found["name"], found["alias"]).version
    return str(client.get_model_version_download_uri(found["name"], version))


def _short(error: Exception, limit: int = 200) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= limit else f"{text[:limit]}..."
