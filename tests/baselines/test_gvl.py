"""GVL: the model's input, all forms of its answers, and a real clip from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import robometer
from robometer.baselines import load_baseline
from robometer.baselines.gvl import MAX_FRAMES, read_percentages, read_progress, shuffled
from robometer.baselines.trivial import FrameDifference
from robometer.frames import FrameSettings, read_frames
from robometer.scoring import Clip, MissingAnswer, Scorer
from tests.baselines.chat_server import ChatServer, Reply, Seen, openai, settings

BUNDLED = Path(robometer.__file__).parent / "data/metaworld"


def entry(number: object, percentage: object) -> dict[str, object]:
    return {"frame_number": number, "frame_description": "{a} gripper", "task_completion_percentage": percentage}


def ladder(num_frames: int, task: str = "open the drawer") -> Clip:
    """Uniform grey frames, each brighter by a step that survives JPEG."""
    levels = np.linspace(0, 255, num_frames).astype(np.uint8)
    return Clip(np.broadcast_to(levels[:, None, None, None], (num_frames, 32, 32, 3)).copy(), task)


def by_brightness(seen: Seen) -> Reply:
    """A model that thinks bright frames come late."""
    frames = seen.pictures[1:]
    return openai(json.dumps([entry(i, round(f.mean() / 255 * 100, 2)) for i, f in enumerate(frames, start=1)]))


def gvl(server: ChatServer, tmp_path: Path, **changes: object) -> Scorer:
    return load_baseline("gvl", settings(server, tmp_path / "answers", **changes))


THREE = [entry(1, 10), entry(2, 55.5), entry(3, 100)]
ALL = {1: 10.0, 2: 55.5, 3: 100.0}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (json.dumps(THREE), ALL),
        (json.dumps({"frames": THREE}), ALL),
        (f"Here you are:\n```json\n{json.dumps(THREE, indent=2)}\n```\nFrame 2 {{is}} hard to tell.", ALL),
        (f"I think of {{x}} first. {json.dumps(THREE)} That is all [1].", ALL),
        ("\n".join(map(json.dumps, THREE)), ALL),
        (json.dumps(THREE)[:-20], {1: 10.0, 2: 55.5}),
        (json.dumps([entry("1", "10%"), entry("Frame 2", "55.5 %"), entry(3.0, "about 100")]), ALL),
        (json.dumps([entry(1, None), entry(2, "unclear"), entry(3, 100), {"frame_number": 2}]), {3: 100.0}),
        ('[{"frame_number": 1, "task_completion_percentage": None}, {"frame_number": 2, '
         '"task_completion_percentage": 40}]', {2: 40.0}),
        (json.dumps([entry(1, 10), entry(1, 20)]), {1: 20.0}),
        (json.dumps([entry(1, -5), entry(2, "-5%"), entry(3, 180)]), {1: 0.0, 2: 0.0, 3: 100.0}),
        (json.dumps([entry(0, 1), entry(4, 2), entry(-1, 3), entry(1.5, 4), entry(True, 5), entry(2, 6)]), {2: 6.0}),
        (json.dumps([entry(1, float("nan")), entry(2, True), entry(3, "40-60")]), {}),
        ("The first frame is at about 10 percent, the last at 90.", {}),
        ("{" * 2000 + '"a":' * 2000, {}),
        ("", {}),
    ],
)  # fmt: skip
def test_an_answer_is_read_in_whatever_form_it_comes(answer: str, expected: dict[int, float]) -> None:
    assert read_percentages(answer, 3) == expected


def test_percentages_return_to_the_order_of_time() -> None:
    progress = read_progress(json.dumps(THREE[:2]), np.array([2, 0, 1]))
    np.testing.assert_allclose(progress, [0.555, np.nan, 0.1])
    with pytest.raises(MissingAnswer, match=r"the answer has no percentage for any of 3 frames: 'I cannot tell.'"):
        read_progress("I cannot\ntell.", np.arange(3))


def test_the_model_sees_task_first_frame_and_all_frames_shuffled(tmp_path: Path) -> None:
    with ChatServer(by_brightness) as server:
        gvl(server, tmp_path).score([ladder(6)])
    task, first, request, *numbered = server.seen[0].parts
    assert "open the drawer" in str(task) and "6 frames" in str(task) and "0 percent" in str(request)
    assert isinstance(first, np.ndarray) and first.max() == 0
    assert numbered[0::2] == [f"Frame {i}:" for i in range(1, 7)]
    levels = [int(np.rint(frame.mean() / 51)) for frame in numbered[1::2] if isinstance(frame, np.ndarray)]
    assert sorted(levels) == list(range(6)) and levels == shuffled(ladder(6), seed=0).tolist() != sorted(levels)


def test_progress_follows_time_although_frames_were_shuffled_and_thinned(tmp_path: Path) -> None:
    with ChatServer(by_brightness) as server:
        (score,) = gvl(server, tmp_path).score([ladder(MAX_FRAMES + 11)])
        (thinned,) = gvl(server, tmp_path, max_frames=5).score([ladder(MAX_FRAMES + 11)])
        (single,) = gvl(server, tmp_path).score([ladder(1)])
    assert [len(seen.pictures) - 1 for seen in server.seen] == [MAX_FRAMES, 5, 1]
    for scored in (score, thinned):
        np.testing.assert_allclose(scored.progress, np.linspace(0, 1, MAX_FRAMES + 11), atol=0.01)
        assert scored.coverage == 1 and (scored.progress == scored.success).all()
    assert len(single.progress) == 1


def test_frames_without_an_answer_are_interpolated_and_counted(tmp_path: Path) -> None:
    def forgetful(seen: Seen) -> Reply:
        entries = json.loads(by_brightness(seen).body["choices"][0]["message"]["content"])
        readable = [e for e in entries if not 15 < e["task_completion_percentage"] < 45]
        return openai(json.dumps(readable))

    with ChatServer(forgetful) as server:
        (score,) = gvl(server, tmp_path, max_frames=6).score([ladder(21)])
    assert score.coverage == pytest.approx(4 / 6)  # of the six frames shown: 20 % and 40 % are left out
    np.testing.assert_allclose(score.progress, np.linspace(0, 1, 21), atol=0.01)


def test_the_order_of_frames_follows_from_seed_and_content_alone(tmp_path: Path) -> None:
    clips = [ladder(8), ladder(9), ladder(8, "close the drawer")]
    with ChatServer(by_brightness) as server:
        together = gvl(server, tmp_path / "a").score(clips)
        alone = [gvl(server, tmp_path / "b").score([clip])[0] for clip in reversed(clips)]
    for a, b in zip(together, reversed(alone), strict=True):
        np.testing.assert_array_equal(a.progress, b.progress)
    bodies = [json.dumps(seen.body) for seen in server.seen]
    assert sorted(bodies[:3]) == sorted(bodies[3:])
    orders = {tuple(shuffled(clip, seed)) for clip in (clips[0], clips[2]) for seed in (0, 1)}
    assert len(orders) == 4


def test_an_answer_in_prose_is_missing_and_the_other_clips_are_kept(tmp_path: Path) -> None:
    def reply(seen: Seen) -> Reply:
        return openai("I would rather not.") if "close" in str(seen.parts[0]) else by_brightness(seen)

    with ChatServer(reply) as server:
        scorer = gvl(server, tmp_path)
        with pytest.raises(MissingAnswer, match="I would rather not"):
            scorer.score([ladder(5, "close it"), ladder(6)])
        assert len(server.seen) == 2
        scorer.score([ladder(6)])
    assert len(server.seen) == 2


def test_a_bundled_clip_is_scored_from_end_to_end(tmp_path: Path) -> None:
    """The server's model measures the distance to the first frame, which the test also computes itself."""
    rows = [json.loads(line) for line in (BUNDLED / "trajectories.jsonl").read_text().splitlines()]
    row = next(r for r in rows if re.match("drawer-open.*success", r["episode_key"]))
    clip = Clip(read_frames(BUNDLED / row["video"], FrameSettings()).frames, row["task"])

    def by_difference(seen: Seen) -> Reply:
        first, *frames = (picture.astype(np.float32) for picture in seen.pictures)
        percent = [float(np.abs(frame - first).mean()) / 2.55 * FrameDifference().gain for frame in frames]
        return openai(json.dumps([entry(i, p) for i, p in enumerate(percent, start=1)]))

    with ChatServer(by_difference) as server:
        scorer = gvl(server, tmp_path)
        forward, backward = scorer.score([clip, clip.reversed()])
        preferred = scorer.compare([(clip, clip.take([0] * len(clip)))])
    assert scorer.name == "gvl (tiny)" and row["task"] in str(server.seen[0].parts[0])
    assert np.ptp(forward.progress) > 0.3
    for score, played in ((forward, clip), (backward, clip.reversed())):
        np.testing.assert_allclose(score.progress, FrameDifference().progress(played), atol=0.03)
    assert preferred[0] > 0.9
