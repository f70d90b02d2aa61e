"""The DeepSpeed engine, in one process: fp32 master weights, offload, zero.Init, and states that change their form."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.sample_stream import MicroBatch, MicroBatches
from pipelines.training import worker as training_worker
from pipelines.training.accounting import StepProfiler
from pipelines.training.checkpointing import STATE, Position, load_state, save_state, state_name, to_universal
from pipelines.training.deepspeed_settings import deepspeed_config
from pipelines.training.engine import apply_gradients, build_engine, full_state, import_deepspeed
from pipelines.training.whereabouts import Whereabouts
from pipelines.training.worker import NotANumberError, Worker
from robometer.configs import Config, ConfigError, load
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.corpus.writer import commit_shard
from robometer.models.checkpoint import build_collator, build_model
from robometer.models.robometer import load_processor
from robometer.runs.tracking import NullRun
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.scoring import Clip
from robometer.training.batch import Batch, RewardOutput
from robometer.training.losses import Losses, compute_losses
from robometer.training.optimisation import BETAS, EPSILON, learning_rate, parameter_groups
from robometer.trajectory import SCHEMA_VERSION
from tests.corpus.test_corpus import stored

pytestmark = pytest.mark.usefixtures("process_group")

NO_CORPUS = cast(Corpus, None)
"""Stands for a corpus: a vision-language model needs none."""


def _whereabouts() -> Whereabouts:
    """Of a worker that waits for nobody."""
    return Whereabouts(Storage("nowhere"), 0, 1, after_s=1e6)


def _config(*overrides: str) -> Config:
    return load(["model=tiny", "train.batch_size=2", "train.learning_rate=1e-2", "train.weight_decay=0.3", *overrides])


def _batch(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    a, b = (Clip(rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8), "open the drawer") for _ in range(2))
    return load_processor(config).collate_pairs([(a, b), (b, a)])


def _steps(engine: Any, batch: Batch, count: int) -> list[float]:
    losses = []
    engine.train()
    for step in range(count):
        torch.manual_seed(step)
        output = engine(batch)
        loss = (output.preference_logits.float() - 1).square().mean() + output.success_logits.float().square().mean()
        loss = loss + output.progress_logits.float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("stage", "steps"), [(1, 3), (2, 200), (3, 3)])
def test_bf16_keeps_updates_that_are_smaller_than_its_own_resolution(stage: int, steps: int) -> None:
    """Each step moves a weight of 1 by 1e-5, a four-hundredth of the spacing of bf16 there."""
    from deepspeed.utils import safe_get_full_fp32_param

    config = _config("train.precision=bf16", f"train.zero_stage={stage}", "train.learning_rate=1e-5")
    model = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    settings = deepspeed_config(config, 1)
    settings["optimizer"]["params"]["weight_decay"] = 0.0
    engine, *_ = import_deepspeed(config).initialize(model=model, model_parameters=model.parameters(), config=settings)
    for _ in range(steps):
        engine.backward(engine(torch.ones(1, 8, dtype=torch.bfloat16)).sum())
        engine.step()
    master = safe_get_full_fp32_param(next(model.parameters()))
    assert master.dtype == torch.float32
    np.testing.assert_allclose(master.detach().numpy(), 1 - steps * 1e-5, rtol=1e-6 + 1e-7 * steps)
    weight = full_state(engine)["weight"]
    assert torch.all(weight == torch.tensor(1 - steps * 1e-5).bfloat16())  # which at 200 steps is no longer 1


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_gradients_are_clipped_and_ones_that_are_not_finite_change_no_weight(
    stage: int, precision: str, bad: float
) -> None:
    config = _config(f"train.precision={precision}", f"train.zero_stage={stage}", "train.max_grad_norm=2.5")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = nn.Linear(2, 1, bias=False).to(dtype)
    settings = deepspeed_config(config, 1)
    engine, *_ = import_deepspeed(config).initialize(model=model, model_parameters=model.parameters(), config=settings)
    first = full_state(engine)["weight"]
    engine.backward(engine(torch.tensor([[3.0, 4.0]], dtype=dtype)).sum())  # whose gradients are 3 and 4
    assert apply_gradients(engine) == pytest.approx(5.0)
    moments = torch.cat([state["exp_avg"].flatten() for state in engine.basic_optimizer.state.values()])
    assert float(moments.norm()) == pytest.approx(0.1 * 2.5, rel=1e-2)  # of gradients clipped to half of their norm
    before = full_state(engine)["weight"]
    assert not torch.equal(before, first)
    engine.backward(engine(torch.tensor([[3.0, bad]], dtype=dtype)).sum())
    assert not math.isfinite(apply_gradients(engine))
    assert torch.equal(full_state(engine)["weight"], before)
    moments = torch.cat([state["exp_avg"].flatten() for state in engine.basic_optimizer.state.values()])
    assert float(moments.norm()) == pytest.approx(0.1 * 2.5, rel=1e-2)
    engine.backward(engine(torch.tensor([[3.0, 4.0]], dtype=dtype)).sum())
    assert apply_gradients(engine) == pytest.approx(5.0)  # nothing is left of the bad gradients


def test_a_model_partitioned_while_it_is_built_learns_as_one_that_is_not() -> None:
    plain = build_engine(_config("train.zero_stage=3"), NO_CORPUS, 1)
    partitioned = build_engine(_config("train.zero_stage=3", "train.zero_init=true"), NO_CORPUS, 1)
    first, second = full_state(plain), full_state(partitioned)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    decays = [[group["weight_decay"] for group in engine.optimizer.param_groups] for engine in (plain, partitioned)]
    assert decays[0] == decays[1]
    batch = _batch(_config())
    # Kernels round by how a tensor lies in memory, and partitions lie where they lie.
    np.testing.assert_allclose(_steps(plain, batch, 3), _steps(partitioned, batch, 3), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_compiled_model_learns_as_one_that_is_not(stage: int) -> None:
    plain, compiled = (
        build_engine(_config(f"train.zero_stage={stage}", f"train.compile={on}"), NO_CORPUS, 1) for on in (False, True)
    )
    batch, counted = _batch(_config()), torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    np.testing.assert_allclose(_steps(compiled, batch, 3), _steps(plain, batch, 3), rtol=1e-4)
    assert counted["unique_graphs"] > before
    assert full_state(compiled).keys() == full_state(plain).keys()


@pytest.mark.parametrize(("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "parameters")])
def test_offload_changes_no_loss(stage: int, offload: str) -> None:
    batch = _batch(_config())
    plain = build_engine(_config(f"train.zero_stage={stage}"), NO_CORPUS, 1)
    offloaded = build_engine(_config(f"train.zero_stage={stage}", f"train.offload={offload}"), NO_CORPUS, 1)
    np.testing.assert_allclose(_steps(offloaded, batch, 3), _steps(plain, batch, 3), rtol=1e-6)


@pytest.mark.parametrize(("overrides", "message"), [
    (("train.offload=parameters",), "train.offload=parameters needs train.zero_stage=3"),
    (("train.offload=optimizer", "train.zero_stage=0"), "train.offload needs"),
    (("train.precision=bf16", "train.zero_stage=0"), "train.precision=bf16 needs train.zero_stage=1, 2 or 3"),
    (("train.zero_init=true",), "train.zero_init needs train.zero_stage=3"),
    (("train.micro_batch_size=3",), "train.batch_size=2 must be a multiple of micro_batch_size=3"),
    (("train.micro_batch_size=2", "train.num_workers=2"), "too few for num_workers=2"),
    (("train.accelerator_type=H100",), "train.accelerator_type needs train.use_gpu=true"),
    (("train.profile_steps=[5,2]",), r"train.profile_steps=\[5, 2\] must be the first and the last step"),
    (("train.on_nonfinite=skip", "train.offload=optimizer", "train.precision=bf16"), "needs train.zero_stage=3"),
    (("train.num_workers=2", "train.min_workers=3"), "train.min_workers=3 is more than train.num_workers=2"),
])  # fmt: skip
def test_settings_that_cannot_run_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(*overrides)


@pytest.mark.parametrize(
    ("saved", "loaded", "precision"),
    [
        (3, 3, "fp32"),
        (1, 2, "fp32"),
        pytest.param(1, 1, "fp32", marks=pytest.mark.slow),
        pytest.param(2, 2, "bf16", marks=pytest.mark.slow),
        pytest.param(2, 1, "fp32", marks=pytest.mark.slow),
        pytest.param(3, 3, "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_converted_state_goes_on_as_if_nothing_had_happened(
    saved: int, loaded: int, precision: str, tmp_path: Path
) -> None:
    config = _config(f"train.zero_stage={saved}", f"train.precision={precision}")
    batch, name = _batch(config), state_name(config, 1)
    engine = build_engine(config, NO_CORPUS, 1)
    _steps(engine, batch, 3)
    save_state(engine, tmp_path, name)
    to_universal(tmp_path / STATE / name, tmp_path / "universal" / STATE)
    config = _config(f"train.zero_stage={loaded}", f"train.precision={precision}")
    resumed = build_engine(config, NO_CORPUS, 1, universal=True)
    options = [group["weight_decay"] for group in resumed.optimizer.param_groups]
    load_state(resumed, tmp_path / "universal" / STATE)
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == options
    np.testing.assert_allclose(_steps(resumed, batch, 4), _steps(engine, batch, 4), rtol=1e-6)
    save_state(resumed, tmp_path / "again", name)
    assert full_state(resumed).keys() == full_state(engine).keys()
    np.testing.assert_allclose(_steps(resumed, batch, 2), _steps(engine, batch, 2), rtol=1e-6)


class _Dealt:
    """One worker's share of each step: three micro-batches of two samples, and a copy of the last with weight 0."""

    def __init__(self, config: Config) -> None:
        corpus = Corpus(config.corpus.path)
        self._config, self._index = config, ManifestIndex.from_table(corpus.manifest, config.sampling)
        self._collate = build_collator(config, corpus)

    def batch(self, first: int, count: int) -> Batch:
        samples = range(first, first + count)
        return self._collate([plan(self._index, self._config.sampling, self._config.train.seed, i) for i in samples])

    def take(self, step: int) -> list[MicroBatch]:
        parts = [MicroBatch(3 * step + k, 1.0, self.batch(6 * step + 2 * k, 2)) for k in range(3)]
        return [*parts, replace(parts[-1], weight=0.0)]


