"""Job: roll out Meta-World (`robometer simulate`, `python -m jobs.simulate`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs import common
from pipelines.cluster import connected
from pipelines.simulate import simulate
from robometer.configs import Config
from robometer.runs.outputs import exclusive_folder
from robometer.runs.paths import absolute_path
from robometer.simulation import INSTRUCTIONS, SimulationSettings

HELP = """
robometer simulate: successful, suboptimal and failed roll-outs of Meta-World's scripted experts, labelled by the
simulator's own success flag. This made the bundled corpus. Needs pip install "robometer[simulate]" and a GL driver
(EGL, or Debian's libegl1 and libgl1-mesa-dri).

Writes  simulate.output: videos/*/*.mp4 and trajectories.jsonl, which `robometer ingest` reads
Re-run  makes only what is missing.

Examples
  robometer simulate simulate.output=outputs/metaworld
  robometer simulate 'simulate.tasks=[drawer-open-v3,drawer-close-v3]' simulate.clips_per_quality=20
  robometer ingest ingest.input=outputs/metaworld corpus.path=outputs/corpus
"""


def run(config: Config) -> None:
    """Simulate and print the counts."""
    wanted = config.simulate
    settings = SimulationSettings(
        tasks=tuple(wanted.tasks or INSTRUCTIONS),
        clips_per_quality=wanted.clips_per_quality,
        seen_clips_per_quality=wanted.seen_clips_per_quality,
        held_out_clips_per_quality=wanted.held_out_clips_per_quality,
        image_size=wanted.image_size,
        max_frames=wanted.max_frames,
        crf=wanted.crf,
        seed=wanted.seed,
    )
    output = absolute_path("simulate.output", wanted.output)
    with exclusive_folder("simulate.output", output), connected(config):
        summary = simulate(settings, Path(output))
    clips = sum(sum(by_quality.values()) for by_quality in summary.counts.values())
    print(f"{wanted.output}: {clips} clips of {len(summary.counts)} tasks, {summary.size_bytes / 1e6:.1f} MB")
    print(f"{summary.made} made now, {summary.skipped} there before, {summary.wall_s:.1f} s")
    if summary.unlabelled:
        print(f"not labelled as wanted, left out: {', '.join(summary.unlabelled)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return common.main(HELP, ("simulate",), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
