"""The identity of a baseline from one run to the next, and the settings that its workers get."""

from __future__ import annotations

from pathlib import Path

import pytest

from robometer.baselines import for_workers, identity
from robometer.baselines.config import BaselineConfig
from robometer.settings import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model's folder, in another layout than ours, and a prompt."""
    (tmp_path / "weights").mkdir()
    for name in ("model-00001-of-00001.safetensors", "config.json", "tokenizer.model", "notes.bin"):
        (tmp_path / "weights" / name).write_text("first")
    (tmp_path / "prompt.txt").write_text("first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONFIG = BaselineConfig(model="weights", prompt="prompt.txt")


@pytest.mark.parametrize(
    "file",
    ["prompt.txt", "weights/model-00001-of-00001.safetensors", "weights/config.json", "weights/tokenizer.model"],
)
def test_other_contents_are_another_scorer(here: Path, file: str) -> None:
    before = identity("topreward", CONFIG)
    assert identity("topreward", CONFIG) == before
    (here / file).write_text("other")  # the same length as before
    assert identity("topreward", CONFIG) != before


def test_a_file_under_another_name_is_another_model_and_what_is_never_read_does_not_count(here: Path) -> None:
    before = identity("topreward", CONFIG)
    (here / "weights/notes.bin").write_text("other")
    assert identity("topreward", CONFIG) == before
    (here / "weights/config.json").rename(here / "weights/generation_config.json")
    assert identity("topreward", CONFIG) != before


def test_how_fast_it_is_asked_does_not_make_another_scorer(here: Path) -> None:
    slower = BaselineConfig(model="weights", prompt="prompt.txt", concurrency=1, cache="elsewhere")
    assert identity("topreward", slower) == identity("topreward", CONFIG)


def test_a_prompt_that_is_not_there_is_said_at_once(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"baseline.prompt='none.txt' cannot be read"):
        identity("topreward", BaselineConfig(prompt="none.txt"))


def test_a_worker_elsewhere_reads_the_same_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, before = for_workers(CONFIG), identity("topreward", CONFIG)
    (here / "worker").mkdir()
    monkeypatch.chdir(here / "worker")
    assert (told.model, told.prompt) == (str(here / "weights"), str(here / "prompt.txt"))
    assert told.cache == str(here / "outputs/answers")
    assert identity("topreward", told).endswith(before.split(",")[-1])  # the hash of the model's files


@pytest.mark.parametrize(
    "config",
    [
        BaselineConfig(),
        BaselineConfig(model="org/name"),
        BaselineConfig(model="tiny"),
        BaselineConfig(model="weights", base_url="http://127.0.0.1:1/v1"),
    ],
)
def test_names_that_are_no_folder_stay_as_they_are(here: Path, config: BaselineConfig) -> None:
    (here / "tiny").mkdir()  # `tiny` is a random model, whatever lies here
    told = for_workers(config)
    assert (told.model, told.prompt) == (config.model, "") and "_hash" not in identity("topreward", config)
