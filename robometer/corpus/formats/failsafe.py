"""FailSafe (ManiSkill): PNG frames of whole attempts, and cuts of them that are listed in JSON files.

    <input>/
      FailPickCube-v1/<seed>/
        Ground_Truth/{front,side,wrist}/0.png ...     successful
        1_trans_x_2/{front,side,wrist}/0.png ...      an attempt with an injected failure
      json_files/vla_data_*.json                      or <input>/vla_data_*.json

Each JSON file is a list of cuts with `image` (paths relative to <input>, of one view or several), `sub_task` or else
`instruction` (the task text), and `failure_type` (none: successful). Each view of an attempt or a cut is a trajectory;
all three cameras are kept, as upstream. A task with only successes or only failures is left out, as upstream.

Unlike upstream, which draws a third of the cuts at random, this takes all of them. It also reads attempts whose seed
has no Ground_Truth, where upstream's loader stops.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, numbered, read_json, subfolders
from robometer.corpus.formats.image_folders import episodes, refused, unit_of
from robometer.trajectory import normalise_task

__all__ = ["episodes", "units"]

NAME = "failsafe"
VIEWS = ("front", "side", "wrist")
TASKS = {
    "FailPickCube-v1": "Pick up the red cube",
    "FailPushCube-v1": "Push and move a cube to a goal region in front of it",
    "FailStackCube-v1": (
        "Pick up a red cube and stack it on top of a green cube and let go of the cube without it falling"
    ),
}
SUCCESS = "Ground_Truth"


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """Whole attempts, then cuts.

    Raises:
        FormatError: there are neither attempts nor cuts.
    """
    root = folder(input, "of FailSafe, with folders FailPickCube-v1/<seed>")
    entries = [*_attempts(root, source or NAME), *_cuts(root, source or NAME)]
    if not entries:
        raise FormatError(f"{input} has no folders {', '.join(TASKS)}, and no vla_data_*.json")
    labels: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if isinstance(entry, Unit):
            labels[normalise_task(entry.data["task"])].add(entry.data["quality_label"])
    for entry in entries:
        if isinstance(entry, Unit) and len(labels[normalise_task(entry.data["task"])]) < 2:
            error = f"all episodes of its task are {entry.data['quality_label']}: there is nothing to compare them with"
            yield Refused(entry.uri, error, entry.source, entry.key, skipped=True)
        else:
            yield entry


def _attempts(root: Path, source: str) -> Iterator[Unit | Refused]:
    views = {view: f"{view}/*.png" for view in VIEWS}
    for name, sentence in TASKS.items():
        for seed in numbered(subfolders(root / name)) if (root / name).is_dir() else []:
            for attempt in numbered(subfolders(seed)):
                label = "successful" if attempt.name == SUCCESS else "failure"
                yield unit_of(attempt, root, source, len(VIEWS), task=sentence, quality_label=label, views=views)


def _cuts(root: Path, source: str) -> Iterator[Unit | Refused]:
    place = root / "json_files" if (root / "json_files").is_dir() else root
    for path in numbered(place.glob("vla_data_*.json")):
        try:
            entries = read_json(path)
            if not isinstance(entries, list):
                raise FormatError(f"{path.name} is not a list of cuts")
        except FormatError as error:
            yield refused(path, str(error))
            continue
        for number, entry in enumerate(entries):
            try:
                yield _cut(entry, root, source)
            except FormatError as error:
                yield Refused(f"{path}#{number}", f"entry {number} of {path.name}: {error}", source)


def _cut(entry: Any, root: Path, source: str) -> Unit:
    if not isinstance(entry, dict) or not isinstance(names := entry.get("image"), list) or not names:
        raise FormatError("it has no list `image`")
    sentence = entry.get("sub_task") or entry.get("instruction") or TASKS.get(str(entry.get("task")), "")
    if not isinstance(sentence, str) or not sentence.strip():
        raise FormatError("it has no sub_task and no instruction")
    files: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(str(name).replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise FormatError(f"the image {str(name)[:80]!r} lies outside the data set")
        if view := next((part for part in reversed(parts[:-1]) if part in VIEWS), None):
            files.setdefault(view, []).append("/".join(parts))
    if not files:
        raise FormatError(f"none of its images is in a folder {', '.join(VIEWS)}")
    # The views of a cut may be one entry or several: the episode key must be the same.
    first = next(iter(files.values()))
    place = PurePosixPath(first[0]).parent.parent
    identity = [sentence, str(place), [PurePosixPath(name).name for name in first]]
    key = f"{place}/{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"
    failure = str(entry.get("failure_type") or "none").lower() != "none"
    return Unit(
        key="\x1f".join((key, *files)),
        source=source,
        uri=str(root),
        count=len(files),
        data={
            "episode_key": key,
            "task": sentence,
            "quality_label": "failure" if failure else "successful",
            "files": files,
        },
        files=sorted({str(root / PurePosixPath(name).parent) for names in files.values() for name in names}),
    )
