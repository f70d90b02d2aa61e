"""PNG plots of `score`, `train` and `quickstart`. The report's own plots are SVG: see `report/figures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robometer.frames.video import thin_positions
from robometer.scoring import ClipScore

STRIP_FRAMES = 8

_PROGRESS_COLOUR, _SUCCESS_COLOUR = "#1b6ca8", "#c8553d"


def plot_curve(
    frames: np.ndarray, score: ClipScore, task: str, path: str | Path, times_s: Sequence[float] | None = None
) -> None:
    """Write a PNG with progress and success over time, and below them a strip of frames at their times.

    Args:
        frames: uint8 [T, H, W, 3] RGB.
        score: of these frames.
        task: the instruction, which becomes the title.
        path: of the PNG.
        times_s: time of each frame in seconds [T]; without it, the axis counts frames.

    Raises:
        ValueError: frames, score and times have different lengths.
    """
    at = np.arange(len(frames), dtype=float) if times_s is None else np.asarray(times_s, dtype=float)
    if not len(frames) == len(score.progress) == len(score.success) == len(at):
        raise ValueError(f"{len(frames)} frames, {len(score.progress)} scores and {len(at)} times do not fit together")
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    curves, strip = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    _draw_curves(curves, at, score, task)
    chosen = thin_positions(len(frames), STRIP_FRAMES)
    _draw_strip(strip, frames[chosen], at[chosen])
    strip.set_xlabel("frame" if times_s is None else "time (s)")
    figure.savefig(path, format="png", dpi=120)


def _draw_curves(axes: Axes, at: np.ndarray, score: ClipScore, task: str) -> None:
    marker = "o" if len(at) <= 64 else ""
    axes.plot(at, score.progress, color=_PROGRESS_COLOUR, marker=marker, markersize=3, label="progress")
    axes.plot(at, score.success, color=_SUCCESS_COLOUR, marker=marker, markersize=3, linestyle="--", label="P(success)")
    axes.set(ylim=(-0.03, 1.03), ylabel="progress, P(success)")
    axes.set_title(task, wrap=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")


def _draw_strip(axes: Axes, frames: np.ndarray, at: np.ndarray) -> None:
    """Thumbnails of equal width in order of time, each connected with its time on the axis above."""
    span = max(float(at[-1] - at[0]), 1e-9)
    slot = span / max(len(frames) - 1, 1)
    axes.set_xlim(at[0] - slot / 2, at[-1] + slot / 2)
    axes.set(ylim=(0, 1), yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)
    box = axes.get_window_extent()
    height, width = frames.shape[1:3]
    # As wide as the slot, unless the thumbnail would be taller than the strip.
    thumb = min(0.94 * slot, (span + slot) * 0.9 * box.height * width / height / box.width)
    tall = thumb / (span + slot) * box.width * height / width / box.height
    for frame, time, middle in zip(frames, at, np.linspace(at[0], at[-1], len(at)), strict=True):
        axes.imshow(frame, extent=(middle - thumb / 2, middle + thumb / 2, 0.92 - tall, 0.92), aspect="auto")
        axes.plot([time, middle], [1, 0.92], color="0.6", linewidth=0.8)
    axes.set_xlim(at[0] - slot / 2, at[-1] + slot / 2)
    axes.set_ylim(0, 1)


def plot_history(history: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Write a PNG of a training run: losses on the left, validation metrics on the right, both over steps.

    Args:
        history: entries with `step`, and either `*loss` values or validation metrics named `split/metric`.
        path: of the PNG.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, metrics = figure.subplots(1, 2)
    names = sorted({name for entry in history for name in entry if name != "step"})
    for name in names:
        axes = losses if name.endswith("loss") else metrics if "/" in name else None
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if axes is not None:
            axes.plot(*zip(*points, strict=True), marker="o" if axes is metrics else "", markersize=3, label=name)
    losses.set(title="training losses", xlabel="step", ylabel="loss", yscale="log")
    metrics.set(title="validation", xlabel="step", ylim=(-1.05, 1.05))
    for axes in (losses, metrics):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120)
