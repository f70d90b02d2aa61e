"""A trajectory, one camera view of one episode: its labels, its identity and its Arrow schema."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from robometer.errors import RobometerError
from robometer.frames.recording import Recording

FAILURE, SUBOPTIMAL, SUCCESSFUL = QUALITY_LABELS = ("failure", "suboptimal", "successful")
"""From worst to best: a label's index is its rank in policy ranking."""

_SYNONYMS = {"failed": "failure", "fail": "failure", "optimal": "successful", "success": "successful"}

SCHEMA_VERSION = 3


class TrajectoryError(RobometerError):
    """A trajectory that cannot enter the corpus; the message is the reason that quarantine records."""


def quality_label(raw: str | None) -> str:
    """Map a raw quality label to one of `QUALITY_LABELS` (upstream also writes `failed` and `optimal`).

    Raises:
        TrajectoryError: the label is unknown.
    """
    label = (raw or "").strip().lower()
    label = _SYNONYMS.get(label, label)
    if label not in QUALITY_LABELS:
        raise TrajectoryError(f"quality label {raw!r} is not one of {', '.join(QUALITY_LABELS)}")
    return label


def trajectory_id(source: str, episode_key: str, view: str) -> str:
    """Content key of a trajectory: 32 hex digits of SHA-256 over (source, episode key, view)."""
    return hashlib.sha256("\x1f".join((source, episode_key, view)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def normalise_task(task: str) -> str:
    """One spelling per instruction: surrounding and repeated white space removed, case folded, no final period."""
    return " ".join(task.split()).rstrip(".").casefold()


@dataclass(frozen=True)
class Episode:
    """One camera view of one episode as its source describes it, before any frame is decoded.

    Attributes:
        source: data set; training balances and reports by it, and it decides the success cut-off.
        episode_key, view: with `source`, the identity of the trajectory.
        task: the instruction.
        recording: the frames.
        uri: where the frames came from.
        raw_quality_label: the source's own word for the quality; see `quality_label`.
        is_robot: False for a human.
        partial_success: share of the task that was done, in [0, 1]; None where nobody judged it.
        split: empty for the split that `ingest` sets.
        env_reward, env_success: the simulator's reward and success flag per source frame; None where unknown.
        fps: frames per second where the recording does not know them or is wrong.
    """

    source: str
    episode_key: str
    view: str
    task: str
    recording: Recording
    uri: str
    raw_quality_label: str = "successful"
    is_robot: bool = True
    partial_success: float | None = None
    split: str = ""
    env_reward: Sequence[float] | None = None
    env_success: Sequence[int] | None = None
    fps: float | None = None

    @property
    def id(self) -> str:
        """Content key, see `trajectory_id`."""
        return trajectory_id(self.source, self.episode_key, self.view)

    def validate(self) -> str:
        """Check the labels and return the normalised quality label.

        Raises:
            TrajectoryError: there is no task text, the quality label is unknown, or the partial success is outside
                [0, 1].
        """
        if not self.task.strip():
            raise TrajectoryError("no task text")
        if self.partial_success is not None:
            value = float(self.partial_success)
            if math.isnan(value) or not 0.0 <= value <= 1.0:
                raise TrajectoryError(f"partial_success {self.partial_success!r} is not in [0, 1]")
        return quality_label(self.raw_quality_label)


MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("episode_key", pa.string()),
        ("view", pa.string()),
        ("task", pa.string()),
        ("is_robot", pa.bool_()),
        ("quality_label", pa.string()),
        ("raw_quality_label", pa.string()),
        ("partial_success", pa.float32()),
        ("split", pa.string()),
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("source_fps", pa.float32()),
        ("source_num_frames", pa.int32()),
        ("size_bytes", pa.int64()),
        ("uri", pa.string()),
        ("content_hash", pa.string()),
        ("labels_hash", pa.string()),
        ("settings_hash", pa.string()),
        ("revision", pa.int32()),
        ("shard", pa.string()),
        ("row", pa.int32()),
    ],
    metadata={"robometer_schema_version": str(SCHEMA_VERSION)},
)
"""A manifest row: everything about a trajectory but its pixels, and where those lie (shard, record batch).

`labels_hash` covers the labels, `content_hash` the frames. Of rows with the same id, the one with the highest
`revision` counts: an update stores the new row beside the old one."""

_PLACE = ("shard", "row")

SHARD_SCHEMA = pa.schema(
    [
        *(field for field in MANIFEST_SCHEMA if field.name not in _PLACE),
        ("unit", pa.string()),
        ("frame_index", pa.list_(pa.int32())),
        ("env_reward", pa.list_(pa.float32())),
        ("success", pa.list_(pa.int8())),
        ("frames", pa.list_(pa.binary())),
    ],
    metadata={"robometer_schema_version": str(SCHEMA_VERSION)},
)
"""A shard row. One record batch holds one trajectory, so that reading a trajectory is one ranged read. It repeats the
manifest row and names the unit of raw data, so that a lost manifest can be rebuilt from the shards alone."""

QUARANTINE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("episode_key", pa.string()),
        ("view", pa.string()),
        ("uri", pa.string()),
        ("unit", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
    ]
)
"""A refused episode. `stage` is list (it could not be read as an episode), labels, video, or skip (left out by
design)."""