def _corpus(folder: Path) -> str:
    storage = Storage(str(folder / "corpus"))
    storage.write_bytes("corpus.json", b'{"schema_version": %d, "state": "complete", "settings": {}}' % SCHEMA_VERSION)
    commit_shard(storage, "shard", [stored(n, split="train") for n in range(12)])
    return storage.path


def test_a_workers_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """Losses, norms, rates and weights of whole batches; the vision tower has another learning rate."""
    path = _corpus(tmp_path)
    rates = ["train.vision_learning_rate=2e-3", "model.train_vision_encoder=true", "train.max_grad_norm=1"]
    scale = ["train.batch_size=8", "train.micro_batch_size=2", "train.steps=4", "model.dropout=0", "tracking.uri=none"]
    config = _config(f"corpus.path={path}", *rates, *scale, "train.zero_stage=1")
    corpus, dealt = Corpus(path), _Dealt(config)
    worker = Worker(config, {}, NullRun(), corpus, build_engine(config, corpus, 1), Position(), 0, 1, _whereabouts())
    steps = [worker.step(cast(MicroBatches, dealt))[0] for _ in range(3)]

    model = build_model(config, corpus).train()
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, config.train), betas=BETAS, eps=EPSILON)
    for step, values in enumerate(steps, start=1):
        batch = dealt.batch(6 * (step - 1), 6)
        losses = compute_losses(model(batch), batch, config.loss, config.model.progress_loss)
        optimizer.zero_grad()
        losses.total.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config) * group["lr_scale"]
        optimizer.step()
        expected = {"loss": losses.total, "progress_loss": losses.progress, "success_loss": losses.success}
        expected |= {"preference_loss": losses.preference, "grad_norm": norm}
        for name, value in expected.items():
            assert values[name] == pytest.approx(float(value), rel=1e-3), (step, name)
        assert values["learning_rate"] == pytest.approx(1e-2 * (0.5 * (1 + math.cos(math.pi * (step - 1) / 3))))
    trained = full_state(worker.engine)
    for name, value in model.named_parameters():  # Adam's first steps follow signs, which rounding may turn
        if value.requires_grad and (moved := float((value.detach() - first[name]).norm())) > 0:
            assert float((trained[name] - first[name]).norm()) == pytest.approx(moved, rel=0.02), name
            assert float((trained[name] - value.detach()).norm()) < 0.2 * moved, name


