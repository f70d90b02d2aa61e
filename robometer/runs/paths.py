"""Checks of paths and URIs in settings: folders, storage and tracking stores, before anything is created.

Everything that takes a path checks it here. A value that cannot be used is refused in one sentence, and never becomes a
folder with a strange name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from robometer.errors import RobometerError
from robometer.runs.redaction import redacted

STORAGE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of URIs on which pyarrow can write and rename files."""

SQLITE = "sqlite:///"

CHECKPOINT_FORMS = (
    "a checkpoint folder, its URI (s3://BUCKET/FOLDER), org/name[@revision] of the hub, models:/NAME/VERSION or "
    "runs:/ID/PATH"
)
SCORER_FORMS = f"{CHECKPOINT_FORMS}, the URL of an endpoint, or baseline:NAME"
"""What names a checkpoint, and a scorer, for messages."""

_SERVERS = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql")
_MLFLOW = ("models", "runs")
_BASELINE = "baseline"
_BUCKETS = ("s3", "gs", "gcs", "abfs", "abfss")
_CREDENTIALS = re.compile(r"s3://[^/@]*@|[a-z0-9]+://[^/@:]*:(?!\d+/).*@")
"""An access key, or a password, before the name of a bucket or server; a port is neither."""

_SPELT_OTHERWISE = {"s3a": "s3", "s3n": "s3", "google": "gs", "az": "abfs", "azure": "abfs", "wasb": "abfs"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_RAYS_COPIES = "working_dir_files"
"""Ray unpacks the working directory of a job below a folder with this name in its session folder."""


class PathError(RobometerError):
    """A path or URI that cannot be used. The message says why, and what to give instead."""


def check_local(name: str, value: str, empty: bool = False) -> str:
    """The path of a folder or file on a disk, unchanged.

    Args:
        name: of the setting or flag, for the message.
        value: the path.
        empty: whether it may be empty.

    Raises:
        PathError: it is a URI, or looks like a mistake.
    """
    scheme = _checked(name, value, empty)
    if scheme in (*STORAGE_SCHEMES, *_SPELT_OTHERWISE):
        raise _refusal(name, value, "is object storage, which is not possible here: give a path that all nodes see")
    if scheme:
        raise _refusal(name, value, f"is not a path on a disk: {_what_instead(value, scheme, 'give a plain path')}")
    return value


def check_storage(name: str, value: str) -> str:
    """A path on a disk, or the URI of a folder that pyarrow opens, unchanged.

    Raises:
        PathError: it is neither, or looks like a mistake, or the URI contains credentials or options.
    """
    scheme = _checked(name, value)
    if scheme not in STORAGE_SCHEMES:
        if scheme:
            schemes = ", ".join(f"{one}://" for one in STORAGE_SCHEMES)
            remedy = f"give a path, or a URI that starts with {schemes}"
            raise _refusal(name, value, f"cannot be opened as a folder: {_what_instead(value, scheme, remedy)}")
        return value
    if not re.match(r"[a-z0-9]+://[^/?#\s]", value):
        raise _refusal(name, value, f"is incomplete: write {scheme}://BUCKET/FOLDER, with two slashes, in lower case")
    if _CREDENTIALS.match(value):
        raise _refusal(name, value, "contains credentials, which would be stored with it: set them in the environment")
    if scheme in _BUCKETS and re.search("[?#]", value):
        bare = re.split("[?#]", value)[0]
        raise PathError(
            f"{name}={redacted(bare)} is followed by options: leave out what comes after ? or #, and set options in "
            "the environment, such as AWS_ENDPOINT_URL and AWS_REGION"
        )
    return value


def is_uri_of_storage(value: str) -> bool:
    """Whether this is the URI of a folder that pyarrow may open."""
    return value.partition("://")[0] in STORAGE_SCHEMES and "://" in value


def check_checkpoint(name: str, value: str, empty: bool = False) -> str:
    """The name of a checkpoint, as it was given: a folder or its URI, org/name of the hub, an MLflow URI.

    Args:
        empty: whether it may be left out.

    Raises:
        PathError: it is none of these.
    """
    scheme = _checked(name, value, empty)
    if not scheme or scheme in _MLFLOW:
        return value
    if is_uri_of_storage(value):
        return check_storage(name, value)
    raise _refusal(name, value, f"is no checkpoint: {_what_instead(value, scheme, f'give {CHECKPOINT_FORMS}')}")


def check_scorer(name: str, value: str) -> str:
    """The name of a scorer (`robometer.scorers`), as it was given: a checkpoint, a URL, or `baseline:NAME`.

    Raises:
        PathError: it is none of these.
    """
    scheme = _checked(name, value)
    is_url = scheme in _SERVERS and re.match(r"(?i)https?://[^/?#\s]", value)
    if not scheme or scheme in (*_MLFLOW, _BASELINE) or is_url:
        return value
    if is_uri_of_storage(value):
        return check_storage(name, value)
    raise _refusal(name, value, f"is no scorer: {_what_instead(value, scheme, f'give {SCORER_FORMS}')}")


def check_tracking(name: str, value: str) -> str:
    """The URI of an MLflow store: a SQLite file, a database or a server. `none` or an empty text turns tracking off.

    Raises:
        PathError: it is none of these.
    """
    remedy = "give sqlite:///FOLDER/mlflow.db (a fourth slash for an absolute path), http://HOST:PORT, or none"
    if value in ("", "none"):
        return value
    scheme = _checked(name, value)
    if value.startswith(SQLITE):
        path = value.removeprefix(SQLITE)
        if _checked(name, path or "/") or not path or path.endswith("/") or path.startswith(":memory:"):
            raise _refusal(name, value, f"does not name a file: {remedy}")
        return value
    if scheme.split("+")[0] in (*_SERVERS, *_DATABASES) and re.match(r"[a-z0-9+]+://[^/?#\s]", value):
        return value
    raise _refusal(name, value, f"is not an MLflow store: {remedy}")


def absolute_path(name: str, value: str) -> str:
    """The path made absolute, so that it means the same in every process; URIs are unchanged.

    Raises:
        PathError: the path is relative, and this process works in a copy that Ray deletes.
    """
    prefix = SQLITE if value.startswith(SQLITE) else ""
    path = value.removeprefix(prefix)
    if not prefix and ("://" in value or value in ("", "none")):
        return value
    if not os.path.isabs(path) and _RAYS_COPIES in Path.cwd().parts:
        example = f"{prefix}/data/{path}"
        raise PathError(
            f"{name}={redacted(value)} is relative, but a submitted job works in a copy of its folder that Ray "
            f"deletes: give an absolute path on storage that every node sees, such as {name}={example}"
        )
    return prefix + os.path.abspath(path)


def make_folder(name: str, path: str | Path) -> Path:
    """The folder, which is created if needed.

    Raises:
        PathError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(f"{name}={folder} cannot be created ({error.strerror}): choose another folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PathError(f"{name}={folder} cannot be written to: choose another folder, or change its permissions")
    return folder


def _checked(name: str, value: str, empty: bool = False) -> str:
    """The scheme of a value in lower case; empty for a path. Refuses what is a mistake anywhere."""
    if not value and not empty:
        raise PathError(f"{name} is empty: give a path")
    if "\0" in value:
        raise PathError(f"{name} has a zero byte, which no path can have")
    if value.startswith(("~", "$")):
        raise _refusal(
            name, value, f"was not expanded by the shell, and is not a path as it is: write {name}=/the/whole/path"
        )
    if _WINDOWS.match(value):
        raise _refusal(name, value, "is a Windows path: give a path on this machine")
    match = _SCHEME.match(value)
    if not match and "://" in value:
        raise _refusal(name, value, "contains a URI: give a plain path, or only the URI")
    return match[1].lower() if match else ""


def _what_instead(value: str, scheme: str, remedy: str) -> str:
    if scheme == _BASELINE:
        return "`robometer evaluate` and `robometer score` run baselines"
    if scheme == "file":
        return f"write the plain path, {re.sub('^[A-Za-z]+:(//)?', '', value) or '/FOLDER'}"
    if scheme in _SPELT_OTHERWISE and "s3://" in remedy:
        return f"write {_SPELT_OTHERWISE[scheme]}:// instead of {scheme}://"
    if "/" not in value:
        return f"{remedy}, or ./{value} for a folder with this name"
    return remedy


def _refusal(name: str, value: str, why: str) -> PathError:
    return PathError(f"{name}={redacted(value)} {why}")
