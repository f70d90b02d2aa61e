"""Group f_samplers: training and evaluation samples, replayed with the rows and segments that upstream drew."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from parity.difference import close, exact, wrong_upstream
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.upstream import clips
from robometer.corpus.corpus import Corpus
from robometer.evaluation.plan import plan_split
from robometer.sampling import segments
from robometer.sampling.config import SamplingConfig
from robometer.sampling.eligible import PREFERENCE_KINDS
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.strategies import Rules, Subject
from robometer.trajectory import MANIFEST_SCHEMA, SCHEMA_VERSION

GROUP = "f_samplers"
_TARGET = 1e-6
_MOST_DRAWS = 100_000

_STRATEGY = {
    "forward_progress": "forward",
    "reverse_progress": "reverse",
    "different_task_instruction": "different_instruction",
}
"""Our names of upstream's strategies, where they differ."""

Block = dict[str, Any]
Pair = tuple[str, str, str]


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    for number, block in enumerate(read(recorded_set.folder / GROUP / "samplers.json")):
        case = f"{GROUP}/block {number}"
        for i, recorded in enumerate(block["train_samples"]):
            if not recorded["ok"]:
                yield wrong_upstream(
                    f"{case}/train[{i}]", "sample", "it raises", recorded["error"], "drawn from others"
                )
            elif recorded["sample"] is not None:
                yield from _training_sample(f"{case}/train[{i}]", block, recorded)
        yield from _draws(case, block)
        for name, recorded in block["eval_samplers"].items():
            if recorded["ok"]:
                yield from _evaluation_samples(f"{case}/{name}", block, recorded["value"])
            else:
                yield wrong_upstream(f"{case}/{name}", "samples", "it raises", recorded["error"], "listed")
        if all(row["partial_success"] is None for row in block["rows"]):
            yield _all_pairs(case, block)


def _rules(block: Block) -> Rules:
    return Rules(block["max_frames"], block["progress_pred_type"], 0.5, pad_frames=True)


def _subject(block: Block, row: dict[str, Any]) -> Subject:
    cutoff = block["success_cutoff_map"].get(row["data_source"], block["max_success"])
    # Supervision is not part of the recorded mask: the per-frame mask is compared alone.
    return Subject(row["num_frames"], row["quality_label"], cutoff, row["partial_success"], True, False)


def _training_sample(case: str, block: Block, recorded: dict[str, Any]) -> Iterator[Row]:
    sample = recorded["sample"]
    strategy = _STRATEGY.get(sample["data_gen_strategy"], sample["data_gen_strategy"])
    triples = [tuple(entry["start_middle_end"]) for entry in recorded["subsample_log"]]
    numbers = {row["id"]: i for i, row in enumerate(block["rows"])}
    if recorded["sampler"] == "progress":
        row = numbers[recorded["item"]]
        yield from _clip(f"{case}/{strategy}", block, row, strategy, triples[0], sample["trajectory"])
        if strategy == "different_instruction":
            reason = "a clip with the wrong instruction, whose targets are 0, is shown under its own"
            ours = "the instruction stays, and a clip of another task is shown under it"
            yield wrong_upstream(case, "instruction", reason, sample["trajectory"]["task"], ours)
        return
    # The chosen clip is always played forward, the rejected one by the strategy.
    for i, (side, played) in enumerate((("chosen", "forward"), ("rejected", strategy))):
        row, triple = numbers[sample[side]["id"]], triples[i] if triples else None
        yield from _clip(f"{case}/{strategy}/{side}", block, row, played, triple, sample[side])


def _clip(
    case: str, block: Block, row: int, strategy: str, triple: segments.Triple | None, recorded: dict[str, Any]
) -> Iterator[Row]:
    subject, rules = _subject(block, block["rows"][row]), _rules(block)
    clip = clips.shown_clip(subject, rules, strategy, triple, block["predict_last_frame_partial_progress"])
    yield exact(case, "trajectory", block["rows"][row]["id"], recorded["id"])
    yield exact(case, "frames", clip.positions.tolist(), recorded["frame_ids"])
    target = clip.target
    if block["progress_loss_type"] == "discrete":
        target = clips.two_hot(target, block["progress_discrete_bins"])
    yield close(case, "targets", target, recorded["target_progress"], atol=_TARGET)
    yield exact(case, "success labels", clip.label.tolist(), recorded["success_label"])
    yield exact(case, "last-frame mask", clip.mask.astype(float).tolist(), recorded["predict_last_frame_mask"])


