"""Upstream's Meta-World roll-outs: demonstrations in an HDF5 file, and labelled roll-outs as videos in folders.

    metaworld_video.h5                      any *.h5 or *.hdf5 here
        button-press-v2/0, 1, 10, 11, 12    uint8 [T, H, W, 3]: demonstrations, successful
    window-close-v2/                        the tasks of evaluation
        GT/*.mp4, *.gif                     successful
        success/*.mp4, *.gif                successful
        close_succ/*.mp4, *.gif             suboptimal
        all_fail/*.mp4, *.gif               failure
    tasks.json                              optional, yours: {"window-close": "close the window", ...}

Either part may be missing. A task's name has "-" or "_", and may end in a version (-v2, -v3). The 20 tasks that
upstream trains on are the data set metaworld_train, and the 17 that it evaluates on metaworld_eval. Other tasks of
Meta-World are skipped, as upstream, unless the user names a data set. Instructions are those of the bundled corpus,
unless `tasks.json` has others. Robot, view `main`.

* Of each task's demonstrations only the keys 0, 1, 10, 11 and 12 are taken, as upstream.
* Upstream writes partial_success 0 on every row, even on successes; here it stays empty.
* Images are cropped to the central square. Upstream crops the central 224 pixels, whatever the size.
* Labelled videos of a training task belong to metaworld_train; upstream has no instruction for them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.corpus.readers.hdf5 import Frames, dataset, members, opened
from robometer.frames.recording import Recording, VideoFile
from robometer.frames.video import DEFAULT_LIMITS, Pick, Video, VideoLimits
from robometer.simulation import INSTRUCTIONS
from robometer.trajectory import Episode

TRAIN = (
    "button-press button-press-topdown-wall coffee-pull dial-turn door-open door-unlock drawer-close faucet-open "
    "hand-insert handle-press handle-pull-side peg-insert-side pick-place plate-slide plate-slide-back-side push reach "
    "stick-pull stick-push window-open"
).split()
EVAL = (
    "button-press-topdown button-press-wall coffee-button coffee-push door-close door-lock faucet-close "
    "handle-press-side handle-pull pick-place-wall plate-slide-back plate-slide-side push-back reach-wall soccer "
    "sweep-into window-close"
).split()
KEYS = ("0", "1", "10", "11", "12")
LISTING_NEEDS_A_DISK = ("*.h5", "*.hdf5")
QUALITY = {"GT": "successful", "success": "successful", "close_succ": "suboptimal", "all_fail": "failure"}


@dataclass(frozen=True)
class Square:
    """A recording, cropped to its central square."""

    whole: Recording

    def read(self, pick: Pick, *, short_edge: int | None = None, limits: VideoLimits = DEFAULT_LIMITS) -> Video:
        """See `Recording.read`."""
        video = self.whole.read(pick, short_edge=short_edge, limits=limits)
        height, width = video.frames.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return dataclasses.replace(video, frames=video.frames[:, top : top + side, left : left + side])


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The tasks of each HDF5 file, and the videos in each task's folder.

    Raises:
        FormatError: there is no such folder, or it has neither HDF5 files nor videos.
    """
    root = common.folder(input, "a folder of Meta-World roll-outs")
    texts = {_plain(name): text for name, text in common.task_texts(root).items()}
    files = common.files(root, "*.h5", "*.hdf5")
    videos = common.files(root, "*/*/*.mp4", "*/*/*.gif")
    if not files and not videos:
        raise FormatError(
            f"{input} has no *.h5 and no <task>/<quality>/*.mp4: give ingest.input a folder of Meta-World roll-outs"
        )
    for path in files:
        try:
            with opened(path) as file:
                names = members(file)
        except FormatError as error:
            yield Refused(str(path), str(error))
            continue
        for name in names:
            yield _unit(f"{path.name}/{name}", path, name, source, texts, {"group": name}, len(KEYS))
    for path in videos:
        task, quality = path.parts[-3:-1]
        if quality not in QUALITY:
            reason = f"the folder {quality!r} is none of {', '.join(QUALITY)}: its quality is unknown"
            yield Refused(str(path), reason, source)
            continue
        key = path.relative_to(root).as_posix()
        yield _unit(key, path, task, source, texts, {"quality": QUALITY[quality]}, 1)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The demonstrations of one task, or the one roll-out of a video."""
    if "quality" in unit.data:
        yield _episode(unit, unit.key, VideoFile(unit.uri), unit.data["quality"])
        return
    with opened(unit.uri) as file:
        group = file.get(unit.data["group"])
        if not isinstance(group, h5py.Group):
            raise FormatError(f"{unit.data['group']} is not a group of demonstrations")
        for name in members(group):
            key = f"{unit.key}/{name}"
            if name not in KEYS:
                reason = f"upstream takes only the demonstrations {', '.join(KEYS)} of a task"
                yield Refused(unit.uri, reason, unit.source, key, "main", skipped=True)
            elif (frames := dataset(group, name)) is None:
                yield Refused(unit.uri, "it is not an array of frames", unit.source, key, "main")
            else:
                yield _episode(unit, key, Frames(frames), "successful")


def _plain(task: str) -> str:
    return re.sub(r"-v\d$", "", task.replace("_", "-"))


def _unit(
    key: str, path: Path, name: str, source: str, texts: dict[str, str], data: dict[str, str], count: int
) -> Unit | Refused:
    task = _plain(name)
    own = "metaworld_train" if task in TRAIN else "metaworld_eval" if task in EVAL else ""
    text = texts.get(task) or INSTRUCTIONS.get(f"{task}-v3")
    if text is None:
        return Refused(str(path), f"{name!r} is not a task of Meta-World, and tasks.json does not name it", source, key)
    if not own and not source:
        return Refused(str(path), f"upstream uses {name!r} in neither of its data sets", source, key, skipped=True)
    return Unit(key, source or own, str(path), count, {"task": text, **data})


def _episode(unit: Unit, key: str, recording: Recording, quality: str) -> Episode:
    return Episode(
        source=unit.source,
        episode_key=key,
        view="main",
        task=unit.data["task"],
        recording=Square(recording),
        uri=unit.uri,
        raw_quality_label=quality,
    )