class _Broken(_Dealt):
    """The last micro-batch of some steps is marked, for `_infinite`."""

    def __init__(self, config: Config, broken: set[int]) -> None:
        super().__init__(config)
        self._broken = broken

    def take(self, step: int) -> list[MicroBatch]:
        parts = super().take(step)
        if step in self._broken:
            parts[2:] = [replace(p, batch=replace(p.batch, strategy=p.batch.strategy - 100)) for p in parts[2:]]
        return parts


def _infinite(output: RewardOutput, batch: Batch, *args: Any) -> Losses:
    """Losses whose total is infinite for a marked batch, while their gradients are fine."""
    losses = compute_losses(output, batch, *args)
    return replace(losses, total=losses.total + math.inf) if (batch.strategy < 0).any() else losses


def _worker(tmp_path: Path, broken: set[int], *overrides: str) -> tuple[Worker, _Broken]:
    scale = ["train.batch_size=8", "train.micro_batch_size=2", "train.steps=9", "tracking.uri=none"]
    places = [f"corpus.path={_corpus(tmp_path)}", f"train.output={tmp_path}"]
    config = _config(*places, *scale, *overrides)
    corpus = Corpus(config.corpus.path)
    engine = build_engine(config, corpus, 1)
    return Worker(config, {}, NullRun(), corpus, engine, Position(), 0, 1, _whereabouts()), _Broken(config, broken)


