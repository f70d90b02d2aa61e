"""Group a_targets: segments, thinning, progress targets, success labels, bins and masks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from parity.difference import close, exact, numbered, wrong_upstream
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.upstream import clips
from robometer.frames.video import thin_positions
from robometer.models.collate import collate_targets
from robometer.sampling import segments, targets
from robometer.sampling.strategies import Rules, Subject, clip_plan
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.training.batch import progress_from_logits
from robometer.training.losses import two_hot

GROUP = "a_targets"
_FLOAT64 = 1e-9
_BINS = 1e-6
_DECODED = 2e-6


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    here = recorded_set.folder / GROUP
    by_file = {
        "progress_targets": _progress_targets,
        "segment_indices": _segment_path,
        "linspace_subsample": _thinning,
        "padding": _padding,
        "success_labels": _success_labels,
        "should_compute_progress": _supervision,
        "subsample_indices_rng": _drawn_segment,
        "trajectory_pipeline": _pipeline,
    }
    for name, compare in by_file.items():
        for case, recorded in numbered(GROUP, name, read(here / f"{name}.json")):
            outcome = recorded["expected"] if name == "trajectory_pipeline" else recorded
            yield from compare(case, recorded) if outcome.get("ok", True) else _raised(case, name, recorded, outcome)
    yield from _masks(read(here / "masks.json"))
    for path in sorted(here.glob("*.npz")):
        with np.load(path) as arrays:
            to_bins = path.stem.startswith("cont_to_bins")
            yield from (_to_bins if to_bins else _from_bins)(f"{GROUP}/{path.stem}", dict(arrays))


def _progress_targets(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    theirs, what = recorded["value"], "progress targets"
    yield close(case, what, _upstream_targets(recorded), theirs, atol=_FLOAT64)
    ours = _our_targets(recorded)
    if len(theirs) and np.abs(ours - theirs).max() > _FLOAT64:
        if targets.is_partial(recorded["partial_success"]):
            reason = "partial success is asked of the last frame alone, or of none, where a ramp leads to it"
        else:
            reason = "a clip that starts where the task is done has 0 at its first frame"
        yield wrong_upstream(case, what, reason, theirs, ours)


def _asked(recorded: dict[str, Any]) -> tuple[np.ndarray, int, str, float | None, float | None]:
    return (
        np.array(recorded["frame_indices"], dtype=np.int64),
        recorded["num_frames_total"],
        recorded["progress_pred_type"],
        recorded["success_cutoff"],
        recorded["partial_success"],
    )


def _our_targets(recorded: dict[str, Any]) -> np.ndarray:
    progress = targets.reached(*_asked(recorded))
    return targets.differences(progress) if recorded["progress_pred_type"] == "relative_first_frame" else progress


def _upstream_targets(recorded: dict[str, Any]) -> np.ndarray:
    asked = _asked(recorded)
    return _our_targets(recorded) if clips.right_targets(*asked) else clips.progress_targets(*asked)


def _path_of(recorded: dict[str, Any]) -> np.ndarray:
    frames = (recorded["start_idx"], recorded["end_idx"], recorded["middle_idx"])
    return segments.segment_path(recorded["num_frames_total"], *frames, recorded["max_frames"])


def _segment_path(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    yield exact(case, "segment path", _path_of(recorded).tolist(), recorded["value"])


def _thinning(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    total, end = recorded["total"], recorded["end_idx"]
    positions = thin_positions(total if end is None else min(end + 1, total), recorded["num_frames"])
    yield exact(case, "thinned positions", positions.tolist(), recorded["indices"])
    # Frame i of the recorded video holds the number i.
    yield exact(case, "frames picked", np.arange(recorded["total"])[positions].tolist(), recorded["picked"])


def _padding(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    for name in ("frames", "progress"):
        # Padded on the left is what is padded on the right, seen from the other end.
        turn = -1 if recorded["pad_from"] == "left" else 1
        padded = segments.pad(np.array(recorded[name])[::turn], recorded["max_frames"])[::turn]
        yield exact(case, f"padded {name}", padded.tolist(), recorded[f"out_{name}"])


def _success_labels(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    threshold = recorded["dataset_success_percent"].get(recorded["data_source"], recorded["max_success"])
    labels = clips.success_labels(np.array(recorded["target_progress"]), recorded["quality_label"], threshold)
    yield exact(case, "success labels", labels.tolist(), recorded["expected"])


def _supervision_of(recorded: dict[str, Any]) -> float:
    source = recorded["data_source"]
    return float(
        clips.supervises_progress(
            recorded["quality_label"],
            source,
            recorded["partial_success"],
            clips.is_preference_only(source),
            recorded["data_gen_strategy"] == "rewind",
        )
    )


def _supervision(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    yield exact(case, "progress is supervised", _supervision_of(recorded), recorded["value"])


def _raised(case: str, name: str, recorded: dict[str, Any], outcome: dict[str, Any]) -> Iterator[Row]:
    """A case in which upstream raised; ours must give an answer."""
    answer, what = {
        "progress_targets": (_our_targets, "progress targets"),
        "segment_indices": (_path_of, "segment path"),
        "should_compute_progress": (_supervision_of, "progress is supervised"),
        "trajectory_pipeline": (lambda given: _our_clip(given).positions, "frames of the pipeline"),
    }[name]
    theirs = f"{outcome['error']}: {outcome['message']}"
    yield wrong_upstream(case, what, "it raises where there is an answer", theirs, answer(recorded))


def _drawn_segment(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    """Upstream's generator is not replayed: what it drew must have the form of what ours draws."""
    direction, total, most = recorded["direction"], recorded["num_frames_total"], recorded["max_frames"]
    kinds = segments.DIRECTIONS if direction == "bidirectional" else (direction,)
    draws = [segments.draw_triple(segments.Draws(0, n), total, kind, most) for kind in kinds for n in range(8)]
    ours = {None if triple is None else _form(triple) for triple in draws}
    theirs = recorded["start_middle_end"]
    if theirs is not None:
        start, middle, end = theirs
        # Upstream names the unused middle of a straight segment too.
        straight = middle is None or end is None or min(start, end) < middle < max(start, end)
        theirs = _form((start, None if straight else middle, end))
    yield exact(case, "form of a drawn segment", theirs in ours, True)


