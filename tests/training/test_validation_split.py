"""The split `validation`: which episodes are kept back from training."""

from __future__ import annotations

import hashlib
from collections import Counter

import pyarrow as pa
import pytest

from robometer.configs import load
from robometer.sampling.index import ManifestIndex
from robometer.training import validation_split
from robometer.training.validation_split import VALIDATION, cut, training_corpus
from tests.sampling.manifest import manifest


def _table() -> pa.Table:
    """Two tasks of 20 and 3 episodes a quality, one with a single one; each has two views; and a split of its own."""
    rows = [
        {"task": task, "quality_label": quality, "episode_key": f"{task}/{quality}/{i}", "view": view}
        for task, episodes in (("open the drawer", 20), ("Close it.", 3), ("rare", 1))
        for quality in ("failure", "successful")
        for i in range(episodes)
        for view in ("left", "right")
    ]
    return manifest([*rows, *({"split": "seen", "episode_key": f"seen/{i}", "view": ""} for i in range(20))])


def _kept_back(table: pa.Table) -> list[dict[str, str]]:
    return [row for row in cut(table, "train").to_pylist() if row["split"] == VALIDATION]


def test_a_tenth_of_each_task_and_quality_is_kept_back_and_one_at_least_where_there_are_two() -> None:
    kept_back = _kept_back(_table())
    assert Counter((row["task"], row["quality_label"]) for row in kept_back) == {
        ("open the drawer", "failure"): 4,  # two episodes, each with two views
        ("open the drawer", "successful"): 4,
        ("Close it.", "failure"): 2,
        ("Close it.", "successful"): 2,
    }
    assert set(Counter(row["episode_key"] for row in kept_back).values()) == {2}


def test_nothing_else_of_the_manifest_changes_and_other_splits_stay_whole() -> None:
    table = _table()
    after = cut(table, "train")
    assert after.drop_columns("split").equals(table.drop_columns("split")) and after.schema == table.schema
    changed = [(old, new) for old, new in zip(table["split"].to_pylist(), after["split"].to_pylist(), strict=True)]
    assert set(changed) == {("train", "train"), ("train", VALIDATION), ("seen", "seen")}


def test_which_ones_follows_from_their_names_alone() -> None:
    table = _table()
    ids = {row["id"] for row in _kept_back(table)}
    assert {row["id"] for row in _kept_back(table.take(list(reversed(range(len(table))))))} == ids
    keys = [f"Close it./failure/{i}" for i in range(3)]
    first = min(keys, key=lambda key: hashlib.sha256(f"validation\x1flab\x1f{key}".encode()).hexdigest())
    assert {row["episode_key"] for row in _kept_back(table)} & set(keys) == {first}


class _Corpus:
    """A corpus that is a manifest."""

    def __init__(self, path: str, table: pa.Table | None = None) -> None:
        self.manifest = _table() if table is None else table
        if path == "own":
            self.manifest = pa.concat_tables([self.manifest, manifest([{"split": VALIDATION, "episode_key": "own"}])])

    def rows(self, split: str) -> list[int]:
        return [i for i, one in enumerate(self.manifest["split"].to_pylist()) if one == split]


def test_it_is_cut_only_for_who_asks_and_not_from_a_corpus_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation_split, "Corpus", _Corpus)
    asked = "train.validation_splits=[validation,seen]"
    sizes = {
        (path, override): len(training_corpus(load([f"corpus.path={path}", override])).rows(VALIDATION))
        for path in ("plain", "own")
        for override in (asked, "train.validation_splits=[seen]")
    }
    assert list(sizes.values()) == [12, 0, 1, 1]


def test_training_draws_none_of_them() -> None:
    index = ManifestIndex.from_table(cut(_table(), "train"), load().sampling)
    rows = {int(row) for row in index.preference_rows} | {int(row) for row in index.progress_rows}
    splits = cut(_table(), "train")["split"].to_pylist()
    assert {splits[row] for row in rows} == {"train"} and len(rows) == 96 - 12


@pytest.mark.parametrize("split", ["train", "other"])
def test_a_split_without_two_episodes_of_anything_gives_none(split: str) -> None:
    table = manifest([{"episode_key": "a", "view": ""}, {"episode_key": "b", "view": "", "split": "other"}])
    assert cut(table, split).equals(table)