def _draws(case: str, block: Block) -> Iterator[Row]:
    """Our plan draws every pair that upstream drew from these rows; where upstream found none, neither does ours."""
    config = SamplingConfig(
        max_frames=max(3, block["max_frames"]),  # of fewer we show no rewind, upstream a forward clip under that name
        progress=0.0,
        min_frames_per_trajectory=1,
        partial_success_threshold=block["partial_success_threshold"],
        same_source_probability=block["traj_same_source_prob"],
    )
    index = ManifestIndex.from_table(_manifest(block), config)
    ids = [row["id"] for row in block["rows"]]
    drawn_pairs: dict[str, Pair] = {}
    for i, recorded in enumerate(block["train_samples"]):
        if recorded["sampler"] != "preference" or not recorded["ok"]:
            continue
        if recorded["sample"] is not None:
            pair = _drawn_pair(recorded["sample"])
            if _of_two_failures(index, ids, pair):
                reason = "of two ungraded failures of a task it takes the one that it drew first for the better"
                yield wrong_upstream(f"{case}/train[{i}]", "pair", reason, " > ".join(pair[1:]), "no such pair")
            else:
                drawn_pairs[f"{case}/train[{i}]"] = pair
        else:
            possible = _can_pair(index, ids.index(recorded["item"]), recorded["preferred_strategy"])
            yield exact(f"{case}/train[{i}]", "no pair can be made", possible, False)
    missing, number = set(drawn_pairs.values()), 0
    while missing and number < _MOST_DRAWS:
        sample = plan(index, config, 0, number)
        assert sample.rejected is not None
        missing.discard((sample.strategy, ids[sample.chosen.row], ids[sample.rejected.row]))
        number += 1
    for at, pair in drawn_pairs.items():
        yield exact(at, "pair that our plan draws too", pair not in missing, True)


def _can_pair(index: ManifestIndex, row: int, strategy: str | None) -> bool:
    if not index.columns.successful_row(row) and index.columns.partial_of(row) is None:
        return index.partners.successes.size(int(index.columns.task[row])) > 0
    options = int(index.options[row])
    kind = _STRATEGY.get(strategy or "", strategy or "")
    return bool(options >> PREFERENCE_KINDS.index(kind) & 1 if kind in PREFERENCE_KINDS else options)


def _of_two_failures(index: ManifestIndex, ids: list[str], pair: Pair) -> bool:
    """Whether a pair of quality is of two ungraded failures of a task without a success."""
    strategy, *sides = pair
    rows = [ids.index(side) for side in sides]
    tasks = {int(index.columns.task[row]) for row in rows}
    failed = not any(index.columns.successful_row(row) or index.columns.partial_of(row) is not None for row in rows)
    hopeless = len(tasks) == 1 and not index.partners.successes.size(tasks.pop())
    return strategy == "suboptimal" and failed and hopeless


def _drawn_pair(sample: dict[str, Any]) -> Pair:
    """Strategy, chosen and rejected trajectory."""
    strategy = _STRATEGY.get(sample["data_gen_strategy"], sample["data_gen_strategy"])
    graded = strategy == "suboptimal" and sample["chosen"]["partial_success"] is not None
    return "partial_success" if graded else strategy, sample["chosen"]["id"], sample["rejected"]["id"]


def _manifest(block: Block) -> pa.Table:
    columns = ("id", "task", "quality_label", "partial_success", "num_frames", "is_robot")
    listed = [{name: row[name] for name in columns} for row in block["rows"]]
    records = [
        entry | {"source": row["data_source"], "split": "train"}
        for entry, row in zip(listed, block["rows"], strict=True)
    ]
    return pa.Table.from_pylist(records, schema=MANIFEST_SCHEMA)


def _evaluation_samples(case: str, block: Block, recorded: dict[str, Any]) -> Iterator[Row]:
    """Prefixes and whole clips of upstream's evaluation samplers."""
    for i, (entry, sample) in enumerate(zip(recorded["sample_indices"], recorded["first_samples"], strict=False)):
        for side in ("trajectory", "chosen", "rejected"):
            key = "traj_idx" if side == "trajectory" else f"{side}_traj_idx"
            if key in entry:
                frames = entry.get("frame_indices")
                triple = None if frames is None else (0, None, frames[-1])
                yield from _clip(f"{case}[{i}]/{side}", block, entry[key], "forward", triple, sample[side])
    for i, entry in enumerate(recorded["sample_indices"]):
        if "frame_indices" in entry:
            length, frames = entry["num_frames"], entry["frame_indices"]
            path = segments.segment_path(length, 0, frames[-1], None, length)
            yield exact(f"{case}[{i}]", "prefix of the clip", path.tolist(), frames)


def _all_pairs(case: str, block: Block) -> Row:
    """All pairs of different quality within a task; where there are grades, upstream pairs those instead."""
    listed = block["eval_samplers"]["quality_preference_all"]["value"]["sample_indices"]
    theirs = sorted((entry["chosen_traj_idx"], entry["rejected_traj_idx"]) for entry in listed)
    most = len(block["rows"]) ** 2
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "corpus.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "state": "complete"}))
        units = plan_split(Corpus(folder, _manifest(block)), "train", most, most, 42, ["preference"])
    ours = sorted((unit.row, unit.second) for unit in units if unit.pair_kind == "quality")
    return exact(f"{case}/quality_preference_all", "pairs of different quality", ours, theirs)
