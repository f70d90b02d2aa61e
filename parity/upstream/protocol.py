"""What upstream's clients send to its server, and what the server answers (robometer/evals/eval_server.py).

From the parts of a request to clips, and from a scorer to the answer, without HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from robometer.errors import RobometerError
from robometer.frames.video import thin_positions
from robometer.models.heads import RewardHeads
from robometer.models.processing import RobometerProcessor
from robometer.scoring import Clip, ClipScore
from robometer.training.batch import progress_from_logits

PREFIX_FRAMES = 4
"""With `use_frame_steps` every prefix of a clip is shown as this many frames, whatever the model was trained on."""

CLIENT_FRAMES = 16
"""What a client thins and pads a clip to unless it says otherwise."""

_REFERENCE = "__numpy_file__"
_TRAJECTORIES = {"progress": ("trajectory",), "preference": ("chosen_trajectory", "rejected_trajectory")}

Sample = Clip | tuple[Clip, Clip]
"""A clip whose progress is asked for, or a pair of which the first is asked to be the better one."""


class ProtocolError(RobometerError):
    """A request that upstream's protocol does not know; upstream answers each with status 500."""


@dataclass(frozen=True)
class Asked:
    """One request: its samples, and whether each frame is scored as the last one of the prefix that it ends."""

    samples: Sequence[Sample]
    frame_steps: bool = False


class Judge(Protocol):
    """The part of a `Scorer` that is asked here."""

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]: ...

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray: ...


class EveryFrame:
    """Scores all frames of a clip in one pass, as upstream's server does, where `RobometerScorer` thins a long clip."""

    def __init__(self, model: RewardHeads, processor: RobometerProcessor) -> None:
        self._model, self._processor = model.eval(), processor

    @torch.no_grad()
    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        output = self._model(self._processor.collate_clips(clips))
        progress, success = progress_from_logits(output.progress_logits), output.success_logits.float().sigmoid()
        return [
            ClipScore(progress[i, : len(clip)].numpy(), success[i, : len(clip)].numpy()) for i, clip in enumerate(clips)
        ]

    @torch.no_grad()
    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `Scorer.compare`."""
        output = self._model(self._processor.collate_pairs(pairs))
        return np.asarray(output.preference_logits.float().sigmoid().numpy())


def client_frames(frames: np.ndarray, max_frames: int = CLIENT_FRAMES) -> np.ndarray:
    """What a client makes of a video before it sends it, uint8 [max_frames, H, W, 3].

    Thinned evenly with first and last kept, or padded by its last frame; where axis 1 is 3 long, [T, 3, H, W] is meant.

    Raises:
        ProtocolError: not four axes, or no frame.
    """
    if frames.ndim != 4 or len(frames) == 0:
        raise ProtocolError(f"frames have the shape {list(frames.shape)}: send [T, H, W, 3] with at least one frame")
    if frames.shape[1] == 3:
        frames = frames.transpose(0, 2, 3, 1)
    positions = thin_positions(len(frames), max_frames)
    return frames.take(np.pad(positions, (0, max_frames - len(positions)), mode="edge"), axis=0)


def frames_at_rate(num_frames: int, native_fps: float, fps: float) -> np.ndarray:
    """Indices int64 of the frames that the example client takes of a video at `fps`; 0 or less keeps all."""
    rate = fps if fps > 0 else native_fps
    count = num_frames if native_fps <= 0 else round(num_frames * rate / native_fps)
    return np.linspace(0, num_frames - 1, min(max(count, 1), num_frames)).astype(np.int64)


def prefixes(clip: Clip) -> list[Clip]:
    """Every prefix of a clip, shortest first, each as `PREFIX_FRAMES` frames at truncated even positions."""
    ends = range(len(clip))
    return [clip.take(np.linspace(0, end, PREFIX_FRAMES).astype(np.int64)) for end in ends]


def read_form(fields: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> Asked:
    """The request of `/evaluate_batch_npy`.

    Args:
        fields: `sample_{i}`, JSON of a sample each, and `use_frame_steps`, `true` or `false`.
        arrays: the `.npy` parts by name, which a sample refers to.

    Raises:
        ProtocolError: what is wrong with it.
    """
    names = sorted((name for name in fields if name.startswith("sample_")), key=_number)
    return Asked(
        _samples([_json(fields[name], name) for name in names], arrays),
        fields.get("use_frame_steps", "false").lower() == "true",
    )


def read_body(body: Any) -> Asked:
    """The request of `/evaluate_batch`, from its JSON. Frames are nested lists, which upstream itself refuses.

    Raises:
        ProtocolError: what is wrong with it.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("samples"), list):
        raise ProtocolError("the body has no list of samples: send an object with the key 'samples'")
    return Asked(_samples(body["samples"], {}), bool(body.get("use_frame_steps", False)))


