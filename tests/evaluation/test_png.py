"""The PNG plots of training runs: what is drawn in them. Those of scores: tests/jobs/test_score.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from robometer.report.png import plot_curve, plot_history
from robometer.scoring import ClipScore


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test writes."""
    figures, save = list[Figure](), Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """The points of each curve by its name in the legend."""
    return {str(line.get_label()): [tuple(point) for point in line.get_xydata()] for line in axes.lines}


def test_losses_stand_left_and_validation_right(drawn: list[Figure], tmp_path: Path) -> None:
    history = [
        {"step": 1, "loss": 4.0, "progress_loss": 2.0, "learning_rate": 0.1},
        {"step": 2, "loss": 3.0, "progress_loss": 1.0, "learning_rate": 0.2},
        {"step": 2, "seen/voc": 0.5, "held_out/kendall": -0.25},
        {"step": 4, "seen/voc": 0.75},
    ]
    plot_history(history, tmp_path / "plot.png")
    left, right = drawn[0].axes
    assert lines(left) == {"loss": [(1, 4), (2, 3)], "progress_loss": [(1, 2), (2, 1)]}
    assert lines(right) == {"seen/voc": [(2, 0.5), (4, 0.75)], "held_out/kendall": [(2, -0.25)]}
    assert left.get_yscale() == "log" and right.get_ylim()[0] <= -1 < 1 <= right.get_ylim()[1]
    named = [text.get_text() for axes in (left, right) for text in axes.get_legend().get_texts()]
    assert set(named) == set(lines(left)) | set(lines(right)), "a curve has no name"
    assert Image.open(tmp_path / "plot.png").size == (1440, 540)


def test_a_run_that_was_not_validated_yet_has_an_empty_half(drawn: list[Figure], tmp_path: Path) -> None:
    plot_history([{"step": 1, "loss": 4.0}], tmp_path / "plot.png")
    assert lines(drawn[0].axes[1]) == {} and drawn[0].axes[1].get_legend() is None


def test_curves_of_a_clip_stand_over_the_times_of_its_frames(drawn: list[Figure], tmp_path: Path) -> None:
    """10 frames, of which 8 evenly spread ones are shown, the first and the last among them."""
    frames = np.zeros((10, 6, 8, 3), np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None]
    score = ClipScore(np.linspace(0, 1, 10, dtype=np.float32), np.full(10, 0.25, np.float32))
    times = [0.5 * t for t in range(10)]
    plot_curve(frames, score, "open the drawer", tmp_path / "plot.png", times)
    curves, strip = drawn[0].axes
    assert curves.get_title() == "open the drawer" and strip.get_xlabel() == "time (s)"
    for name, values in (("progress", score.progress), ("P(success)", score.success)):
        np.testing.assert_allclose(lines(curves)[name], np.stack([times, values], 1))
    shown = [int(np.asarray(image.get_array())[0, 0, 0]) for image in strip.images]
    assert shown == [0, 1, 3, 4, 5, 6, 8, 9]
    assert [line.get_xdata()[0] for line in strip.lines] == [0.5 * frame for frame in shown]
    middles = [np.mean(image.get_extent()[:2]) for image in strip.images]
    np.testing.assert_allclose(middles, np.linspace(0, 4.5, 8), err_msg="the thumbnails are not evenly spread")
    with pytest.raises(ValueError, match="10 frames, 10 scores and 9 times"):
        plot_curve(frames, score, "open the drawer", tmp_path / "plot.png", times[1:])