def _form(triple: segments.Triple) -> tuple[bool, bool | None]:
    start, middle, end = triple
    return middle is not None, None if end is None else end > start


def _shown(recorded: dict[str, Any]) -> tuple[Subject, Rules, str, segments.Triple | None]:
    """What a pipeline shows, and how."""
    config = recorded["config"]
    subject = Subject(
        recorded["num_frames_total"],
        recorded["quality_label"],
        recorded["success_cutoff_map"].get(recorded["data_source"], config["max_success"]),
        recorded["partial_success"],
        True,
        recorded["is_preference_only"],
    )
    rules = Rules(config["max_frames"], config["progress_pred_type"], 0.5, recorded["pad_frames"])
    strategy = (recorded["strategy"] or "subsample_forward").removeprefix("subsample_")
    return subject, rules, strategy, tuple(recorded["start_middle_end"]) if recorded["start_middle_end"] else None


def _our_clip(recorded: dict[str, Any]) -> ClipPlan:
    return clip_plan(0, *_shown(recorded))


def _pipeline(case: str, recorded: dict[str, Any]) -> Iterator[Row]:
    """A trajectory loaded, cut to a segment, thinned, padded and labelled, at one go."""
    config, expected = recorded["config"], recorded["expected"]
    clip = clips.shown_clip(*_shown(recorded), config["predict_last_frame_partial_progress"])
    discrete = config["progress_loss_type"] == "discrete"
    to_target = partial(clips.two_hot, bins=config["progress_discrete_bins"])
    yield exact(case, "frames of the pipeline", clip.positions.tolist(), expected["frame_ids"])
    yield exact(case, "frames of the pipeline, count", len(clip.positions), expected["frames_shape"][0])
    target = to_target(clip.target) if discrete else clip.target
    yield close(case, "targets of the pipeline", target, expected["target_progress"], atol=_BINS)
    what, labels = "success labels of the pipeline", expected["success_label"]
    yield exact(case, what, clip.label.tolist(), labels)
    ours = _our_clip(recorded)
    same = ours.positions.tolist() == clip.positions.tolist() and np.allclose(ours.progress_target, clip.target)
    if same and ours.success_label.tolist() != labels:
        reason = "the cut-off is applied again to progress that it has scaled"
        yield wrong_upstream(case, what, reason, labels, ours.success_label)
    mask = clip.mask.astype(float).tolist()
    yield exact(case, "last-frame mask of the pipeline", mask, expected["predict_last_frame_mask"])
    if recorded["partial_success"] is not None:
        value = np.asarray(recorded["partial_success"])
        reached = to_target(value) if discrete else value
        yield close(case, "partial success of the pipeline", reached, expected["partial_success"], atol=_BINS)


