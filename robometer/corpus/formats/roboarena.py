"""RoboArena: policies on a DROID Franka, run in pairs and graded by evaluators around the world.

    roboarena/
      evaluation_sessions/                       (or ingest.input is this folder)
        <session>/
          metadata.yaml                          language_instruction, policies: {A: {policy_name, partial_success}}
          A_<policy_name>/*_left.mp4, *_right.mp4, *_wrist.mp4

Each policy of a session is an episode with two external cameras (views `left` and `right`); the wrist camera is left
out, as upstream. The evaluator's grade, 0 to 1, is the partial success; 1 means successful, less means failure. The
data set is `roboarena`; upstream's `roboarena_eval_debug_nowrist` has the same layout: name it with ingest.source_name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, read_yaml, subfolders
from robometer.frames.recording import VideoFile
from robometer.trajectory import Episode

FILE = "metadata.yaml"
VIEWS = ("left", "right")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The sessions.

    Raises:
        FormatError: no folder holds a metadata.yaml.
    """
    root = folder(input, "the dump of RoboArena, which holds `evaluation_sessions`")
    root = root / "evaluation_sessions" if (root / "evaluation_sessions").is_dir() else root
    sessions = subfolders(root)
    if not any((session / FILE).is_file() for session in sessions):
        raise FormatError(f"no session folder with a {FILE} in {root}: give ingest.input a dump of RoboArena")
    for session in sessions:
        if (session / FILE).is_file():
            yield Unit(session.name, source or "roboarena", str(session), count=4)
        else:
            yield Refused(str(session), f"the session has no {FILE}", source or "roboarena", session.name)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The videos of a session, policy by policy."""
    session = Path(unit.uri)
    metadata = read_yaml(session / FILE)
    policies = metadata.get("policies") if isinstance(metadata, dict) else None
    if not isinstance(policies, dict) or not policies:
        raise FormatError(f"{session / FILE} names no policies")
    task = metadata.get("language_instruction")
    for name, policy in sorted(policies.items(), key=lambda item: str(item[0])):
        try:
            if not isinstance(task, str) or not task.strip():
                raise ValueError("no task text")
            yield from _policy(unit, task, str(name), policy)
        except ValueError as error:
            yield Refused(unit.uri, f"policy {name}: {error}", unit.source, f"{unit.key}/{name}")


def _policy(unit: Unit, task: str, name: str, policy: Any) -> Iterator[Episode | Refused]:
    policy = policy if isinstance(policy, dict) else {}
    success: Any = policy.get("partial_success")
    if type(success) not in (int, float) or not 0 <= success <= 1:
        raise ValueError(f"partial_success {success!r} is not in [0, 1]")
    # Chosen among the session's own folders, so that no name can lead out of it.
    folders = [path for path in subfolders(Path(unit.uri)) if path.name == f"{name}_{policy.get('policy_name')}"]
    videos = files(folders[0], "*.mp4") if folders else []
    if not any(video.stem.rpartition("_")[2] in VIEWS for video in videos):
        raise ValueError("it has no video of an external camera")
    for video in videos:
        view, key = video.stem.rpartition("_")[2], f"{unit.key}/{folders[0].name}"
        if view not in VIEWS:
            yield Refused(str(video), "not an external camera", unit.source, key, view, skipped=True)
            continue
        yield Episode(
            source=unit.source,
            episode_key=key,
            view=view,
            task=task,
            recording=VideoFile(str(video)),
            uri=str(video),
            raw_quality_label="successful" if success == 1 else "failure",
            partial_success=float(success),
        )
