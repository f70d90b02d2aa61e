"""One word names one scorer, whichever command takes it (`robometer.scorers`)."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from robometer.baselines.config import BaselineConfig
from robometer.baselines.trivial import Random
from robometer.frames import FrameSettings
from robometer.models.weights import CheckpointError
from robometer.scorers import BaselineReference, CheckpointReference, EndpointReference, load_scorer, resolve
from robometer.settings import ConfigError
from tests.local_endpoint import endpoint


@pytest.mark.parametrize("word", ["models:/robometer/1", "runs:/abc/best", "robometer/Robometer-4B@main", "."])
def test_folders_hub_ids_and_mlflow_uris_name_checkpoints(word: str) -> None:
    assert resolve(word, "sqlite:///x.db") == CheckpointReference(word, "sqlite:///x.db")


def test_a_url_names_an_endpoint() -> None:
    assert resolve("http://host:8000") == EndpointReference("http://host:8000").for_workers()
    assert isinstance(resolve("HTTPS://host"), EndpointReference)


def test_baselines_are_named_with_their_prefix_even_where_a_folder_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clock").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(resolve("clock"), CheckpointReference)
    assert load_scorer("baseline:clock").name == "clock"


@pytest.mark.parametrize("word", ["outputs/none/best", "clock", "ftp://host"])
def test_what_names_no_scorer_is_told_all_forms(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(word)
    assert str(caught.value) == (
        f"{word} names no scorer, and there is no such folder: "
        "give a checkpoint folder, its URI (s3://BUCKET/FOLDER), org/name[@revision] of the hub, "
        "models:/NAME/VERSION or runs:/ID/PATH, the URL of an endpoint, or baseline:NAME"
    )


def test_a_reference_means_the_same_in_a_worker_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("best").for_workers() == CheckpointReference(str(tmp_path / "best"))
    settings = BaselineConfig(cache="answers")
    there = resolve("baseline:gvl", baseline=settings).for_workers()
    assert there == BaselineReference("gvl", replace(settings, cache=str(tmp_path / "answers")))
    assert pickle.loads(pickle.dumps(there)) == there


def test_an_empty_folder_is_a_checkpoint_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_scorer(tmp_path)


def test_an_endpoint_is_asked_who_answers_and_what_it_is_shown() -> None:
    with endpoint(Random()) as url:
        reference = resolve(url)
        assert reference.identity() == "random "
        assert reference.frames() == FrameSettings()
        assert reference.load().name == "random"