def answer(judge: Judge, asked: Asked) -> dict[str, Any]:
    """The answer as it should be, ready for JSON; the order within a kind of sample is that of the request.

    With frame steps each frame gets one value, and pairs do not shift the values of the clips behind them.
    """
    clips = [sample for sample in asked.samples if isinstance(sample, Clip)]
    pairs = [sample for sample in asked.samples if not isinstance(sample, Clip)]
    answered: dict[str, Any] = {"outputs_preference": None, "outputs_progress": None, "outputs_success": None}
    if pairs:
        probabilities = judge.compare(pairs).tolist()
        answered["outputs_preference"] = {
            "predictions": [int(p > 0.5) for p in probabilities],
            "prediction_probs": probabilities,
            "preference_labels": [1.0] * len(pairs),  # upstream takes the first of a pair for the better one
        }
    if clips:
        scores = _by_prefix(judge, clips) if asked.frame_steps else judge.score(clips)
        answered["outputs_progress"] = {"progress_pred": [score.progress.tolist() for score in scores]}
        answered["outputs_success"] = {"success_probs": [score.success.tolist() for score in scores]}
    return answered


def repeated_answer(judge: Judge, asked: Asked) -> dict[str, Any]:
    """As upstream's server answers: with frame steps a clip of one frame gets a value for each of its repetitions."""
    answered = answer(judge, asked)
    clips = [sample for sample in asked.samples if isinstance(sample, Clip)]
    for i, clip in enumerate(clips):
        if asked.frame_steps and len(clip) == 1:
            (score,) = judge.score(prefixes(clip))
            answered["outputs_progress"]["progress_pred"][i] = score.progress.tolist()
            answered["outputs_success"]["success_probs"][i] = score.success.tolist()
    return answered


def _by_prefix(judge: Judge, clips: Sequence[Clip]) -> list[ClipScore]:
    scores = iter(judge.score([prefix for clip in clips for prefix in prefixes(clip)]))
    by_clip = [[next(scores) for _ in range(len(clip))] for clip in clips]
    return [ClipScore(_lasts(s.progress for s in of_clip), _lasts(s.success for s in of_clip)) for of_clip in by_clip]


def _lasts(values: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([value[-1] for value in values], dtype=np.float32)


def _number(name: str) -> int:
    tail = name.removeprefix("sample_")
    if not tail.isdecimal() or len(tail) > 9:  # Python refuses to read a number of thousands of digits
        raise ProtocolError(f"the field {name[:80]!r} is unknown: samples are sample_0, sample_1, ...")
    return int(tail)


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the field {name!r} is not JSON: {error}") from error


def _samples(values: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> list[Sample]:
    if not values:
        raise ProtocolError("the request has no samples: send at least one")
    return [_sample(value, f"sample {i}", arrays) for i, value in enumerate(values)]


def _sample(value: Any, where: str, arrays: Mapping[str, np.ndarray]) -> Sample:
    kind = value.get("sample_type") if isinstance(value, Mapping) else None
    if kind not in _TRAJECTORIES:
        raise ProtocolError(f"{where} is of the type {str(kind)[:40]!r}: send 'progress' or 'preference'")
    clips = [_clip(value.get(name), f"{name} of {where}", arrays) for name in _TRAJECTORIES[kind]]
    return clips[0] if kind == "progress" else (clips[0], clips[1])


def _clip(value: Any, where: str, arrays: Mapping[str, np.ndarray]) -> Clip:
    if not isinstance(value, Mapping) or not isinstance(value.get("task"), str):
        raise ProtocolError(f"{where} has no task: send an object with 'task' and 'frames'")
    frames = value.get("frames")
    if isinstance(frames, Mapping):
        name = str(frames.get(_REFERENCE))
        if name not in arrays:
            raise ProtocolError(f"{where} refers to {name[:80]!r}, which is no .npy part of the request")
        frames = arrays[name]
    try:
        return Clip(_uint8(frames), value["task"])
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"{where} has no frames that can be read: {error}") from error


def _uint8(frames: Any) -> np.ndarray:
    """An array as it is; of nested lists, whole numbers from 0 to 255."""
    if isinstance(frames, np.ndarray):
        return frames
    values = np.asarray(frames)
    if values.dtype.kind not in "iu" or values.size == 0 or values.min() < 0 or values.max() > 255:
        raise ValueError("frames must be whole numbers from 0 to 255, [T, H, W, 3]")
    return values.astype(np.uint8)
