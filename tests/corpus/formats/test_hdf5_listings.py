"""Folders of no HDF5 format end in one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.hdf5_files import write
from tests.corpus.formats.raw import roll_out


@pytest.mark.parametrize("name", ["libero", "metaworld", "egodex", "h2r", "ph2d"])
def test_an_empty_or_absent_folder(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FormatError, match=r"give ingest.input (a|the) (downloaded )?folder"):
            list(list_units(name, str(folder)))


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1}', '{"a": " "}'])
def test_a_malformed_table_of_tasks(content: str, tmp_path: Path) -> None:
    write(tmp_path / "grab_cup_v1" / "0.hdf5", {"frames": roll_out(0).frames})
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(FormatError, match=r"tasks.json"):
        list(list_units("h2r", str(tmp_path)))


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"per_task_attributes": []}'])
def test_a_malformed_listing_of_ph2d(content: str, tmp_path: Path) -> None:
    (tmp_path / "ph2d_metadata.json").write_text(content)
    with pytest.raises(FormatError, match=r"ph2d_metadata.json"):
        list(list_units("ph2d", str(tmp_path)))
