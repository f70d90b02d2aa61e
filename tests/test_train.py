"""Training: the same losses for any ZeRO stage, number of workers and size of micro-batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.train import TrainReport, run_train
from robometer.configs import Config, ConfigError, load
from robometer.corpus.corpus import Corpus
from robometer.models.checkpoint import CheckpointError, load_model, load_scorer
from tests.conftest import TINY

TOLERANCE = 2e-5
"""Relative difference of losses between ZeRO stages and numbers of workers: float32 sums in another order."""


def _config(corpus: str, output: Path, *overrides: str) -> Config:
    run = [f"corpus.path={corpus}", f"train.output={output}", "train.steps=6", "train.checkpoint_every=3"]
    return load([*TINY, *run, "model.members=2", *overrides])


def _losses(report: TrainReport) -> np.ndarray:
    return np.array([entry["loss"] for entry in report.history if "loss" in entry])


@pytest.fixture(scope="module")
def reference(tiny_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """One worker, ZeRO 1, uninterrupted, validated beside training."""
    settings = ["train.zero_stage=1", "train.validate_async=true"]
    return run_train(_config(tiny_corpus, tmp_path_factory.mktemp("reference"), *settings))


def test_a_run_leaves_a_checkpoint_a_plot_and_falling_losses(reference: TrainReport, tiny_corpus: str) -> None:
    losses = _losses(reference)
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    entry = reference.history[0]
    assert 0 < entry["data_wait_share"] < 1 and entry["memory_gib"] > 0.05 and entry["workers"] == 1
    assert entry["samples_per_s"] * entry["step_seconds"] == pytest.approx(8)
    assert entry["tokens_per_s"] > entry["samples_per_s"]
    assert len([entry for entry in reference.history if "checkpoint_seconds" in entry]) == 2
    assert {"seen/voc", "seen/voc_reversed", "seen/preference_accuracy"} <= set(reference.metrics)
    assert (reference.best.parent / "training.png").stat().st_size > 10_000
    assert "preference/rewind" in json.loads((reference.best.parent / "sampling.json").read_text())["strategies"]
    validations = [entry for entry in reference.history if "seen/preference_accuracy" in entry]
    best = max(validations, key=lambda entry: (entry["seen/preference_accuracy"], entry["step"]))
    assert len(validations) == 2
    assert json.loads((reference.best / "provenance.json").read_text())["step"] == best["step"]
    scorer, corpus = load_scorer(reference.best), Corpus(tiny_corpus)
    score = scorer.score([corpus.clip(0)])[0]
    assert len(score.progress) == corpus.manifest["num_frames"][0].as_py()
    assert ((0 <= score.progress) & (score.progress <= 1)).all()


@pytest.mark.parametrize(
    ("stage", "workers", "micro_batch_size"),
    [
        (3, 2, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(0, 2, 0), (1, 2, 0), (2, 2, 0), (2, 1, 2), (3, 1, 0)]
        ),
        pytest.param(3, 3, 2, marks=pytest.mark.slow),  # four micro-batches for three workers
    ],
)
def test_losses_do_not_depend_on_zero_stage_workers_or_micro_batches(
    reference: TrainReport, tiny_corpus: str, tmp_path: Path, stage: int, workers: int, micro_batch_size: int
) -> None:
    scale = [f"train.zero_stage={stage}", f"train.num_workers={workers}", f"train.micro_batch_size={micro_batch_size}"]
    report = run_train(_config(tiny_corpus, tmp_path, *scale, "train.cpus_per_worker=0.5", "train.validate=false"))
    np.testing.assert_allclose(_losses(report), _losses(reference), rtol=TOLERANCE)


@pytest.mark.slow
def test_the_tiny_vision_language_model_trains_through_the_same_pipeline(tiny_corpus: str, tmp_path: Path) -> None:
    report = run_train(_config(tiny_corpus, tmp_path, "model=tiny", "train.zero_stage=3", "train.batch_size=4"))
    assert np.isfinite(_losses(report)).all() and len(_losses(report)) == 6
    score = load_scorer(report.best).score([Corpus(tiny_corpus).clip(0)])[0]
    assert np.isfinite(score.progress).all()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_on_a_trained_model_resume_to_the_same_losses(tiny_corpus: str, tmp_path: Path, stage: int) -> None:
    small = ["model=tiny", "train.batch_size=4", "train.validate=false", "train.num_workers=2"]
    base = run_train(_config(tiny_corpus, tmp_path / "base", *small, "train.steps=2")).best
    adapted = [*small, f"train.load_from_checkpoint={base}", "model.lora.rank=4", f"train.zero_stage={stage}"]
    adapted += ["train.schedule=constant", "train.warmup_ratio=0"]  # the rate must not depend on the number of steps
    whole = run_train(_config(tiny_corpus, tmp_path / "whole", *adapted))
    run_train(_config(tiny_corpus, tmp_path / "resumed", *adapted, "train.steps=3"))
    (tmp_path / "resumed/history.jsonl").unlink()  # the mark of a finished run
    resumed = run_train(_config(tiny_corpus, tmp_path / "resumed", *adapted))
    np.testing.assert_allclose(_losses(resumed), _losses(whole), rtol=1e-6)
    state = next((tmp_path / "whole/run").glob("step-*/state/*/mp_rank_00_model_states.pt"), None)
    assert stage == 3 or (
        state is not None and state.stat().st_size < 0.7 * (base / "model.safetensors").stat().st_size
    )


def test_the_same_command_on_a_finished_run_returns_its_result(reference: TrainReport, tiny_corpus: str) -> None:
    output = reference.best.parent
    again = run_train(_config(tiny_corpus, output, "train.zero_stage=2", "train.num_workers=2"))
    assert again.history == reference.history


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.preference_weight=0.5", "loss.preference_weight=1.0, not 0.5"),
        ("train.zero_stage=3", "train.zero_stage='1 or 2', not '3'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    reference: TrainReport, tiny_corpus: str, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_train(_config(tiny_corpus, reference.best.parent, "train.zero_stage=1", override))


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_names_its_trajectories(tiny_corpus: str, tmp_path: Path) -> None:
    from pipelines.training.checkpointing import TrainingError

    with pytest.raises(TrainingError, match="not a number at step"):
        run_train(_config(tiny_corpus, tmp_path, "train.learning_rate=1e30", "train.warmup_ratio=0", "train.steps=20"))
    blamed = json.loads(next(tmp_path.glob("nan-step*-rank0.json")).read_text())
    ids = set(Corpus(tiny_corpus).manifest["id"].to_pylist())
    assert len(blamed) == 8 and all(set(sample["trajectories"]) <= ids for sample in blamed)


def test_a_damaged_checkpoint_is_one_sentence(reference: TrainReport, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(CheckpointError, match="is not a checkpoint folder"):
        load_scorer(tmp_path)
    shutil.copytree(reference.best, tmp_path / "damaged")
    weights = tmp_path / "damaged/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(tmp_path / "damaged")
    shutil.copytree(reference.best, tmp_path / "misfit")
    config = tmp_path / "misfit/config.yaml"
    config.write_text(config.read_text().replace("num_layers: 1", "num_layers: 2"))
    with pytest.raises(CheckpointError, match="missing: members.0.transformer.layers.1"):
        load_model(tmp_path / "misfit")


@pytest.mark.slow
def test_validation_beside_training_finds_what_validation_within_it_finds(
    reference: TrainReport, tiny_corpus: str, tmp_path: Path
) -> None:
    report = run_train(_config(tiny_corpus, tmp_path, "train.zero_stage=1"))
    within, beside = (
        [{k: v for k, v in entry.items() if "/" in k} for entry in one.history if "seen/voc" in entry]
        for one in (report, reference)
    )
    assert len(within) == 2 and beside == within
    assert report.metrics == reference.metrics
