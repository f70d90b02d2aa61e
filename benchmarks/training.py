"""Speed of training the vision-language model, as ratios within one run: `python -m benchmarks.training [--quick]`.

collator   plans to batches, against the Hugging Face processors that upstream uses, on the same plans
shared     the vision tower once per distinct frame, against once per shown frame
packing    the language model on packed sequences, against padded ones
step       a step of the real training job, against a plain PyTorch loop on batches that were made beforehand
gpu        what is left to measure on GPUs, and with which command

Each part also checks that results are equal. Each process has one torch thread, and contenders take turns. Tables hold
the median (least, most) over rounds, and ratios of medians. Times are CPU time of this process, except in `step`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import transformers

from benchmarks import corpora
from benchmarks.contenders import (
    CHAT_TEMPLATE,
    HuggingFaceCollator,
    NaiveCollator,
    PaddedRobometer,
    difference,
    plain_loop,
)
from robometer.configs import load
from robometer.configs.loading import to_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.frames.video import decode_jpeg
from robometer.models.backbones import BACKBONES
from robometer.models.config import ModelConfig
from robometer.models.processing import RobometerCollator
from robometer.models.robometer import Robometer, build_robometer, load_processor
from robometer.models.tiny import tiny_config, tiny_tokenizer
from robometer.sampling.config import PreferenceStrategies, ProgressStrategies, SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.training.batch import Batch, RewardOutput
from robometer.training.losses import compute_losses

QWEN = Path(__file__).resolve().parents[2] / "shared/data/qwen3_vl_4b_instruct"
MAX_FRAMES = 8  # of the recipe of the published weights

_NO_PROGRESS = ProgressStrategies(0.0, 0.0, 0.0, 0.0)
MIXES = {
    "progress, forward": SamplingConfig(preference=0.0, progress_strategies=replace(_NO_PROGRESS, forward=1.0)),
    "pairs, rewind": SamplingConfig(progress=0.0, preference_strategies=PreferenceStrategies(1.0, 0.0, 0.0, 0.0)),
    "pairs, reverse": SamplingConfig(progress=0.0, preference_strategies=PreferenceStrategies(0.0, 0.0, 0.0, 1.0)),
    "pairs, another task": SamplingConfig(progress=0.0, preference_strategies=PreferenceStrategies(0.0, 0.0, 1.0, 0.0)),
    "all (the default)": SamplingConfig(),
}


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, small batches, few rounds, to check that it runs"
    )
    parts: dict[str, Callable[[Path, bool], None]] = {
        "collator": collator,
        "shared": shared,
        "packing": packing,
        "step": lambda folder, quick: step(folder, quick, options.settings),
        "gpu": gpu,
    }
    parser.add_argument("--only", choices=parts, help="run only this part")
    parser.add_argument("settings", nargs="*", help="settings of `step`, such as train.use_gpu=true")
    options = parser.parse_args()
    run_parts(parts, options)


def run_parts(parts: Mapping[str, Callable[[Path, bool], None]], options: argparse.Namespace) -> None:
    """Run one part or all of them on one thread, each in its own temporary folder."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    for name, run in parts.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="robometer-benchmark-") as folder:
                run(Path(folder), options.quick)


# What all parts need


