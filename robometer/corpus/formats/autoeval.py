"""AutoEval: one pickle per evaluation episode of a WidowX.

    <input>/eval_data/**/*.pkl           or <input>/**/*.pkl

A pickle holds an object (or dict) with `language_command` (the task text), `success` (a flag) and `obs`, whose
`image_primary` holds the frames: uint8 [T, H, W, 3], or a list of T frames. Or it holds a list of steps, each with an
`obs`, and `success` in the last one. Without the flag, the file's name decides (`..._success.pkl`, `..._fail.pkl`).
Pickles are read without running any code of theirs (`robometer.corpus.readers.safe_pickle`), and objects of
robot_eval_logger and wandb need neither package.

Label: successful or failure, with partial success 1 or 0, as upstream. Source: auto_eval_rfm, the name in upstream's
lists (its loader writes `autoeval`). Episodes of 5 frames or fewer are left out, as upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, text
from robometer.corpus.formats.image_folders import unit_of
from robometer.corpus.readers.safe_pickle import PickledObject, load
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode

NAME = "auto_eval_rfm"
VIEW = "image_primary"
PACKAGES = ("robot_eval_logger", "wandb")
SHORTEST = 6


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The pickles.

    Raises:
        FormatError: there are none.
    """
    root = folder(input, "of AutoEval, with eval_data/**/*.pkl")
    root = root / "eval_data" if (root / "eval_data").is_dir() else root
    if not (paths := files(root, "**/*.pkl")):
        raise FormatError(f"{input} has no .pkl files")
    for path in paths:
        yield unit_of(path, root, source or NAME)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one trajectory of a pickle."""
    path = Path(unit.uri)
    content = load(path, packages=PACKAGES)
    steps = [_fields(step) for step in content] if isinstance(content, list) else None
    episode = _fields(content) if steps is None else _joined(steps)
    frames = _frames(episode)
    if len(frames) < SHORTEST:
        error = f"{len(frames)} frames are fewer than {SHORTEST}"
        yield Refused(unit.uri, error, unit.source, unit.key, VIEW, skipped=True)
        return
    success = _success(episode.get("success"), path)
    yield Episode(
        source=unit.source,
        episode_key=unit.key,
        view=VIEW,
        task=text(episode.get("language_command") or ""),
        recording=ImageSequence(len(frames), lambda i: _image(frames[i])),
        uri=unit.uri,
        raw_quality_label="successful" if success else "failure",
        partial_success=float(success),
    )


def _fields(value: Any) -> Mapping[str, Any]:
    value = value.fields if isinstance(value, PickledObject) else value
    if not isinstance(value, dict):
        raise FormatError(f"it holds a {type(value).__name__} instead of an episode or a step")
    return value


def _joined(steps: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Steps as one episode: all their frames, and the last value of every other field."""
    episode = {key: value for step in steps for key, value in step.items() if value is not None}
    return episode | {"obs": {VIEW: [_fields(step.get("obs", {})).get(VIEW) for step in steps]}}


def _frames(episode: Mapping[str, Any]) -> Any:
    frames = _fields(episode.get("obs", {})).get(VIEW)
    if frames is None:
        raise FormatError(f"it has no obs.{VIEW}")
    return frames if isinstance(frames, list) else np.asarray(frames)


def _image(frame: Any) -> np.ndarray | bytes:
    return frame if isinstance(frame, bytes) else np.asarray(frame)


def _success(flag: Any, path: Path) -> bool:
    if flag is not None:
        value = np.asarray(flag).item()
        if not isinstance(value, bool | int | float):
            raise FormatError(f"its flag `success` is {str(value)[:40]!r}")
        return bool(value)
    for word, success in (("success", True), ("fail", False), ("failure", False)):
        if path.stem.lower().endswith(f"_{word}"):
            return success
    raise FormatError("it has no flag `success`, and its name does not end in _success or _fail")
