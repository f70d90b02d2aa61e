"""Training: the same losses for any ZeRO stage, number of workers and size of micro-batches."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from safetensors.torch import load_file

from pipelines.train import TrainReport, _open_run, _trainer, run_train
from pipelines.training.checkpointing import TrainingError
from robometer.configs import Config, ConfigError, load
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.models.checkpoint import (
    CheckpointError,
    build_collator,
    build_model,
    load_config,
    load_model,
)
from robometer.runs import tracking
from robometer.runs.outputs import InUseError, exclusive_folder
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.scorers import load_scorer
from robometer.training.losses import compute_losses
from robometer.training.optimisation import BETAS, EPSILON, learning_rate, parameter_groups
from tests.conftest import TINY, taken
from tests.pipelines.training_runs import checkpoints

SECRET = ("serve.token=secret-of-the-endpoint", "baseline.base_url=https://user:secret-of-the-api@host/v1")

TOLERANCE = 2e-5
"""Relative difference of losses between ZeRO stages and numbers of workers: float32 sums in another order."""


def _config(corpus: str, output: Path, *overrides: str) -> Config:
    run = [f"corpus.path={corpus}", f"train.output={output}", "train.steps=6", "train.checkpoint_every=3"]
    return load([*TINY, *run, "model.members=2", *overrides])


def _losses(report: TrainReport) -> np.ndarray:
    return np.array([entry["loss"] for entry in report.history if "loss" in entry])


@pytest.fixture(scope="module")
def reference(tiny_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """One worker, ZeRO 1, uninterrupted, validated beside training; it reserves the only free CPU."""
    settings = ["train.zero_stage=1", "train.validate_async=true", "ray.stall_timeout_s=300", *SECRET]
    with taken(3):
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
    assert ((score.progress >= 0) & (score.progress <= 1)).all()


def test_no_secret_is_written_down(reference: TrainReport, tiny_corpus: str, tmp_path: Path) -> None:
    session = Path(ray._private.worker._global_node.get_session_dir_path())  # Ray's logs, of all processes
    for folder in (reference.best.parent, session):
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        assert len(files) > 10
        assert not [path for path in files if b"secret-of-the-" in path.read_bytes()]
    config, corpus = _config(tiny_corpus, tmp_path, *SECRET), Corpus(tiny_corpus)
    trainer = _trainer(config, corpus, ManifestIndex.from_table(corpus.manifest, config.sampling), "", [])
    assert "secret-of-the-" not in str(trainer.train_loop_config)  # which Ray's dashboard shows


def test_a_run_whose_settings_had_other_names_resumes(tiny_corpus: str, tmp_path: Path) -> None:
    config, corpus = _config(tiny_corpus, tmp_path), Corpus(tiny_corpus)
    index = ManifestIndex.from_table(corpus.manifest, config.sampling)
    _open_run(config, Storage(str(tmp_path)), corpus, index, "")
    run = json.loads((tmp_path / "run.json").read_text())
    sampling = run["fingerprint"]["sampling"]
    sampling |= {"min_success": sampling.pop("not_done_below_progress"), "mode": "rbm", "compat": "fixed"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    _open_run(config, Storage(str(tmp_path)), corpus, index, "")
    with pytest.raises(ConfigError, match=r"sampling.not_done_below_progress=0.5, not 0.25"):
        other = _config(tiny_corpus, tmp_path, "sampling.not_done_below_progress=0.25")
        _open_run(other, Storage(str(tmp_path)), corpus, index, "")


@pytest.mark.parametrize(
    ("dropout", "changed", "warned"),
    [
        ("0.1", "train.num_workers=2", True),
        ("0.1", "train.micro_batch_size=1", True),
        ("0", "train.num_workers=2", False),
        ("0.1", "train.log_every=1", False),
    ],
)
def test_a_run_that_continues_with_other_micro_batches_says_so(
    dropout: str, changed: str, warned: bool, tiny_corpus: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("train.batch_size=4", "train.micro_batch_size=0", "train.num_workers=1", f"model.dropout={dropout}")
    config, corpus = _config(tiny_corpus, tmp_path, *settings), Corpus(tiny_corpus)
    index = ManifestIndex.from_table(corpus.manifest, config.sampling)
    _open_run(config, Storage(str(tmp_path)), corpus, index, "")
    _open_run(_config(tiny_corpus, tmp_path, *settings, changed), Storage(str(tmp_path)), corpus, index, "")
    assert ("dropout draws other masks" in caplog.text) == warned


def test_a_folder_in_use_is_refused(tiny_corpus: str, tmp_path: Path) -> None:
    config = _config(tiny_corpus, tmp_path / "run")
    with exclusive_folder("train.output", tmp_path / "run"), pytest.raises(InUseError, match=f"process {os.getpid()}"):
        run_train(config)
    assert not list((tmp_path / "run").iterdir())


def test_a_run_whose_tracking_store_is_lost_is_tracked_as_a_new_one(tiny_corpus: str, tmp_path: Path) -> None:
    config = _config(tiny_corpus, tmp_path / "run", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    corpus = Corpus(tiny_corpus)
    index = ManifestIndex.from_table(corpus.manifest, config.sampling)
    first = _open_run(config, Storage(str(tmp_path / "run")), corpus, index, "")
    assert _open_run(config, Storage(str(tmp_path / "run")), corpus, index, "") == first
    # The store went with the copy of the folder that a job was submitted with: here is another one.
    config = _config(tiny_corpus, tmp_path / "run", f"tracking.uri=sqlite:///{tmp_path}/other.db")
    second = _open_run(config, Storage(str(tmp_path / "run")), corpus, index, "")
    assert second not in ("", first)
    assert _open_run(config, Storage(str(tmp_path / "run")), corpus, index, "") == second
    assert tracking.client_of(config.tracking.uri).get_run(second).info.status == "FINISHED"


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
    scale += ["train.cpus_per_worker=0.5", "train.validate=false", "ray.stall_timeout_s=300"]
    with taken(3 if workers < 3 else 2):  # the workers hold all that is left
        report = run_train(_config(tiny_corpus, tmp_path, *scale))
    np.testing.assert_allclose(_losses(report), _losses(reference), rtol=TOLERANCE)


@pytest.mark.slow
def test_a_run_is_a_plain_loop_of_pytorch(tiny_corpus: str, tmp_path: Path) -> None:
    """Three micro-batches a step for two workers, so that one of the four is a copy, against whole batches in a loop.

    The vision-language model, whose vision tower has a rate of its own.
    """
    scale = ["train.batch_size=6", "train.micro_batch_size=2", "train.num_workers=2", "train.cpus_per_worker=0.5"]
    rates = ["train.learning_rate=1e-3", "train.vision_learning_rate=2e-4", "model.train_vision_encoder=true"]
    run = ["model=tiny", "model.dropout=0", "train.steps=3", "train.validate=false"]
    report = run_train(_config(tiny_corpus, tmp_path, *scale, *rates, *run))
    corpus, config = Corpus(tiny_corpus), load_config(report.best)
    model = build_model(config, corpus).train()
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, config.train), betas=BETAS, eps=EPSILON)
    collate, index = build_collator(config, corpus), ManifestIndex.from_table(corpus.manifest, config.sampling)
    losses, norms = [], []
    for step in range(1, 4):
        samples = range(6 * (step - 1), 6 * step)
        batch = collate([plan(index, config.sampling, config.train.seed, i) for i in samples])
        loss = compute_losses(model(batch), batch, config.loss, config.model.progress_loss).total
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.max_grad_norm)))
        losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config) * group["lr_scale"]
        optimizer.step()
    np.testing.assert_allclose(_losses(report), losses, rtol=1e-4)
    np.testing.assert_allclose([e["grad_norm"] for e in report.history if "loss" in e], norms, rtol=1e-3)
    trained = load_file(report.best / "model.safetensors")
    for name, value in model.named_parameters():  # Adam's first steps follow signs, which rounding may turn
        if value.requires_grad and (moved := float((value.detach() - first[name]).norm())) > 0:
            assert float((trained[name] - first[name]).norm()) == pytest.approx(moved, rel=0.02), name
            assert float((trained[name] - value.detach()).norm()) < 0.2 * moved, name
    assert np.isfinite(load_scorer(report.best).score([corpus.clip(0)])[0].progress).all()


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


def test_a_metric_that_no_validation_can_give_ends_before_any_step(tiny_corpus: str, tmp_path: Path) -> None:
    missing = (
        r"train\.best_metric=held_out/voc cannot be measured: with train\.validation_splits=\[seen\] .* gives seen/voc"
    )
    with pytest.raises(ConfigError, match=missing):
        run_train(_config(tiny_corpus, tmp_path / "run", "train.best_metric=held_out/voc"))
    assert not (tmp_path / "run").exists()


def _poison(corpus: Corpus, row: int) -> Path:
    """Make the last frame's embedding of a row infinite, like one that exceeds float16; returns the file."""
    shard, place = (corpus.manifest[name][row].as_py() for name in ("shard", "row"))
    path = Path(corpus.storage.full(f"embeddings/random_image/{shard}.arrow"))
    whole = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    columns = whole.to_pydict()
    columns["embedding"][place][-1] = math.inf
    path.unlink()  # others may have it mapped
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        for batch in pa.table(columns, schema=whole.schema).to_batches(max_chunksize=1):
            writer.write_batch(batch)
    return path


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(["train.num_workers=1", "train.validate_async=true"], marks=pytest.mark.slow),
        pytest.param(["train.num_workers=2", "train.zero_stage=0"], marks=pytest.mark.slow),
        pytest.param(["train.num_workers=2", "train.zero_stage=2", "train.micro_batch_size=2"], marks=pytest.mark.slow),
        pytest.param(["train.num_workers=2", "train.zero_stage=3", "train.min_workers=1"], marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_is_not_finite_ends_before_its_step_and_mended_data_goes_on(
    reference: TrainReport, tiny_corpus: str, tmp_path: Path, scale: list[str]
) -> None:
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    config = _config(str(tmp_path / "corpus"), tmp_path / "run", *scale, "train.checkpoint_every=1")
    corpus = Corpus(config.corpus.path)
    index = ManifestIndex.from_table(corpus.manifest, config.sampling)
    plans = [plan(index, config.sampling, config.train.seed, i) for i in range(32)]
    steps: dict[int, set[int]] = {}  # that show the last frame of a row
    for i, sample in enumerate(plans):
        for clip in (sample.a, sample.b):
            if clip is not None and corpus.manifest["num_frames"][clip.row].as_py() - 1 in clip.positions:
                steps.setdefault(clip.row, set()).add(i // config.train.batch_size + 1)
    row = next(row for row, seen in steps.items() if min(seen) == 3)
    bad = corpus.manifest["id"][row].as_py()
    path = _poison(corpus, row)

    with pytest.raises(TrainingError, match="the loss is not a finite number at step 3, which was not taken") as error:
        run_train(config)
    (listed,) = (tmp_path / "run").glob("not-finite-step*.json")
    blamed = {id for sample in json.loads(listed.read_text()) for id in sample["trajectories"]}
    assert bad in blamed and len(blamed) <= 2 * config.train.samples_per_micro_batch
    assert str(listed) in str(error.value) and any(id in str(error.value) for id in blamed)
    assert checkpoints(tmp_path / "run") == [1, 2]
    for checkpoint in (tmp_path / "run/run").glob("step-*"):
        assert all(value.isfinite().all() for value in load_file(checkpoint / "model/model.safetensors").values())

    shutil.copy(Path(tiny_corpus) / path.relative_to(tmp_path / "corpus"), path)
    np.testing.assert_allclose(_losses(run_train(config)), _losses(reference), rtol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["model=tiny", "model.lora.rank=4"]])
def test_gradients_too_large_for_their_norm_end_before_the_step(
    tiny_corpus: str, tmp_path: Path, kind: list[str], reference: TrainReport
) -> None:
    if kind:  # adapters of a model that was trained
        base = run_train(_config(tiny_corpus, tmp_path / "base", "model=tiny", "train.steps=1", "train.batch_size=4"))
        kind = [*kind, "train.batch_size=4", f"train.load_from_checkpoint={base.best}"]
    huge = ["loss.progress_weight=1e30", "train.steps=1", "train.checkpoint_every=1", *kind]
    with pytest.raises(TrainingError, match="the norm of the gradients is not a finite number at step 1"):
        run_train(_config(tiny_corpus, tmp_path / "run", *huge))
    assert checkpoints(tmp_path / "run") == []


def test_a_damaged_checkpoint_is_one_sentence(reference: TrainReport, tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match=r"missing: members.0.transformer.layers.1"):
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
