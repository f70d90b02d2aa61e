"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from robometer.files import atomic_file, atomic_folder, write_atomically


def test_a_file_that_cannot_be_written_stays_what_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "runs" / "run.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "runs" / "run.json", "new\ud800")
    assert (tmp_path / "runs" / "run.json").read_text() == "old"
    write_atomically(tmp_path / "runs" / "run.json", b"new")
    assert (tmp_path / "runs" / "run.json").read_text() == "new"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run.json"]


def fill(folder: Path, text: str, overwrite: bool = True, fails: bool = False) -> None:
    with atomic_folder(folder, overwrite) as staging:
        staging.mkdir()
        (staging / "weights").write_text(text)
        if fails:
            raise RuntimeError("half way")


def test_a_folder_is_replaced_as_one(tmp_path: Path) -> None:
    fill(tmp_path / "best", "first")
    (tmp_path / "best" / "more").write_text("of the first")
    fill(tmp_path / "best", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert [path.read_text() for path in (tmp_path / "best").iterdir()] == ["second"]


def test_a_folder_that_is_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    fill(tmp_path / "best", "first")
    with pytest.raises(RuntimeError, match="half way"):
        fill(tmp_path / "best", "second", fails=True)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "first"


def test_a_folder_that_may_not_be_overwritten_stays(tmp_path: Path) -> None:
    fill(tmp_path / "export", "first")
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "export", "second", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "weights").read_text() == "first"


def test_a_folder_that_was_not_made_leaves_the_one_before(tmp_path: Path) -> None:
    fill(tmp_path / "best", "first")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "best"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "first"


def test_a_folder_may_lie_where_nothing_is_yet(tmp_path: Path) -> None:
    fill(tmp_path / "run" / "new" / "best", "first")
    assert (tmp_path / "run" / "new" / "best" / "weights").read_text() == "first"


def test_what_a_killed_process_of_the_same_number_left_is_not_mixed_in(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "best") as staging:
        staging.mkdir()
    staging.mkdir()
    (staging / "left behind").touch()
    fill(tmp_path / "best", "first")
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_file_that_was_not_written_is_an_error_and_leaves_the_one_before(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "run.json", "old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a" / "run.json"):
        pass
    assert (tmp_path / "a" / "run.json").read_text() == "old"