def by_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contender in each round, after a warm-up round; the order is reversed every round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name in sorted(contenders, reverse=bool(number % 2)):
            started = time.process_time()
            contenders[name]()
            if number >= 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least, most)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times as long the first one takes."""
    return statistics.median(slow) / statistics.median(fast)


def draw(corpus: Corpus, sampling: SamplingConfig, count: int, seed: int = 1) -> list[SamplePlan]:
    """The first `count` plans of a stream."""
    index = ManifestIndex.from_table(corpus.manifest, sampling)
    return [plan(index, sampling, seed, i) for i in range(count)]


def mid_size(folder: Path) -> Path:
    """A folder with a random Qwen3-VL of 5 million parameters, for `model.base_model`.

    Per token of a frame, its tower does 0.4 times the work of its language model, as in Qwen3-VL-4B.
    """
    tokenizer = tiny_tokenizer()
    config: Any = tiny_config("tiny", tokenizer)
    text = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_key_value_heads": 2}
    config.text_config.update(text | {"head_dim": 64})
    config.text_config.rope_parameters["mrope_section"] = [16, 8, 8]
    vision = {"depth": 2, "hidden_size": 96, "intermediate_size": 384, "out_hidden_size": 256}
    config.vision_config.update(vision | {"deepstack_visual_indexes": [0]})
    torch.manual_seed(0)
    BACKBONES["qwen3_vl"].model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model_config(base: str, **model: Any) -> Config:
    """Settings of a Robometer without dropout on this base model."""
    return Config(model=ModelConfig(kind="robometer", base_model=base, dropout=0.0, **model))


# Collator


def collator(folder: Path, quick: bool) -> None:
    """Samples/s per core of both collators, with and without decoding of JPEGs."""
    base, template = "tiny", CHAT_TEMPLATE
    if QWEN.is_dir():
        base, template = str(QWEN), json.loads((QWEN / "chat_template.json").read_text())["chat_template"]
    processor = load_processor(Config(model=ModelConfig(kind="robometer", base_model=base)))
    corpus = corpora.corpus(folder, 30 if quick else 200)
    size, rounds = (4, 2) if quick else (16, 7)
    name = "Qwen3-VL-4B-Instruct's" if base != "tiny" else "the tiny"
    print(f"\ncollator: batches of {size}, clips of up to {MAX_FRAMES} frames of 240 x 320 px, {name} tokenizer")
    print(f"{'samples/s/core':<34}{'distinct':>9}{'Hugging Face':>20}{'Robometer':>20}{'ratio':>7}  largest difference")
    for mix, sampling in MIXES.items():
        plans = draw(corpus, replace(sampling, max_frames=MAX_FRAMES), size)
        stored = Decoded(corpus, plans)
        compare(mix, plans, corpus, HuggingFaceCollator(processor, partial(decoded, corpus), template), rounds)
        compare(f"{mix}, decoded", plans, stored, HuggingFaceCollator(processor, stored.frames_of, template), rounds)
    print("target: 3 times as fast")


def compare(
    name: str, plans: Sequence[SamplePlan], source: Corpus | Decoded, theirs: HuggingFaceCollator, rounds: int
) -> None:
    """Print a row with the rates of both, after a check that their tensors are equal."""
    ours = RobometerCollator(cast(Corpus, source), theirs.processor)
    inputs = ours(plans).inputs
    apart = difference(inputs, theirs(plans).inputs, theirs.cutter)
    assert apart <= 1e-6, f"{name}: the tensors differ by {apart}"
    times = by_turns({"ours": partial(ours, plans), "theirs": partial(theirs, plans)}, rounds)
    rates = {key: spread([len(plans) / seconds for seconds in values], 1) for key, values in times.items()}
    print(
        f"{name:<34}{len(inputs['grid']) / len(inputs['image']):>9.2f}{rates['theirs']:>20}{rates['ours']:>20}"
        f"{ratio(times['theirs'], times['ours']):>7.2f}  {apart:.0e}"
    )


def decoded(corpus: Corpus, clip: ClipPlan) -> list[np.ndarray]:
    """Frames of a clip; a frame that is shown twice is decoded twice."""
    encoded = corpus.encoded_frames(clip.row)
    return [decode_jpeg(encoded[position]) for position in clip.positions.tolist()]


class Decoded:
    """The decoded frames of some plans, to measure a collator without decoding."""

    def __init__(self, corpus: Corpus, plans: Sequence[SamplePlan]) -> None:
        rows = {clip.row for sample in plans for clip in (sample.a, sample.b) if clip is not None}
        self._frames = {row: corpus.frames(row) for row in rows}

    def frames(self, row: int, positions: np.ndarray) -> np.ndarray:
        """See `Corpus.frames`."""
        return self._frames[row].take(positions, axis=0)

    def frames_of(self, clip: ClipPlan) -> list[np.ndarray]:
        """The frames of a clip, in display order."""
        return list(self._frames[clip.row][clip.positions])


# Vision tower and language model


def shared(folder: Path, quick: bool) -> None:
    """Times of the tower and of a step, by mix of strategies."""
    corpus, base = corpora.bundled(folder / "corpus", 200), "tiny" if quick else str(mid_size(folder / "model"))
    frozen, trained = (build_robometer(model_config(base, train_vision_encoder=on))[0] for on in (False, True))
    processor = load_processor(model_config(base))
    size, rounds = (1, 1) if quick else (4, 3)
    print(
        f"\nshared: batches of {size}, up to {MAX_FRAMES} frames of 160 x 160 px; times of encoding every shown frame,"
    )
    print("as multiples of those of encoding every distinct one")
    print(f"{'':<22}{'distinct':>9}{'tower':>8}{'step, tower frozen':>20}{'step, tower trained':>21}  logits differ by")
    for mix, sampling in MIXES.items():
        plans = draw(corpus, replace(sampling, max_frames=MAX_FRAMES), size)
        batches = {
            "ours": RobometerCollator(corpus, processor)(plans),
            "naive": NaiveCollator(corpus, processor)(plans),
        }
        contenders: dict[str, Callable[[], object]] = {}
        for name, batch in batches.items():
            contenders[f"tower {name}"] = partial(encode, frozen, batch)
            contenders[f"frozen {name}"] = partial(train_step, frozen, batch)
            contenders[f"trained {name}"] = partial(train_step, trained, batch)
        times = by_turns(contenders, rounds)
        ratios = [ratio(times[f"{part} naive"], times[f"{part} ours"]) for part in ("tower", "frozen", "trained")]
        inputs = batches["ours"].inputs
        print(
            f"{mix:<22}{len(inputs['grid']) / len(inputs['image']):>9.2f}{ratios[0]:>8.2f}{ratios[1]:>20.2f}"
            f"{ratios[2]:>21.2f}  {logit_difference(frozen(batches['ours']), frozen(batches['naive'])):.0e}"
        )


def encode(model: Robometer, batch: Batch) -> None:
    """The vision tower alone, forward."""
    with torch.no_grad():
        model.family.features(model.model, model.cutter.pixels(batch.inputs["patches"]), batch.inputs["grid"])


def train_step(model: Robometer, batch: Batch) -> None:
    """Forward and backward pass with the loss."""
    config = Config()
    model.zero_grad()
    compute_losses(model(batch), batch, config.loss, config.model.progress_loss).total.backward()


def logit_difference(a: RewardOutput, b: RewardOutput) -> float:
    """Largest difference between logits."""
    return max(
        float((x - y).detach().abs().max()) for x, y in zip(a, b, strict=True) if x is not None and y is not None
    )


def packing(folder: Path, quick: bool) -> None:
    """Time of a step, by how much sequence lengths differ."""
    corpus, base = corpora.bundled(folder / "corpus", 200), "tiny" if quick else str(mid_size(folder / "model"))
    config = model_config(base)
    packed = build_robometer(config)[0]
    padded = PaddedRobometer.of(packed)
    collate = RobometerCollator(corpus, load_processor(config))
    size, rounds = (3, 1) if quick else (8, 3)
    print(
        f"\npacking: forward and backward of batches of {size}, up to {MAX_FRAMES} frames of 160 x 160 px, tower frozen"
    )
    print(f"{'':<24}{'tokens':>8}{'padding':>9}{'padded s':>22}{'packed s':>22}{'ratio':>7}  difference of logits")
    for mix in ("progress, forward", "pairs, another task", "all (the default)"):
        batch = collate(draw(corpus, replace(MIXES[mix], max_frames=MAX_FRAMES), size))
        lengths = batch.inputs["sequence_length"]
        share = 1 - int(lengths.sum()) / (len(lengths) * int(lengths.max()))
        times = by_turns(
            {"packed": partial(train_step, packed, batch), "padded": partial(train_step, padded, batch)}, rounds
        )
        print(
            f"{mix:<24}{int(lengths.sum()):>8}{share:>9.0%}{spread(times['padded']):>22}{spread(times['packed']):>22}"
            f"{ratio(times['padded'], times['packed']):>7.2f}  {logit_difference(packed(batch), padded(batch)):.0e}"
        )


# Step


def step(folder: Path, quick: bool, overrides: Sequence[str]) -> None:
    """Seconds of a step of both, and the share of it that the job waits for data."""
    from pipelines.cluster import connected
    from pipelines.train import run_train

    corpora.bundled(folder / "corpus", 200)
    base = "tiny" if quick else str(mid_size(folder / "model"))
    steps, size, rounds, left_out = (4, 2, 1, 1) if quick else (12, 4, 3, 2)
    settings = ["model=tiny", f"model.base_model={base}", "model.dropout=0", f"corpus.path={folder / 'corpus'}"]
    settings += [f"train.steps={steps}", f"train.batch_size={size}", f"train.checkpoint_every={steps}"]
    settings += ["train.zero_stage=1", "train.weight_decay=0", "train.log_every=1", "train.validate=false"]
    settings += [f"sampling.max_frames={MAX_FRAMES}", f"tracking.uri=sqlite:///{folder}/mlflow.db", *overrides]
    job, plain, waits, apart = list[float](), list[float](), list[float](), list[float]()
    with connected(load(settings)):
        for number in range(rounds):
            config = load([*settings, f"train.output={folder}/run{number}"])
            history = [entry for entry in run_train(config).history if "samples_per_s" in entry]
            with get_context("spawn").Pool(1) as pool:
                losses, seconds = pool.apply(plain_loop, (to_dict(config), [e["learning_rate"] for e in history]))
            job += [size / entry["samples_per_s"] for entry in history[left_out:]]
            waits += [entry["data_wait_share"] for entry in history[left_out:]]
            plain += seconds[left_out:]
            apart += [abs(a - entry["loss"]) / abs(a) for a, entry in zip(losses, history, strict=True)]
    print(
        f"\nstep: batches of {size}, up to {MAX_FRAMES} frames; {rounds} runs of {steps} steps; {' '.join(overrides)}"
    )
    print(f"plain PyTorch loop, batches ready    {spread(plain)} s")
    print(
        f"training job, 1 worker               {spread(job)} s; speed {ratio(plain, job):.2f} of the loop (target 0.95)"
    )
    print(f"of which it waits for data           {spread([100 * share for share in waits], 1)} % (target 2 %)")
    print(f"losses differ by a share of          {max(apart):.0e}")


def gpu(folder: Path, quick: bool) -> None:
    """The rows that a CPU cannot fill."""
    train = "robometer train recipe=robometer_4b train.use_gpu=true train.precision=bf16 train.num_workers=8"
    plain = "python -m benchmarks.training --only step train.use_gpu=true model.base_model=Qwen/Qwen3-VL-4B-Instruct"
    rows = {
        "samples/s, LoRA, 1 GPU": train.replace("4b", "4b_lora").replace("workers=8", "workers=1"),
        "samples/s, ZeRO 2, 8 GPUs": f"{train} train.zero_stage=2",
        "samples/s, ZeRO 3, 8 GPUs": f"{train} train.zero_stage=3",
        "with FlashAttention-2": f"{train} train.zero_stage=3 model.attn_implementation=flash_attention_2",
        "share of waiting for data": "data_wait_share in the history.jsonl of each of these",
        "of a plain loop's speed": plain,
    }
    print(f"\nGPU numbers\n{'':<28}{'measured':>9}  how")
    for name, command in rows.items():
        print(f"{name:<28}{'':>9}  {command}")


if __name__ == "__main__":
    main()
