"""Job: roll out Meta-World (`robometer simulate`, `python -m jobs.simulate`)."""

from __future__ import annotations

from jobs.grammar import Call, Command, SettingOption


def simulate(call: Call) -> None:
    """Simulate and print the counts."""
    from pipelines import cluster
    from pipelines import simulate as stage
    from robometer.runs.outputs import exclusive_folder
    from robometer.runs.paths import absolute_path
    from robometer.simulation import INSTRUCTIONS, SimulationSettings

    config = call.config.simulate
    settings = SimulationSettings(
        tasks=tuple(config.tasks or INSTRUCTIONS),
        clips_per_quality=config.clips_per_quality,
        seen_clips_per_quality=config.seen_clips_per_quality,
        held_out_clips_per_quality=config.held_out_clips_per_quality,
        image_size=config.image_size,
        max_frames=config.max_frames,
        crf=config.crf,
        seed=config.seed,
    )
    output = absolute_path("simulate.output", config.output)
    with exclusive_folder("simulate.output", output), cluster.connected(call.config):
        summary = stage.simulate(settings, output)
    clips = sum(sum(by_quality.values()) for by_quality in summary.counts.values())
    print(f"{config.output}: {clips} clips of {len(summary.counts)} tasks, {summary.size_bytes / 1e6:.1f} MB")
    print(f"{summary.made} made now, {summary.skipped} there before, {summary.wall_s:.1f} s")
    if summary.unlabelled:
        print(f"Left out, because their outcome was not the one asked for: {', '.join(summary.unlabelled)}")


COMMAND = Command(
    "simulate",
    simulate,
    "Roll out Meta-World's scripted experts: successful, suboptimal and failed clips, labelled by the simulator's own "
    "success flag. This made the bundled corpus.",
    options=[SettingOption("--output", "simulate.output", "Folder of the clips, or its URI.")],
    details={
        "Needs": 'pip install "robometer[simulate]", and a GL driver (EGL, or Debian\'s libegl1 and libgl1-mesa-dri).',
        "Writes": "In the output folder: videos/*/*.mp4 and trajectories.jsonl, which `robometer ingest` reads.",
        "Rerun": "The same command makes what is missing.",
    },
    examples="""
robometer simulate --output outputs/metaworld
robometer simulate 'simulate.tasks=[drawer-open-v3,drawer-close-v3]' simulate.clips_per_quality=20
robometer ingest outputs/metaworld --corpus outputs/corpus
""",
    sections=("simulate",),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