@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3))])
def test_a_step_whose_loss_is_not_finite_is_skipped_as_if_it_had_not_been(
    tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_worker, "compute_losses", _infinite)
    monkeypatch.setattr(Worker, "_has_new_notice", lambda worker: False)  # which asks Ray
    settings = (f"train.zero_stage={stage}", "train.on_nonfinite=skip", "train.max_skipped_steps=2")
    worker, dealt = _worker(tmp_path, {1, 2, 4, 5, 6}, *settings)

    def step() -> dict[str, float]:
        return worker.step(cast(MicroBatches, dealt))[0]

    assert step()["skipped_steps"] == 0
    before = full_state(worker.engine)
    for count in (1, 2):
        values = step()
        assert values["skipped_steps"] == count and not math.isfinite(values["loss"])
        assert all(torch.equal(value, before[name]) for name, value in full_state(worker.engine).items())
    listed = json.loads((tmp_path / "not-finite-step2.json").read_text())
    assert len(listed) == 2  # the samples of the micro-batch that was bad
    values = step()
    assert values["skipped_steps"] == 2 and math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
    before = full_state(worker.engine)
    step(), step()
    with pytest.raises(NotANumberError, match=r"at step 7, .* The 2 steps before it were skipped for that too\.$"):
        step()
    assert all(torch.equal(value, before[name]) for name, value in full_state(worker.engine).items())


def test_by_default_such_a_step_stops_the_run_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_worker, "compute_losses", _infinite)
    worker, dealt = _worker(tmp_path, {0}, "train.zero_stage=1")
    before = full_state(worker.engine)
    with pytest.raises(NotANumberError, match="the loss is not a finite number at step 1, which was not taken"):
        worker.step(cast(MicroBatches, dealt))
    assert worker.position.step == 0
    assert all(torch.equal(value, before[name]) for name, value in full_state(worker.engine).items())


def test_a_window_of_steps_is_profiled_once(tmp_path: Path) -> None:
    profiler = StepProfiler([2, 3], Storage(str(tmp_path)))
    for step in range(1, 6):
        profiler.before(step)
        torch.ones(8, 8) @ torch.full((8, 8), float(step))
        trace = profiler.after(step, last=step == 5)
        assert (trace is None) == (step != 3)
    (path,) = tmp_path.iterdir()
    assert path.name == "trace-steps-2-3.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "aten::matmul" for event in events) == 2
