"""Paths: each setting and flag that takes one refuses, in a sentence, what its stage cannot use, and makes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli
from robometer.configs import Config, load
from robometer.corpus.config import IngestConfig
from robometer.corpus.storage import Storage, StorageError
from robometer.runs.paths import PathError, absolute_path, make_folder

LOCAL = ("model.base_model", "baseline.prompt")
STORAGE = (
    *("corpus.path", "ingest.input", "simulate.output"),
    *("train.output", "sweep.output", "evaluate.output", "baseline.cache"),
)
CHECKPOINT = ("train.load_from_checkpoint", "evaluate.scorer", "serve.checkpoint")

NEVER = {
    "s3a://bucket/x": "",
    "s3:/bucket/x": "",
    "s3:bucket": "",
    "hdfs:/x": "",
    "file:///data/x": "/data/x",
    "file:/data/x": "/data/x",
    "ftp://host/x": "",
    "memory://x": "",
    "C:\\data": "Windows",
    "D:/data": "Windows",
    "~/x": "expanded",
    "$HOME/x": "expanded",
    "outputs/s3://bucket/x": "contains a URI",
    "/s3://bucket": "contains a URI",
}
"""What no setting takes, and a word of the sentence."""

URIS = ("s3://bucket/x", "gs://bucket/x", "abfss://c@a.dfs.core.windows.net/x", "hdfs://name:9000/x")


PLAIN = Config()


def setting_is(setting: str, value: object) -> None:
    """Construct the section that a setting belongs to, which validates the setting."""
    section, key = setting.split(".")
    type(getattr(PLAIN, section))(**{key: value})


@pytest.mark.parametrize("setting", [*LOCAL, *STORAGE, *CHECKPOINT, "tracking.uri"])
@pytest.mark.parametrize("value", [*NEVER, "http:/host/x"])
def test_a_wrong_value_is_refused_by_name(
    setting: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PathError) as caught:
        setting_is(setting, value)
    sentence = str(caught.value)
    assert setting in sentence and NEVER.get(value, "") in sentence and "\n" not in sentence
    assert not os.listdir(tmp_path)


def test_the_command_line_says_so_too() -> None:
    with pytest.raises(PathError, match=r"model.base_model=s3://bucket/raw is object storage"):
        load(["model.base_model=s3://bucket/raw"])


@pytest.mark.parametrize("setting", LOCAL)
@pytest.mark.parametrize("value", [*URIS, "http://host/x"])
def test_a_setting_of_a_disk_takes_no_uri(setting: str, value: str) -> None:
    with pytest.raises(PathError, match=f"{setting}=.*path"):
        setting_is(setting, value)


@pytest.mark.parametrize("value", ["s3://", "s3:///x", "S3://bucket", "http://host/x", ""])
def test_a_setting_of_a_storage_takes_whole_uris_only(value: str) -> None:
    with pytest.raises(PathError, match=r"corpus.path"):
        setting_is("corpus.path", value)


@pytest.mark.parametrize(
    "value",
    [
        "s3://AKIA:of-the-bucket@bucket/x",
        "s3://AKIA:of/the-bucket@bucket/x",
        "s3://AKIA@bucket/x",
        "abfss://c:of-the-bucket@a.dfs.core.windows.net/x",
        "gs://me:of-the-bucket@bucket/x",
        "s3://bucket/x?secret_key=of-the-bucket",
        "s3://bucket/x?region=us-east-1",
        "gs://bucket/x#of-the-bucket",
    ],
)
@pytest.mark.parametrize("setting", [*STORAGE, *CHECKPOINT])
def test_a_uri_holds_no_credentials_and_no_options(setting: str, value: str) -> None:
    with pytest.raises(PathError, match="environment") as caught:
        setting_is(setting, value)
    assert "the-bucket" not in str(caught.value) and "AKIA" not in str(caught.value)


@pytest.mark.parametrize("value", ["s3://bucket/org@v1/x", "hdfs://name:9000/x@y", "hdfs://me@name:9000/x", *URIS])
def test_a_uri_without_credentials_is_taken(value: str) -> None:
    setting_is("corpus.path", value)


@pytest.mark.parametrize("value", ["", "none", "sqlite:///a.db", "sqlite:////a/b.db", "http://h:1", "https://u:p@h/x"])
def test_stores_of_mlflow_are_taken(value: str) -> None:
    setting_is("tracking.uri", value)


@pytest.mark.parametrize(
    "value", ["sqlite://a.db", "sqlite:a.db", "sqlite:///", "sqlite:///s3://b/x", "mlruns", "h:5000"]
)
def test_what_is_no_store_of_mlflow_is_refused(value: str) -> None:
    with pytest.raises(PathError, match=r"tracking.uri"):
        setting_is("tracking.uri", value)


@pytest.mark.parametrize("value", ["outputs/a", "/data/x y/ü (copy)", "./s3:x", "a/b:c", "org/name@main", "robot+1"])
def test_plain_paths_are_taken(value: str) -> None:
    for setting in (*LOCAL, *STORAGE, *CHECKPOINT):
        setting_is(setting, value)


@pytest.mark.parametrize("value", ["models:/robometer/1", "runs:/abc/best", *URIS])
def test_checkpoints_lie_in_mlflow_and_in_buckets_too(value: str) -> None:
    for setting in CHECKPOINT:
        setting_is(setting, value)


def test_only_evaluation_takes_an_endpoint_or_a_baseline() -> None:
    setting_is("evaluate.scorer", "http://127.0.0.1:8000")
    setting_is("evaluate.against", ["baseline:clock", "https://host/x"])
    for value in ("http://127.0.0.1:8000", "baseline:clock"):
        with pytest.raises(PathError, match="is no checkpoint"):
            setting_is("serve.checkpoint", value)
    with pytest.raises(PathError, match=r"evaluate.against=ftp:"):
        setting_is("evaluate.against", ["baseline:clock", "ftp://bucket/x"])


def test_a_format_of_ones_own_may_read_from_anywhere_and_an_api_name_its_models_as_it_likes() -> None:
    IngestConfig(format="my.format", input="s3://bucket/raw")
    setting_is("baseline.model", "qwen2.5-vl:7b")
    with pytest.raises(PathError, match=r"baseline.model"):
        setting_is("baseline.model", "s3://bucket/weights")


FLAGS: dict[str, Callable[[str], list[str]]] = {
    "publish --output": lambda value: ["publish", "none", f"--output={value}"],
    "publish --evaluation": lambda value: ["publish", "none", "--output=x", f"--evaluation={value}"],
    "corpus show --page": lambda value: ["corpus", "show", f"--page={value}"],
    "corpus export --output": lambda value: ["corpus", "export", f"--output={value}"],
    "report --output": lambda value: ["report", "none", "--output", value],
    "report EVALUATION": lambda value: ["report", value],
    "report --corpus": lambda value: ["report", "none", "--corpus", value],
    "score --json": lambda value: ["score", "none", "--task", "t", "--json", value],
    "score --png": lambda value: ["score", "none", "--task", "t", "--png", value],
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", ["s3a://bucket/x", "~/x"])
def test_flags_refuse_the_same(
    flag: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(FLAGS[flag](value)) == 2
    error = capsys.readouterr().err
    assert f"{flag.split()[-1]}={value}" in error and error.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_a_uri_whose_library_is_absent_is_one_sentence() -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        Storage("hdfs://name:9000/corpus")
    with pytest.raises(StorageError, match=r"s3a://\*\*\*@bucket"):
        Storage("s3a://key:secret@bucket/corpus")


def test_a_relative_path_is_refused_in_a_copy_that_ray_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_path("train.output", "run") == str(tmp_path / "run")
    assert absolute_path("tracking.uri", "sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for value in ("run", "./run", "sqlite:///outputs/mlflow.db"):
        with pytest.raises(PathError, match=r"Ray deletes.*absolute"):
            absolute_path("x", value)
    for value in ("/data/run", "sqlite:////data/mlflow.db", "s3://bucket/x", "http://host:5000", "none", ""):
        assert absolute_path("x", value) == value


def test_what_cannot_be_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(PathError, match=r"train.output=.*cannot be created"):
            make_folder("train.output", path)
    assert make_folder("train.output", tmp_path / "a/b").is_dir()
