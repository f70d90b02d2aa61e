"""Both clients ask for several videos in one request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robometer.async_client import AsyncRemoteScorer
from robometer.client import Failure, RemoteScorer, ScoringError
from robometer.evaluation.bradley_terry import bradley_terry
from robometer.scoring import ClipScore
from tests.local_endpoint import endpoint, serving
from tests.pipelines.serving.test_fetching import Files
from tests.pipelines.serving.test_options import Seen, video

TASK = "open the drawer"


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    with serving(Files) as url:
        yield url


@pytest.fixture(scope="module")
def url(files: str) -> Iterator[str]:
    with endpoint(Seen(), [f"serve.url_allow_list=['{files}/clips']"]) as url:
        yield url


@pytest.fixture
def remote(url: str) -> Iterator[RemoteScorer]:
    with RemoteScorer(url) as remote:
        yield remote


def test_scores_or_failures_of_several_videos(remote: RemoteScorer, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(video())
    first, second, third = remote.score_videos([video(), b"no video", path], [TASK, "close it", TASK], end_frame=3)
    assert isinstance(second, Failure) and second.status == 415 and "'video_1'" in second.sentence
    for score in (first, third):
        assert isinstance(score, ClipScore) and score.progress.dtype == np.float32
        np.testing.assert_allclose(score.progress, [0, 0.01, 0.02])
    with pytest.raises(ValueError, match="zip"):
        remote.score_videos([video(), video()], [TASK])
    with pytest.raises(ScoringError, match="There is no clip"):
        remote.score_videos([], TASK)


def test_an_order_and_standings(remote: RemoteScorer) -> None:
    """A video that is cut earlier ends with less progress; the model has no preference."""
    ranking = remote.rank_videos([video(), b"no video", video()], TASK, fps=5)
    assert ranking.order == [0, 2]
    assert ranking.rewards[0] == pytest.approx(0.19) and isinstance(ranking.rewards[1], Failure)
    standings = remote.compare_many([video(), video(), video()], TASK)
    assert standings.order == [0, 1, 2] and standings.probabilities.shape == (3, 3)
    np.testing.assert_array_equal(standings.strengths, bradley_terry(standings.probabilities))


def test_videos_by_url(remote: RemoteScorer, files: str) -> None:
    """A request of texts alone is a form too."""
    address = f"{files}/clips/video.mp4"
    expected = remote.score_video(video(), TASK, fps=5)
    np.testing.assert_array_equal(remote.score_video(address, TASK, fps=5).progress, expected.progress)
    assert remote.compare_videos(address, video(), TASK) == 0.5
    [score, failure] = remote.score_videos([address, f"{files}/other"], TASK)
    assert isinstance(score, ClipScore) and isinstance(failure, Failure) and "'url_1'" in failure.sentence
    with pytest.raises(ScoringError, match="redirect"):
        remote.score_video(f"{files}/clips/redirect", TASK)


def test_the_async_client_asks_alike(remote: RemoteScorer, url: str) -> None:
    videos = [video(), b"no video"]

    async def ask() -> None:
        async with AsyncRemoteScorer(url) as client:
            [score, failure] = await client.score_videos(videos, TASK)
            [expected, same] = remote.score_videos(videos, TASK)
            assert isinstance(score, ClipScore) and isinstance(expected, ClipScore) and failure == same
            np.testing.assert_array_equal(score.progress, expected.progress)
            assert await client.rank_videos(videos, TASK) == remote.rank_videos(videos, TASK)
            standings = await client.compare_many([video(), video()], TASK)
            assert standings.strengths.tolist() == [0, 0]

    asyncio.run(ask())
