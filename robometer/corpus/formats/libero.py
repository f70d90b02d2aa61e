"""LIBERO demonstrations, and failed replays of them: HDF5 files of robosuite.

    libero_10/                              or a folder of such folders
        KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it_demo.hdf5
            data                            attribute problem_info: JSON with language_instruction
                demo_0/obs/agentview_rgb    uint8 [T, H, W, 3], upside down
                demo_0/rewards, dones       [T], optional

Each `demo_N` is one trajectory of a robot, view `agentview`. Its task is the instruction in `problem_info`, or else the
file's name after its SCENE token, with "_" as spaces and without "demo" (in LIBERO's own files both say the same).

The folder's name gives the data set: `libero_10`, `libero_object`, `libero_spatial`, `libero_goal` and `libero_90`
(also `libero256_10`, or with `_no_noops` at the end) become upstream's libero256_10 ... libero256_90, all successful;
`libero_10_failure` ... keep their names, and are all failures. Despite the name, the resolution may be any.

* Images are flipped top to bottom only. Upstream does the same but calls it a rotation by 180 degrees: robosuite
  renders upside down, not mirrored.
* Upstream renders LIBERO again at 256 pixels and leaves out steps with |action| < 1e-4. That replay needs the
  simulator; here the files are read as they are.
* `rewards` and `dones` become env_reward and env_success if they have one value per frame. For failures they are
  ignored: the recorder marks the last step of every file as done, even of a failed replay.
* The wrist camera (`eye_in_hand_rgb`) is left out, as upstream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.corpus.readers.hdf5 import Frames, attribute, dataset, members, opened
from robometer.trajectory import Episode, TrajectoryError

CAMERA = "obs/agentview_rgb"
WRIST = "obs/eye_in_hand_rgb"
FPS = 20.0  # the control frequency of LIBERO's environments
_SUITE = re.compile(r"libero(?:256)?_(10|object|spatial|goal|90)(?:_no_noops)?(_failure)?")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The HDF5 files of one suite's folder, or of several.

    Raises:
        FormatError: there is no such folder, or it has no HDF5 files.
    """
    root = common.folder(input, "a folder of LIBERO's *.hdf5 files")
    paths = common.files(root, "**/*.hdf5")
    if not paths:
        raise FormatError(f"no *.hdf5 file below {input}: give ingest.input a folder of LIBERO demonstrations")
    for path in paths:
        suite = next((f for f in path.parents if _SUITE.fullmatch(common.name_of(f)) and f.is_relative_to(root)), None)
        if suite is None and not source:
            yield Refused(
                str(path),
                f"the folder {path.parent.name!r} is not named after a LIBERO suite: call it libero_10, "
                "libero_goal_failure or similar, or name the data set with ingest.source_name",
            )
            continue
        name = _data_source(common.name_of(suite)) if suite else source
        # Relative to the suite's folder, so that the key is the same if ingest.input is that folder or the one above.
        key = path.relative_to(suite or root).with_suffix("").as_posix()
        key = f"{common.name_of(suite)}/{key}" if suite else key
        yield Unit(key, source or name, str(path), count=50, data={"failure": name.endswith("_failure")})


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The demonstrations of a file, demo_2 before demo_10."""
    with opened(unit.uri) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            raise FormatError(f"{Path(unit.uri).name} has no group `data`: it is not a LIBERO file")
        task = _task(data, Path(unit.uri).stem)
        for name in members(data):
            yield from _of_demo(unit, data.get(name), f"{unit.key}/{name}", task)


def _data_source(folder: str) -> str:
    name = _SUITE.fullmatch(folder)
    assert name is not None
    return f"libero_{name[1]}_failure" if name[2] else f"libero256_{name[1]}"


def _task(data: h5py.Group, stem: str) -> str:
    if problem := attribute(data, "problem_info"):
        try:
            instruction = "".join(json.loads(problem).get("language_instruction", ""))  # some hold a list of letters
        except (ValueError, AttributeError, TypeError) as error:
            raise FormatError(f"the attribute problem_info of {stem}.hdf5 must be JSON with an instruction") from error
        if instruction := instruction.strip().strip('"'):
            return instruction
    words = stem.split("_")
    scene = next((i for i, word in enumerate(words) if "SCENE" in word), -1)
    return " ".join(word for word in words[scene + 1 :] if word != "demo")


def _of_demo(unit: Unit, demo: Any, key: str, task: str) -> Iterator[Episode | Refused]:
    try:
        frames = dataset(demo, CAMERA) if isinstance(demo, h5py.Group) else None
        if frames is None:
            raise TrajectoryError(f"the demonstration has no camera {CAMERA}")
        truth = {} if unit.data["failure"] else _truth(demo, frames)
    except TrajectoryError as error:
        yield Refused(unit.uri, str(error), unit.source, key, "agentview")
        return
    yield Episode(
        source=unit.source,
        episode_key=key,
        view="agentview",
        task=task,
        recording=Frames(frames, FPS, change=_upright),
        uri=unit.uri,
        raw_quality_label="failure" if unit.data["failure"] else "successful",
        **truth,
    )
    if WRIST in demo:
        yield Refused(unit.uri, "a wrist camera: upstream leaves it out", unit.source, key, "eye_in_hand", skipped=True)


def _truth(demo: h5py.Group, frames: h5py.Dataset) -> dict[str, Any]:
    rewards, dones = (_per_frame(demo, name, frames) for name in ("rewards", "dones"))
    return {
        "env_reward": None if rewards is None or not np.isfinite(rewards).all() else rewards.tolist(),
        "env_success": None if dones is None else (dones > 0).astype(int).tolist(),
    }


def _per_frame(demo: h5py.Group, name: str, frames: h5py.Dataset) -> np.ndarray | None:
    values = dataset(demo, name)
    if values is None or values.dtype.kind not in "biuf" or values.shape != (frames.shape or ())[:1]:
        return None
    return np.asarray(values[:], dtype=float)


def _upright(frame: np.ndarray) -> np.ndarray:
    return frame[::-1]
