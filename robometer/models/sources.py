"""Finds a checkpoint by folder, hub id `org/name[@revision]`, MLflow URI or bucket, and makes it a local folder."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from robometer.corpus.storage import Storage
from robometer.models.weights import MODEL_FILES, CheckpointError
from robometer.runs.config import TrackingConfig
from robometer.runs.paths import CHECKPOINT_FORMS, SQLITE, absolute_path, check_storage, is_uri_of_storage
from robometer.runs.redaction import redacted
from robometer.runs.tracking import client_of

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
MLFLOW_SCHEMES = ("models:/", "runs:/")

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/]+))")


def locate(source: str | Path, tracking_uri: str = "") -> Path:
    """The local folder of a checkpoint, which is fetched first if it lies elsewhere.

    `models:/NAME/VERSION`, `models:/NAME@ALIAS` and `runs:/ID/PATH` are MLflow artifacts. A URI such as
    `s3://bucket/run/best` is a folder that is copied into `~/.cache/robometer`, once. Otherwise an existing path is
    that path. Otherwise `org/name[@revision]` (one slash, no leading dot) is a repository on the Hugging Face hub, or
    in its local cache if the hub cannot be reached; the default revision is the main branch.

    Args:
        tracking_uri: URI of MLflow; empty for MLFLOW_TRACKING_URI, or the default store of `robometer`.

    Raises:
        CheckpointError: `source` is none of these, or cannot be fetched.
    """
    name = str(source)
    if name.startswith(MLFLOW_SCHEMES):
        return _from_mlflow(name, tracking_uri)
    if is_uri_of_storage(name):
        return _from_bucket(check_storage("the checkpoint", name))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name} is a file: give the folder of its checkpoint")
    hub_id = HUB_ID.fullmatch(name)
    if hub_id is None:
        raise CheckpointError(f"{name} is neither a folder nor a hub id: give {CHECKPOINT_FORMS}")
    return _from_hub(name, hub_id["repo"], hub_id["revision"])


def is_checkpoint_name(name: str) -> bool:
    """Whether `locate` would look for this: something that exists, a hub id, an MLflow URI, or one of a bucket."""
    return bool(
        name.startswith(MLFLOW_SCHEMES)
        or is_uri_of_storage(name)
        or Path(name).expanduser().exists()
        or HUB_ID.fullmatch(name)
    )


def for_workers(source: str, tracking_uri: str = "") -> str:
    """The name of a checkpoint for a worker, whose working directory may differ."""
    if not source or is_uri_of_storage(source):
        return source
    if source.startswith(MLFLOW_SCHEMES):
        return str(locate(source, tracking_uri).absolute())
    is_on_hub = HUB_ID.fullmatch(source) and not Path(source).exists()
    return source if is_on_hub else os.path.abspath(source)


def _from_hub(name: str, repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (
        OSError,
        ValueError,
        HTTPError,
    ) as error:  # the hub's client raises these
        absent = isinstance(error, LocalEntryNotFoundError)
        reason = "the hub cannot be reached, and the local cache does not hold it" if absent else _short(error)
        raise CheckpointError(
            f"{name} is not a folder, and as a hub id it cannot be fetched ({reason}): give an existing folder, or "
            "fetch it once while online (private repositories need HF_TOKEN), so that it is cached"
        ) from error


def _from_bucket(uri: str) -> Path:
    """The copy of a folder in this machine's cache. Each content of the folder has a copy of its own.

    Raises:
        CheckpointError: the folder holds no checkpoint, or changes meanwhile.
        StorageError: it cannot be read.
    """
    storage = Storage(uri)
    files = _files_of_model(storage)
    if not files:
        raise CheckpointError(f"{uri} holds no checkpoint: give {CHECKPOINT_FORMS}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robometer" / "checkpoints"
    copy = cache / hashlib.sha256(f"{storage.path.rstrip('/')} {sorted(files.items())}".encode()).hexdigest()[:32]
    if copy.is_dir():
        return copy
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=cache, prefix=".new-"))
    try:
        for name in files:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with storage.fs.open_input_stream(storage.full(name)) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 2**24)
        if _files_of_model(storage) != files:
            raise CheckpointError(f"{uri} changed while it was copied: wait until it is written, and try again")
        staging.chmod(0o755)
        with suppress(OSError):  # another process was faster
            staging.rename(copy)
    except OSError as error:
        raise CheckpointError(f"{uri} cannot be copied into {cache}: {_short(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return copy


def _files_of_model(storage: Storage) -> dict[str, tuple[int, str]]:
    """Size and stamp of the files of a checkpoint, by name."""
    found = storage.tree("")
    names = [name for name in found if any(fnmatch.fnmatch(PurePosixPath(name).name, form) for form in MODEL_FILES)]
    return {name: (found[name].size, storage.stamp(name)) for name in names}


def _from_mlflow(uri: str, tracking_uri: str) -> Path:
    uri_of_store = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or TrackingConfig().uri
    store = absolute_path("tracking.uri", uri_of_store)
    if store == "none":
        raise CheckpointError(f"{uri} needs a tracking store: give tracking.uri=...")
    if store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).is_file():
        raise CheckpointError(f"{uri} cannot be fetched: there is no tracking store {store}; give tracking.uri=...")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        client_of(store)  # fails within seconds if nothing answers
        artifacts = _registered(uri, store) if uri.startswith("models:/") else uri
        return Path(download_artifacts(artifact_uri=artifacts, tracking_uri=store))
    except (MlflowException, OSError) as error:
        raise CheckpointError(
            f"{uri} cannot be fetched from {redacted(store)} ({_short(error)}): check the name and tracking.uri"
        ) from error


def _registered(uri: str, store: str) -> str:
    """Where the artifacts of a registered model lie; `download_artifacts` would ask the process's own registry."""
    registered = _REGISTERED.fullmatch(uri)
    if registered is None:
        raise CheckpointError(f"{uri} names no version: give models:/NAME/VERSION or models:/NAME@ALIAS")
    client, name = client_of(store), registered["name"]
    version = registered["version"] or client.get_model_version_by_alias(name, registered["alias"]).version
    return str(client.get_model_version_download_uri(name, version))


def _short(error: Exception, limit: int = 200) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= limit else f"{text[:limit]}..."
