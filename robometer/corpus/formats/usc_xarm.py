"""USC xArm policy ranking: a pickle per time step.

    <input>/                             or below <input>/xarm_policy_ranking
      fold_towel_success_3/              <task>_<quality>_<id>
        0.pkl, 1.pkl ...                 a dict with a camera's frame uint8, BGR, [H, W, 3] or [3, H, W]

Quality: success(ful), subopt(imal), fail(ure). The view is the first camera of `CAMERAS` that the first step has.
Pickles are read without running any code of theirs (`robometer.corpus.readers.safe_pickle`). Six tasks have a sentence;
the others are their name in words, as upstream. An episode with a step that lacks the camera goes to quarantine
(upstream leaves out the step).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, numbered
from robometer.corpus.formats.usc_franka import ranked_units
from robometer.corpus.readers.safe_pickle import load
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode

NAME = "usc_xarm_policy_ranking"
CAMERAS = ("f1421749_rgb", "f1421370_rgb", "front_rgb", "hand_rgb", "rgb")
TASKS = {
    "close_drawer": "Close the drawer",
    "fold_towel": "Fold the towel in half",
    "pick_blue_cup": "Put blue cup in sink",
    "put_banana_on_red_plate": "Put the banana on the red plate",
    "put_eggplant_black_bowl": "Put the eggplant in the black bowl",
    "stack_green_on_red": "Stack the green shape on the red cylinder",
}


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episode folders.

    Raises:
        FormatError: there are none.
    """
    root = folder(input, "with folders <task>_<quality>_<id> of pickles")
    root = root / "xarm_policy_ranking" if (root / "xarm_policy_ranking").is_dir() else root
    yield from ranked_units(root, source or NAME, TASKS)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one trajectory of a folder."""
    paths = numbered(Path(unit.uri).glob("*.pkl"))
    if not paths:
        raise FormatError("the folder has no .pkl files")
    first = load(paths[0])
    camera = next((name for name in CAMERAS if isinstance(first, dict) and first.get(name) is not None), None)
    if camera is None:
        raise FormatError(f"{paths[0].name} has no frame of {', '.join(CAMERAS)}")

    def frame(i: int) -> np.ndarray:
        step = load(paths[i])
        if not isinstance(step, dict) or step.get(camera) is None:
            raise FormatError(f"{paths[i].name} has no {camera}")
        pixels = np.asarray(step[camera])
        planes = pixels.ndim == 3 and pixels.shape[0] == 3 != pixels.shape[2]
        return (pixels.transpose(1, 2, 0) if planes else pixels)[..., ::-1].copy()

    yield Episode(
        source=unit.source,
        episode_key=unit.key,
        view=camera,
        task=unit.data["task"],
        recording=ImageSequence(len(paths), frame),
        uri=unit.uri,
        raw_quality_label=unit.data["quality_label"],
    )
