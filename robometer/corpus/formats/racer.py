"""RACER (RLBench with added failures): PNG frames of three cameras, and a description of what happens in them.

    <input>/{train,val}/                     or {train,val}/samples/
      open_drawer/<episode>/
        language_description.json
        {front,left_shoulder,right_shoulder}_rgb/0_expert.png, 0_perturb.png, 48_expert.png ...

In `language_description.json`, `task_goal` is the task text. `subgoal` has a key `<frame>_expert` for each key frame of
the expert, whose `augmentation` names images of what could go wrong there. Each view gives a successful trajectory of
the expert's frames. For each key frame with an augmentation that is labelled as a failure, it also gives a failed one:
the expert's frames before the key frame, then the first such image. The sources are racer_train and racer_val (upstream
writes `racer` into both). Set `ingest.source_name` to one of the two to read only that part.

Unlike upstream, a trajectory whose failure image is missing is refused (upstream keeps the expert's frames and labels
them a failure), and images are found by their full name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, natural, numbered, read_json, subfolders
from robometer.corpus.formats.image_folders import images, refused, sequence, unit_of
from robometer.trajectory import Episode

PARTS = {"train": "racer_train", "val": "racer_val"}
CAMERAS = {"front": "front_rgb", "left_sh": "left_shoulder_rgb", "right_sh": "right_shoulder_rgb"}
DESCRIPTION = "language_description.json"
EXPERT = "expert"


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episode folders of both parts.

    Raises:
        FormatError: there is no folder train or val.
    """
    root = folder(input, "of RACER, with folders train and val")
    parts = {part: root / part for part, name in PARTS.items() if source not in PARTS.values() or source == name}
    if not any(path.is_dir() for path in parts.values()):
        raise FormatError(f"{input} has no folder {' or '.join(parts)}")
    for part, place in parts.items():
        place = place / "samples" if (place / "samples").is_dir() else place
        for task in subfolders(place) if place.is_dir() else []:
            for path in numbered(subfolders(task)):
                if (path / DESCRIPTION).exists():
                    yield unit_of(path, root, source or PARTS[part], 3 * len(CAMERAS))
                else:
                    yield refused(path, f"there is no {DESCRIPTION}")


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """For each view the expert's trajectory, then its failures."""
    base = Path(unit.uri)
    described = read_json(base / DESCRIPTION)
    if not isinstance(described, dict) or not isinstance(described.get("subgoal") or {}, dict):
        raise FormatError(f"{DESCRIPTION} must be an object, and its `subgoal` too")
    task = str(described.get("task_goal") or "").strip() or base.parent.name
    failures = dict(_failures(described.get("subgoal") or {}))
    for view, name in CAMERAS.items():
        place = base / name
        paths = {path.stem: path for path in images(place, "*.png")}
        expert = {stem: path for stem, path in paths.items() if EXPERT in stem}
        if not expert:
            why = "has no frames of the expert" if place.is_dir() else "is not there: this camera was not recorded"
            yield Refused(str(place), f"{name} {why}", unit.source, unit.key, view, skipped=not place.is_dir())
            continue
        yield Episode(unit.source, unit.key, view, task, sequence(list(expert.values())), str(place))
        for frame, image in failures.items():
            key = f"{unit.key}/failure@{frame}"
            if image not in paths:
                yield Refused(str(place), f"there is no image {image}.png of the failure", unit.source, key, view)
                continue
            chosen = [path for stem, path in expert.items() if _frame(stem) < frame] + [paths[image]]
            yield Episode(
                unit.source,
                key,
                view,
                task,
                sequence(chosen),
                str(place / paths[image].name),
                raw_quality_label="failure",
            )


def _failures(subgoals: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """(frame, name of the first failure's image) of the expert's key frames."""
    for key in natural(subgoals):
        entry = subgoals[key]
        added = entry.get("augmentation") if isinstance(entry, dict) else None
        if EXPERT not in key or (frame := _frame(key)) < 0 or not isinstance(added, dict):
            continue
        for image, content in added.items():
            if isinstance(content, dict) and "failure" in str(content.get("label", "")).lower():
                yield frame, str(image).removesuffix(".png")
                break


def _frame(name: str) -> int:
    number = name.split("_")[0]
    return int(number) if number.isdecimal() else -1
