"""FinoNet: PNG sequences of five tabletop tasks, each with a file of failure labels.

    <input>/                                      or below <input>/failure
      failnet_dataset/rgb_imgs/
        put_on/9/frame0000000.png, frame0000024.png ...
      put_on_annotation.txt                       lines `<episode>,<label>` under a header, label 1 = failed

The first ten frames do not show the arm yet and are left out. The word `failed` is kept as the raw label. The sentence
of any other task comes from `<input>/tasks.json` ({task: sentence}), or else is the task's name in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, numbered, read_json, subfolders, text
from robometer.corpus.formats.image_folders import episodes, refused, unit_of
from robometer.errors import RobometerError

__all__ = ["episodes", "units"]

NAME = "fino_net"
TASKS = {
    "put_on": "put the single block on the table onto the stack",
    "put_in": "put the object on the table into the container",
    "place": "place the left object on the table onto the stack",
    "pour": "pour the contents of the cup into the receptacle on the table without spilling",
    "push": "push the object towards the right without knocking it over",
}
LABELS = {"0": "successful", "1": "failed"}
FIRST_FRAMES = 10


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episode folders that the annotation files list. A folder without a label, or a label without one, is refused.

    Raises:
        FormatError: there is no folder rgb_imgs, or no annotation file.
    """
    root = folder(input, "of FinoNet, with failnet_dataset/rgb_imgs")
    pictures = next((p for p in _places(root, "failnet_dataset/rgb_imgs") if p.is_dir()), None)
    if pictures is None:
        raise FormatError(f"{input} has no folder failnet_dataset/rgb_imgs: unpack failure.zip there")
    tasks = TASKS | (read_json(root / "tasks.json") if (root / "tasks.json").exists() else {})
    listed = [path for place in _places(root, "") for path in sorted(place.glob("*_annotation.txt"))]
    if not listed:
        raise FormatError(f"{input} has no files <task>_annotation.txt, which hold the labels")
    for path in listed:
        task = path.name.removesuffix("_annotation.txt")
        yield from _task(path, pictures / task, source or NAME, str(tasks.get(task, task.replace("_", " "))))
    for place in subfolders(pictures):
        if not any(path.name == f"{place.name}_annotation.txt" for path in listed):
            yield refused(place, f"there is no {place.name}_annotation.txt: its episodes have no labels")


def _places(root: Path, name: str) -> list[Path]:
    return [root / name, root / "failure" / name]


def _task(annotation: Path, place: Path, source: str, sentence: str) -> Iterator[Unit | Refused]:
    labels: dict[str, str] = {}
    try:
        lines = text(annotation.read_bytes()).splitlines()
    except RobometerError as error:
        yield refused(annotation, str(error))
        return
    for number, line in enumerate(lines[1:], start=2):
        name, _, label = (part.strip() for part in line.partition(","))
        if name.isdecimal() and label in LABELS:
            labels[str(int(name))] = LABELS[label]
        elif line.strip():
            yield Refused(f"{annotation}:{number}", f"the line {line[:80]!r} is not <episode>,<0 or 1>", source)
    folders = {path.name: path for path in numbered(subfolders(place) if place.is_dir() else [])}
    for name, path in folders.items():
        if name in labels:
            data: dict[str, Any] = {"task": sentence, "quality_label": labels[name], "drop": FIRST_FRAMES}
            yield unit_of(path, place.parent, source, **data, views={"main": "*.png"})
        else:
            yield refused(path, f"{annotation.name} has no label for this episode")
    for name in sorted(labels.keys() - folders.keys(), key=int):
        yield Refused(str(place / name), f"{annotation.name} names this episode, but there is no such folder", source)