def _masks(recorded: dict[str, Any]) -> Iterator[Row]:
    """Padding of a batch: masks of ragged clips, and targets that end in zeros."""
    case = f"{GROUP}/masks"
    mask = _collated([np.zeros(shape[0]) for shape in recorded["frames_shape"]])[0].numpy()
    yield exact(case, "padding mask", mask.astype(float), np.array(recorded["padding_mask_max"]))
    wider = np.array(recorded["padding_mask_10"])
    yield exact(case, "padding mask", np.pad(mask, ((0, 0), (0, wider.shape[1] - mask.shape[1]))).astype(float), wider)
    target = _collated([np.array(values) for values in recorded["lists"]])[1]
    yield close(case, "padded targets", target, np.array(recorded["pad_continuous"]), atol=_BINS)
    two_hots = [np.array(values) for values in recorded["two_hot_lists"]]
    valid, target = _collated([clips.decoded(values) for values in two_hots])
    padded = two_hot(target, two_hots[0].shape[-1]) * valid[..., None]
    yield close(case, "padded two-hot targets", padded, np.array(recorded["pad_two_hot"]), atol=_BINS)


def _collated(values: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame mask and progress targets [B, T] of ragged clips, as a batch has them."""
    plans = []
    for i, target in enumerate(values):
        ones = np.ones(len(target), dtype=bool)
        clip = ClipPlan(0, np.arange(len(target)), target.astype(np.float32), ones, np.zeros(len(target)), ones)
        plans.append(SamplePlan(i, "progress", "forward", "", clip, None, 0.0))
    batch = collate_targets(plans, {})
    return batch.a.frame_mask, batch.a.progress_target


def _to_bins(case: str, recorded: dict[str, np.ndarray]) -> Iterator[Row]:
    values, bins = recorded["values"], int(recorded["num_bins"])
    yield close(case, "two-hot", clips.two_hot(values, bins), recorded["two_hot"], atol=_BINS)
    inside = (values >= 0) & (values <= 1)
    ours = two_hot(torch.from_numpy(values[inside]), bins)
    yield close(case, "two-hot of the losses", ours, recorded["two_hot"][inside], atol=_BINS)
    yield exact(case, "nearest bin", clips.nearest_bin(recorded["hard_values"], bins), recorded["hard_bin"])


def _from_bins(case: str, recorded: dict[str, np.ndarray]) -> Iterator[Row]:
    """Upstream takes rows that all sum to exactly 1 for probabilities, anything else for logits; we are told which."""
    bins = int(recorded["num_bins"])
    for name in ("logits", "mixed"):
        probabilities = torch.from_numpy(recorded[name]).softmax(-1).numpy()
        yield close(case, f"decoded {name}", clips.decoded(probabilities), recorded[f"{name}_decoded"], atol=_DECODED)
    ours = progress_from_logits(torch.from_numpy(recorded["logits"]))
    yield close(case, "decoded logits of a model", ours, recorded["logits_decoded"], atol=_DECODED)
    onehot = np.eye(bins)
    hard = clips.decoded(onehot[recorded["logits"].argmax(-1)])
    yield close(case, "decoded most likely bin", hard, recorded["logits_decoded_hard"], atol=_DECODED)
    index = clips.decoded(onehot[recorded["index_target"].astype(int)])
    yield close(case, "decoded bin indices", index, recorded["index_target_decoded"], atol=_DECODED)
    for name, column in (("two_hot", "two_hot"), ("onehot", "onehot"), ("two_hot_target", "two_hot")):
        decoded, theirs = clips.decoded(recorded[column]), recorded[f"{name}_decoded"]
        sums = torch.from_numpy(recorded[column]).sum(-1)
        if bool((sums == 1).all()):
            yield close(case, f"decoded {name}", decoded, theirs, atol=_DECODED)
        else:
            reason = "takes probabilities that round for logits"
            yield wrong_upstream(case, f"decoded {name}", reason, theirs, decoded)
