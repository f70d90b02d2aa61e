"""EgoDex: people's hands filmed from their heads. Each episode is an mp4 and an HDF5 file of the same name.

    part1/                                  part1 ... part5, test; one of them, or a folder of them
        add_remove_lid/
            0.mp4
            0.hdf5                          attributes llm_description, llm_description2, which_llm_description

A pair is one trajectory of a human, successful, view `ego`. The folder part1 becomes the data set egodex_part1, and
test egodex_test. The task is `llm_description`, or `llm_description2` if `which_llm_description` is 2 (some tasks can
be done in two directions, such as adding or removing a lid). Episodes whose "description [is] unavailable" are left
out, as upstream. Upstream cuts videos at 1800 frames; here every video is read to its end. Hand poses are not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.corpus.readers.hdf5 import attribute, opened
from robometer.frames.recording import VideoFile
from robometer.trajectory import Episode

_PART = re.compile(r"(?:egodex_)?(part[1-5]|test)")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episodes of one part or of several.

    Raises:
        FormatError: there is no such folder, or it has no episodes.
    """
    root = common.folder(input, "a folder of EgoDex's parts")
    stems = sorted({path.with_suffix("") for path in common.files(root, "**/*.hdf5", "**/*.mp4")})
    if not stems:
        raise FormatError(f"no *.hdf5 and *.mp4 files below {input}: give ingest.input a folder of EgoDex's parts")
    for stem in stems:
        part = next((f for f in stem.parents if _PART.fullmatch(common.name_of(f)) and f.is_relative_to(root)), None)
        if part is None and not source:
            reason = "it is in none of the folders part1 ... part5, test: name its data set with ingest.source_name"
            yield Refused(f"{stem}.hdf5", reason)
            continue
        # Relative to the part's folder, so that the key is the same if ingest.input is that folder or the one above.
        key = stem.relative_to(part or root).as_posix()
        key = f"{common.name_of(part)}/{key}" if part else key
        name = f"egodex_{common.name_of(part).removeprefix('egodex_')}" if part else ""
        yield Unit(key, source or name, f"{stem}.hdf5", files=[f"{stem}.hdf5", f"{stem}.mp4"])


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one trajectory of a pair of files."""
    labels = Path(unit.uri)
    video = labels.with_suffix(".mp4")
    for path, other in ((video, labels), (labels, video)):
        if not path.is_file():
            yield Refused(str(other), f"there is no {path.name} beside it", unit.source, unit.key, "ego")
            return
    with opened(labels) as file:
        second = attribute(file, "which_llm_description").strip() == "2"
        task = attribute(file, "llm_description2" if second else "llm_description")
    if "description unavailable" in task.lower():
        reason = "its description is unavailable: upstream leaves it out"
        yield Refused(str(video), reason, unit.source, unit.key, "ego", skipped=True)
        return
    yield Episode(
        source=unit.source,
        episode_key=unit.key,
        view="ego",
        task=task,
        recording=VideoFile(str(video)),
        uri=str(video),
        is_robot=False,
    )
