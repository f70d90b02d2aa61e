"""Faults to plant, one at a time, and the tests that must fail for each: `python -m tests.mutants [WORD ...]`.

Each is planted in a copy of the tree, and the tests named beside it are run there until one fails. Before, they must
all pass in the copy as it is. A fault that they let pass is printed as MISSED, and the program ends with status 1. With
words, only faults whose name or file holds one of them. Not collected by pytest: a run takes an hour.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 900
STARTS_RAY = (
    "test_cluster",
    "test_identity",
    "test_ingest",
    "test_lerobot",
    "test_rlds",
    "test_sample_stream",
    "test_sweep",
    "test_train",
)
"""Tests that get a Python of their own."""

PRELOADED = ("cv2", "numpy", "pandas", "pyarrow.parquet", "pytest", "scipy.stats", "torch", "transformers")
"""Imported once: the tests of each fault run in a fork of this process."""


class Mutant(NamedTuple):
    """A fault: `old` stands exactly once in `file`, and becomes `new`; `tests` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: str


# fmt: off
# ruff: noqa: E501
MUTANTS = (
    # --- the fifteen that passed all tests in November 2026
    Mutant("preference sign flipped in the loss", "robometer/training/losses.py",
           "error = binary_error(output.preference_logits, batch.preference_label)\n        preference = zero",
           "error = binary_error(-output.preference_logits, batch.preference_label)\n        preference = zero",
           "tests/training/test_losses.py"),
    Mutant("targets shifted to the pad side", "robometer/models/collate.py",
           "array[i, :length] = getattr(clip, name)", "array[i, width - length :] = getattr(clip, name)",
           "tests/models/test_collate.py"),
    Mutant("B of a pair never supervised", "robometer/training/losses.py",
           "sides = [batch.a, batch.b] if both else [batch.a]", "sides = [batch.a]", "tests/training/test_losses.py"),
    Mutant("class balance ignores a missing class", "robometer/training/losses.py",
           "classes = (n[1] > 0).float() + (n[2] > 0).float()", "classes = torch.tensor(2.0)", "tests/training/test_losses.py"),
    Mutant("success cut-off exclusive", "robometer/sampling/targets.py",
           "ramp = np.where(path >= done_at, 1.0", "ramp = np.where(path > done_at, 1.0", "tests/sampling/test_targets.py"),
    Mutant("success mask includes not_done_below_progress", "robometer/sampling/targets.py",
           "(progress < not_done_below_progress) | (labels > 0.5)", "(progress <= not_done_below_progress) | (labels > 0.5)",
           "tests/sampling/test_targets.py"),
    Mutant("features taken at wrong positions", "robometer/models/rewind_scorer.py",
           "features = stored[positions]", "features = stored[: len(positions)]", "tests/models/test_rewind.py"),
    Mutant("manifest committed before the shard's rename", "robometer/corpus/writer.py",
           "    write_shard(storage, name, _batches(entries, name, plan, shard), seals)\n",
           "    def early() -> Iterator[pa.RecordBatch]:\n"
           "        yield from _batches(entries, name, plan, shard)\n"
           "        ledger = {unit: shard.read(unit, plan) for unit in plan.seals}\n"
           "        write_manifest(storage, name, pa.Table.from_pylist(shard.rows, MANIFEST_SCHEMA), ledger)\n\n"
           "    write_shard(storage, name, early(), seals)\n",
           "tests/corpus/test_storage.py"),
    Mutant("manifest committed before the quarantine", "robometer/corpus/writer.py",
           "        if refused:\n",
           "        write_manifest(storage, name, pa.Table.from_pylist(shard.rows, MANIFEST_SCHEMA), ledger)\n"
           "        if refused:\n",
           "tests/corpus/test_storage.py"),
    Mutant("files written in place", "robometer/corpus/storage.py",
           'temporary = posixpath.join(folder, f".{base}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")',
           "temporary = posixpath.join(folder, base)",
           "tests/corpus/test_storage.py"),
    Mutant("last row of a duplicate id kept", "robometer/corpus/manifest.py",
           "        first[1:] = ", "        first[:-1] = ", "tests/corpus/test_corpus.py"),
    Mutant("compaction keeps duplicates", "robometer/corpus/maintenance.py",
           'visible[shard] = [row for row in rows if row["row"] in seen]', "visible[shard] = list(rows)",
           "tests/corpus/test_storage.py"),
    Mutant("id without its separator", "robometer/trajectory.py",
           '"\\x1f".join((source, episode_key, view))', '"".join((source, episode_key, view))',
           "tests/corpus/test_corpus.py"),
    Mutant("detection threshold inclusive", "robometer/evaluation/measures/success_detection.py",
           "(np.flatnonzero(values > THRESHOLD) for", "(np.flatnonzero(values >= THRESHOLD) for",
           "tests/evaluation/test_evaluations.py"),
    # --- corpus
    Mutant("temporary files of living processes deleted", "robometer/corpus/storage.py",
           "(temporary and (old or _owner_is_gone(info.base_name)))", "temporary", "tests/corpus/test_corpus.py"),
    Mutant("an earlier reading of a unit counts", "robometer/corpus/manifest.py",
           "(read.revision, read.stored, read.seal) >", "(read.revision, read.stored, read.seal) <",
           "tests/corpus/test_corpus.py"),
    Mutant("embeddings not at the positions asked for", "robometer/corpus/corpus.py",
           "table[np.asarray(positions)], dtype", "table[: len(positions)], dtype", "tests/models/test_collate.py"),
    Mutant("rewards not at the frames kept", "robometer/corpus/encode.py",
           "return [values[i] for i in index]", "return list(values[: len(index)])", "tests/corpus/formats/test_mp4_jsonl.py -k truth"),
    Mutant("content hash leaves out which frames", "robometer/corpus/writer.py",
           'digest = hashlib.sha256(",".join(map(str, frame_index)).encode())', "digest = hashlib.sha256()",
           "tests/corpus/test_corpus.py"),
    Mutant("joined rows point one batch too far", "robometer/corpus/maintenance.py",
           '"row": number} for number, row in enumerate(rows)]', '"row": number} for number, row in enumerate(rows, 1)]',
           "tests/corpus/test_storage.py"),
    Mutant("quarantine of an uncommitted shard counts", "robometer/corpus/manifest.py",
           "        elif _stem(name) in ledgers:\n", "        else:\n",
           "tests/corpus/test_storage.py tests/corpus/test_corpus.py"),
    Mutant("what cannot be looked at looks as it did", "pipelines/ingest.py",
           'same = seal != "" and before.seal == seal', "same = before.seal == seal",
           "tests/corpus/test_identity.py -k nobody_can_look"),
    Mutant("Ray is shut down under threads that use it", "pipelines/cluster.py",
           "if not ray.is_initialized() or _other_threads_left(ray_threads, patience_s):", "if True:", "tests/pipelines/test_cluster.py -k under_a_thread"),
    Mutant("a thread that outlives Ray joins another", "pipelines/foreign.py",
           '"RAY_ENABLE_AUTO_CONNECT": "0"', '"RAY_ENABLE_AUTO_CONNECT": "1"', "tests/pipelines/test_cluster.py -k ctrl_c"),
    Mutant("threads that outlive Ray are heard", "pipelines/cluster.py",
           "logging.getLogger(name).setLevel(logging.CRITICAL)", "pass", "tests/pipelines/test_cluster.py -k ctrl_c"),
    Mutant("what a decoder that was taken over writes may raise what it likes", "pipelines/serving/child.py",
           "except Exception as error:  # what was", "except ValueError as error:  # what was", "tests/pipelines/serving/test_uploads.py -k makes_its"),
    # --- frames
    Mutant("a cut by a clock floored", "robometer/frames/timeline.py",
           "int(np.searchsorted(middles, s) +", "int(np.searchsorted(times, s, side='right') - 1 +",
           "tests/frames/test_video.py"),
    Mutant("a part that ends with its video loses its last frame", "robometer/frames/timeline.py",
           "+ max(0, round((s - times[-1]) * fps))", "", "tests/frames/test_video.py"),
    Mutant("a cut by LeRobot's clock floored", "robometer/corpus/formats/lerobot.py",
           "(by_length, round(begin), total, clear)", "(by_length, int(begin), total, clear)",
           "tests/corpus/formats/test_lerobot.py"),
    Mutant("LeRobot's timestamps are facts", "robometer/corpus/formats/lerobot.py",
           "    if count == total:\n", "    if count == total and clear:\n", "tests/corpus/formats/test_lerobot.py"),
    Mutant("episodes lie in a video as they are listed", "robometer/corpus/formats/lerobot.py",
           "        by_length = 0\n        for begin, episode, length in sorted(places):",
           "        by_length = 0\n        for begin, episode, length in places:", "tests/corpus/formats/test_lerobot.py"),
    Mutant("timestamps between frames are clear", "robometer/corpus/formats/lerobot.py",
           "CLEAR = 0.25", "CLEAR = 0.75", "tests/corpus/formats/test_lerobot.py"),
    Mutant("a gap of one frame is one", "robometer/corpus/formats/lerobot.py",
           "gap > AMBIGUOUS)", "gap > 0)", "tests/corpus/formats/test_lerobot.py"),
    Mutant("episodes of a video that is too short are cut", "robometer/corpus/formats/lerobot.py",
           "if not clear or count < total:", "if not clear:", "tests/corpus/formats/test_lerobot.py"),
    Mutant("half of the frames name the task", "robometer/corpus/formats/lerobot.py",
           "if 3 * most < 2 * len(rows):", "if 2 * most < len(rows):", "tests/corpus/formats/test_lerobot.py"),
    Mutant("GR00T's tasks read from task_index", "robometer/corpus/formats/lerobot.py",
           "if rows.has(name)), \"\")", "if rows.has(name) and name == \"task_index\"), \"\")",
           "tests/corpus/formats/test_lerobot.py"),
    Mutant("rows without frame_index as they lie", "robometer/corpus/readers/episode_rows.py",
           'for name in ("frame_index", "index") if', 'for name in ("frame_index",) if', "tests/corpus/formats/test_lerobot.py"),
    Mutant("one channel is a picture", "robometer/corpus/formats/lerobot.py",
           "1 in (shape[0], shape[2])", "1 in (shape[0],)", "tests/corpus/formats/test_lerobot.py"),
    Mutant("images of 16 bits are pictures", "robometer/frames/video.py",
           'image.mode[0] in "IF"', 'image.mode[0] in "F"', "tests/corpus/formats/test_depth.py"),
    Mutant("depth counts as refused", "robometer/corpus/encode.py",
           'SKIP if isinstance(error, DepthError) else "video"', '"video"', "tests/corpus/formats/test_depth.py"),
    Mutant("a failure in DROID's path is passed over", "robometer/corpus/formats/rlds.py",
           "quality = quality or outcome(self.example) or", "quality = quality or", "tests/corpus/formats/test_rlds.py"),
    Mutant("a path outdoes a flag", "robometer/corpus/formats/rlds.py",
           "        if flags and flags[-1] in _OUTCOMES:", "        if flags and flags[-1] == \"1\":", "tests/corpus/formats/test_rlds.py"),
    Mutant("ragged texts taken one a step", "robometer/corpus/formats/rlds.py",
           "list(islice(left, count))", "list(islice(left, 1))", "tests/corpus/formats/test_rlds.py"),
    Mutant("compressed records that break off end well", "robometer/corpus/readers/tfrecord.py",
           "                raise EOFError(\"its end is missing\")", "                return 0", "tests/corpus/formats/test_rlds.py"),
    Mutant("hub caches resolved to their blobs", "robometer/corpus/formats/common.py",
           "os.path.expanduser(input)).absolute()", "os.path.expanduser(input)).resolve()",
           "tests/corpus/formats/test_hub_cache.py"),
    Mutant("a revision names a data set", "robometer/corpus/formats/common.py",
           'return cached[1] if cached and', 'return cached[1] if False and cached and', "tests/corpus/formats/test_hub_cache.py"),
    Mutant("overrides as Hydra reads them", "robometer/configs/loading.py",
           "    return f\"++{key}={QuotedString(literal, Quote.single).with_quotes()}\"", "    return override",
           "tests/configs/test_loading.py"),
    # --- what a data set is known by
    Mutant("an update loses to what it replaces", "robometer/corpus/manifest.py",
           '("revision", "descending")', '("revision", "ascending")', "tests/corpus/test_identity.py -k corrected"),
    Mutant("what differs is read once only", "robometer/corpus/writer.py",
           "seal = before.seal if differing else plan.seals[unit]", "seal = plan.seals[unit]",
           "tests/corpus/test_identity.py -k corrected"),
    Mutant("labels hash leaves out rewards", "robometer/corpus/identity.py",
           "episode.fps, *truth", "episode.fps", "tests/corpus/test_identity.py -k any_label"),
    Mutant("labels are not compared", "robometer/corpus/encode.py",
           "facts.labels != labels and not config.update", "False",
           "tests/corpus/test_identity.py -k corrected"),
    Mutant("frames are not compared", "robometer/corpus/encode.py",
           "if facts == now:", "if facts.labels == labels:",
           "tests/corpus/test_identity.py -k corrected"),
    Mutant("another data set of the same name is merged", "pipelines/ingest.py",
           "if compared and not any(", "if not compared and not any(", "tests/corpus/test_identity.py -k one_name"),
    Mutant("a new copy is another data set", "pipelines/ingest.py",
           "same = facts.content == entry.record", "same = facts.content != entry.record",
           "tests/corpus/test_identity.py -k one_name"),
    Mutant("compact leaves large shards with what was replaced", "robometer/corpus/maintenance.py",
           "if size >= target_bytes and not stale:", "if size >= target_bytes:", "tests/corpus/test_identity.py -k large_shard"),
    Mutant("a seal knows no files", "robometer/corpus/identity.py",
           'digest.update(look.encode("utf-8", "surrogatepass"))', "pass", "tests/corpus/test_identity.py -k seal"),
    Mutant("a seal knows no times", "robometer/corpus/identity.py",
           'f"{status.st_size} {status.st_mtime_ns} ', 'f"{status.st_size} ', "tests/corpus/test_identity.py -k seal"),
    Mutant("a seal knows folders", "robometer/corpus/identity.py",
           'return os.path.basename(value) if isinstance(value, str) and value.startswith("/") else value', "return value",
           "tests/corpus/test_identity.py -k seal"),
    Mutant("a second reading takes the name of the first", "pipelines/ingest.py",
           'key.append(f"{digest}+{seal}+{before}")', 'key.append(f"{digest}+{seal}")',
           "tests/corpus/test_identity.py tests/pipelines/test_ingest.py -k 'corrected or killed or retry or format'"),
    Mutant("refused again in the last reading, told of the one before", "robometer/corpus/manifest.py",
           "last[unit][1] != shard", "last[unit][1] == shard", "tests/corpus/test_corpus.py"),
    Mutant("a cut begins one frame late", "robometer/frames/recording.py",
           "                if at >= self.first:\n", "                if at > self.first:\n", "tests/frames/test_video.py"),
    Mutant("frames in thinned videos floored", "robometer/frames/video.py",
           "positions = np.rint(np.linspace(0, num_frames - 1, max_frames))",
           "positions = np.floor(np.linspace(0, num_frames - 1, max_frames))", "tests/frames/test_video.py"),
    Mutant("pixels that no JPEG saw", "robometer/frames/__init__.py",
           "if not settings.jpeg_quality:", "if settings.jpeg_quality:", "tests/frames/test_recording.py"),
    Mutant("turned the other way", "robometer/frames/video.py",
           "pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]", "pixels[:: -1 if x < 0 else 1, :: -1 if y < 0 else 1]",
           "tests/frames/test_recording.py"),
    Mutant("the first of several streams, not the best", "robometer/frames/video.py",
           'fallback = best if best in streams else streams[0]', 'fallback = streams[0]', "tests/frames/test_recording.py"),
    Mutant("pixels in all frames unbounded", "robometer/frames/video.py",
           "if self._spent > self._limits.max_total_pixels:", "if self._spent < 0:", "tests/frames/test_recording.py"),
    Mutant("a video that breaks off passes", "robometer/frames/recording.py",
           "if self._read < named:", "if self._read > named:", "tests/frames/test_video.py tests/frames/test_recording.py"),
    Mutant("a change of size passes", "robometer/frames/recording.py",
           "if (frame.width, frame.height) != first:", "if first is None:", "tests/frames/test_recording.py"),
    Mutant("the cover of a song is a video", "robometer/frames/video.py",
           " if not stream.disposition & Disposition.attached_pic]", "]", "tests/frames/test_recording.py -k cover"),
    Mutant("a packet of VP8 is a frame", "robometer/frames/timeline.py",
           '{"h264", "hevc", "av1"}', '{"h264", "hevc", "av1", "vp8"}', "tests/frames/test_recording.py -k packet"),
    Mutant("a packet of VP9 is a frame", "robometer/frames/timeline.py",
           '{"h264", "hevc", "av1"}', '{"h264", "hevc", "av1", "vp9"}', "tests/frames/test_recording.py -k packet"),
    Mutant("a packet of MPEG-4 is a frame", "robometer/frames/timeline.py",
           '{"h264", "hevc", "av1"}', '{"h264", "hevc", "av1", "mpeg4"}', "tests/frames/test_recording.py -k packet"),
    Mutant("what is shown before the first key frame is missed", "robometer/frames/recording.py",
           "self._key is not None and (packet.pts is None or packet.pts >= self._key)", "self._key is not None",
           "tests/frames/test_recording.py -k lacks"),
    Mutant("what is coded before the first key frame is missed", "robometer/frames/recording.py",
           "self._key is not None and (packet.pts is None or packet.pts >= self._key)", "True",
           "tests/frames/test_recording.py -k lacks"),
    Mutant("decoding begins at any frame that a file calls a key", "robometer/frames/timeline.py",
           'codec.name == "h264" and _IDR not in _unit_types(packet, codec)', "False",
           "tests/frames/test_recording.py -k begin"),
    Mutant("a packet of H.264 without a picture is a frame", "robometer/frames/timeline.py",
           "1 <= kind <= _IDR if", "kind >= 0 if", "tests/frames/test_recording.py -k without_a_picture"),
    Mutant("a packet of HEVC without a picture is a frame", "robometer/frames/timeline.py",
           "kind < 32 for", "kind >= 0 for", "tests/frames/test_recording.py -k without_a_picture"),
    Mutant("what is shown before a key frame is decoded", "robometer/frames/timeline.py",
           "if entered and (packet.pts is None or packet.pts >= key):", "if entered:", "tests/frames/test_recording.py -k near_to"),
    Mutant("a timeline is remembered whatever the size", "robometer/frames/timeline.py",
           "stat.st_size, stat.st_mtime_ns)", "0, stat.st_mtime_ns)", "tests/frames/test_recording.py -k follow"),
    Mutant("a timeline is remembered whatever the time", "robometer/frames/timeline.py",
           "stat.st_size, stat.st_mtime_ns)", "stat.st_size, 0)", "tests/frames/test_recording.py -k follow"),
    Mutant("an MP4 may lack frames that its header names", "robometer/frames/recording.py",
           "len(self._stream.index_entries) if mov", "0 if mov", "tests/frames/test_recording.py -k between"),
    Mutant("an AVI may lack frames that its header names", "robometer/frames/recording.py",
           "if mov else self._stream.frames", "if mov else 0", "tests/frames/test_recording.py -k between"),
    Mutant("frames that an edit list hides are counted", "robometer/frames/video.py",
           "sum(not entry.is_discard for entry in stream.index_entries)", "len(stream.index_entries)",
           "tests/frames/test_recording.py -k edit_list"),
    # --- sampling and targets
    Mutant("a rewind that never rewinds", "robometer/sampling/segments.py",
           "return (f1, f3, f2) if direction", "return (f1, f2, f3) if direction", "tests/sampling"),
    Mutant("the peak of a rewind thinned away", "robometer/sampling/strategies.py",
           "if rewind and triple is not None", "if not rewind and triple is not None", "tests/sampling"),
    Mutant("partial success one tolerance too far apart", "robometer/sampling/plan.py",
           "gap = config.partial_success_threshold - GAP_TOLERANCE", "gap = config.partial_success_threshold + GAP_TOLERANCE",
           "tests/sampling"),
    Mutant("the lower partial success chosen", "robometer/sampling/plan.py",
           "higher = float(index.columns.partial_success[partner]) > value",
           "higher = float(index.columns.partial_success[partner]) < value", "tests/sampling"),
    Mutant("a wrong instruction with its own video", "robometer/sampling/plan.py",
           '    if strategy == "different_instruction":\n', '    if strategy == "suboptimal":\n', "tests/sampling"),
    Mutant("every epoch in the same order", "robometer/sampling/walk.py",
           "permuted(position, last - first, seed + group, epoch)", "permuted(position, last - first, seed + group, 0)",
           "tests/sampling"),
    Mutant("partial success ramps to 1", "robometer/sampling/targets.py",
           "else ramp * partial_success", "else ramp", "tests/sampling"),
    Mutant("preference-only sources train progress", "robometer/sampling/targets.py",
           "    if preference_only:\n        return False\n", "", "tests/sampling"),
    Mutant("other tasks from the same source alone", "robometer/sampling/plan.py",
           "if draws.uniform() < config.same_source_probability:", "if draws.uniform() < 1.0:", "tests/sampling"),
    Mutant("a group's weight overrules its member's", "robometer/sampling/groups.py",
           "sorted(weights, key=number.__contains__)", "sorted(weights, key=number.__contains__, reverse=True)",
           "tests/sampling"),
    # --- losses and batches
    Mutant("progress read from bins without their ends", "robometer/training/batch.py",
           "torch.linspace(0.0, 1.0, logits.shape[-1], device=logits.device)",
           "torch.arange(logits.shape[-1], device=logits.device) / logits.shape[-1]", "tests/training/test_losses.py"),
    Mutant("logits clamped too early", "robometer/training/losses.py", "LOGIT_CLAMP = 50.0", "LOGIT_CLAMP = 5.0",
           "tests/training/test_losses.py"),
    Mutant("progress samples counted among the pairs", "robometer/training/losses.py",
           "total[3] = batch.preference_mask.sum()", "total[3] = len(batch.preference_mask)", "tests/training/test_losses.py"),
    Mutant("pairs alone train progress", "robometer/training/losses.py",
           "single = ~batch.preference_mask[:, None]", "single = batch.preference_mask[:, None]", "tests/training/test_losses.py"),
    # --- models and scorers
    Mutant("padding is seen", "robometer/models/rewind.py",
           "return (structure & valid[:, None]) |", "return structure |", "tests/models/test_rewind.py"),
    Mutant("heads read the frame, not its progress token", "robometer/models/rewind.py",
           "start + self.tokens_per_frame - 1 : start + length", "start : start + length",
           "tests/models/test_rewind.py"),
    Mutant("B's frames are A's", "robometer/models/processing.py",
           "b = [np.arange(len(s.b or [])) + f + len(s.a)", "b = [np.arange(len(s.b or [])) + f",
           "tests/models/test_processing.py tests/models/test_robometer.py"),
    Mutant("pictures of B numbered from 1 again", "robometer/models/prompts.py",
           "*_frames(1 + num_frames_a, num_frames_b", "*_frames(1, num_frames_b",
           "tests/models/test_processing.py tests/models/test_robometer.py"),
    Mutant("progress read one token early", "robometer/models/processing.py",
           "after = index + len(part_ids) + len(chat.after)", "after = index + len(part_ids) + len(chat.after) - 1",
           "tests/models/test_processing.py tests/models/test_robometer.py"),
    Mutant("a prefix's first frame, not its last", "robometer/models/robometer_scorer.py",
           "[getattr(score, name)[-1] for score in last]", "[getattr(score, name)[0] for score in last]",
           "tests/models/test_robometer.py"),
    Mutant("statistics of the splits that are evaluated", "robometer/models/rewind_scorer.py",
           "rows = corpus.rows(config.sampling.split)", "rows = corpus.rows()", "tests/models/test_collate.py"),
    Mutant("encoder's mean not in pixels", "robometer/models/encoders.py",
           "torch.tensor(values).view(1, 3, 1, 1) * 255.0", "torch.tensor(values).view(1, 3, 1, 1)",
           "tests/models/test_encoders.py"),
    # --- metrics, evaluation, report
    Mutant("ties count as wins in AUROC", "robometer/evaluation/metrics.py",
           "beaten = negatives.take(self._below, axis=1) + negatives.take(self._not_above, axis=1)",
           "beaten = 2 * negatives.take(self._not_above, axis=1)", "tests/evaluation/test_metrics.py"),
    Mutant("interval of twice the tail", "robometer/evaluation/metrics.py",
           "tail = (1 - confidence) / 2", "tail = 1 - confidence", "tests/evaluation/test_metrics.py"),
    Mutant("a tie is a loss in ranking accuracy", "robometer/evaluation/metrics.py",
           "return self.wins + self.ties / 2", "return self.wins", "tests/evaluation/test_metrics.py"),
    Mutant("only one order of a pair counts", "robometer/evaluation/measures/preference.py",
           "(np.sign(_logit(pair.chosen_first) + _logit(pair.chosen_second)) + 1)",
           "(np.sign(2 * _logit(pair.chosen_first)) + 1)", "tests/evaluation/test_evaluations.py"),
    Mutant("confusion matrix transposed", "robometer/evaluation/measures/confusion_matrix.py",
           "cell = index[record.instruction], index[record.task]", "cell = index[record.task], index[record.instruction]",
           "tests/evaluation/test_evaluations.py"),
    Mutant("clips not taken in turn from all cells", "robometer/evaluation/plan.py",
           "sorted(turns)[:max_clips]", "turns[:max_clips]", "tests/evaluation/test_evaluations.py"),
    Mutant("the report's interval repeats its low end", "robometer/report/tables.py",
           'f"{number(low)} to {number(high)}"', 'f"{number(low)} to {number(low)}"', "tests/evaluation/test_report.py"),
    # --- checkpoints
    Mutant("a missing tensor passes", "robometer/models/weights.py",
           "if name not in stored and name not in optional)", "if name not in stored and name in optional)",
           "tests/models/test_checkpoint.py"),
    Mutant("revision from the first file alone", "robometer/models/weights.py",
           "    for file in weight_files(folder):\n        _read_into(digest, file)",
           "    for file in weight_files(folder)[:1]:\n        _read_into(digest, file)", "tests/models/test_checkpoint.py"),
    # --- training
    Mutant("resumes one step too far", "pipelines/training/checkpointing.py",
           'return engine, Position(saved["step"], history)', 'return engine, Position(saved["step"] + 1, history)',
           "tests/pipelines/test_train.py -k ends_before_its_step"),
    Mutant("learning rate of the step before", "pipelines/training/worker.py",
           "rate = learning_rate(self.position.step + 1, self.config)", "rate = learning_rate(self.position.step, self.config)",
           "tests/pipelines/training/test_engine.py -k plain_loop"),
    Mutant("the vision tower learns at the full rate", "pipelines/training/worker.py",
           'group["lr"] = rate * group["lr_scale"]', 'group["lr"] = rate', "tests/pipelines/training/test_engine.py -k plain_loop"),
    Mutant("gradients are not clipped", "pipelines/training/engine.py",
           '"gradient_clipping": train.max_grad_norm', '"gradient_clipping": 0.0', "tests/pipelines/training/test_engine.py -k clipped"),
    Mutant("copies of micro-batches count", "pipelines/training/worker.py",
           "self.engine.backward(losses.total * (micro_batch.weight * scale))",
           "self.engine.backward(losses.total * scale)", "tests/pipelines/training/test_engine.py -k plain_loop"),
    Mutant("gradients are a mean of micro-batches", "pipelines/training/worker.py",
           "scale = self.world_size * self.engine.gradient_accumulation_steps()", "scale = self.world_size",
           "tests/pipelines/training/test_engine.py -k plain_loop"),
    Mutant("all copies of a step's micro-batches go to one worker", "pipelines/sample_stream.py",
           "(k - self._start) % self._world_size == self._rank", "k % self._world_size == self._rank",
           "tests/pipelines/test_sample_stream.py -k by_hand"),
    # --- serving and its client
    Mutant("any token passes", "pipelines/serving/tokens.py",
           "if self._token and hmac.compare_digest(token, self._token)", "if self._token",
           "tests/test_client.py tests/pipelines/serving/test_http.py -k 'token or docs'"),
    Mutant("a request without a token passes", "pipelines/serving/tokens.py",
           "        if not token:\n            raise _unauthorized(", "        if not token:\n            return Client()\n            raise _unauthorized(",
           "tests/test_client.py tests/pipelines/serving/test_http.py -k 'token or docs'"),
    Mutant("the hash in the file is itself a token", "pipelines/serving/tokens.py",
           "hashlib.sha256(token).hexdigest()", "token.decode('latin-1')", "tests/pipelines/serving/test_tokens.py"),
    Mutant("a damaged token file revokes everything", "pipelines/serving/tokens.py",
           "        except ConfigError as error:\n            logger.error(", "        except ConfigError as error:\n            self._entries = {}\n            logger.error(",
           "tests/pipelines/serving/test_tokens.py -k revokes"),
    Mutant("a revoked token stays valid", "pipelines/serving/tokens.py",
           "        if signature == self._seen:", "        if signature:", "tests/pipelines/serving/test_tokens.py -k revokes"),
    Mutant("a certificate that has expired is served", "pipelines/serving/tls.py",
           "        client = _trusting(certificate)", "        client = trust(certificate)", "tests/pipelines/serving/test_tls.py"),
    Mutant("the endpoint's probes trust any certificate", "pipelines/serving/tls.py",
           "    context.check_hostname = False  # the probes", "    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the probes",
           "tests/pipelines/serving/test_tls.py"),
    Mutant("a page cannot read a refusal of the proxy", "pipelines/serving/front.py",
           "reply.headers += client.cors_headers", "reply.headers += []", "tests/pipelines/serving/test_cors.py"),
    Mutant("pages may use the browser's credentials", "pipelines/serving/cors.py",
           "allow_credentials=False", "allow_credentials=True", "tests/pipelines/serving/test_cors.py"),
    Mutant("a refusal of the proxy is not in the audit log", "pipelines/serving/front.py",
           "            if reply.is_from_replica:\n                client.record", "            if reply.is_from_replica and chunks is not None:\n                client.record",
           "tests/pipelines/serving/test_audit.py"),
    Mutant("the record of a request reaches its client", "pipelines/serving/front.py",
           "if name.lower() != RECORD_HEADER]", "if name]", "tests/pipelines/serving/test_audit.py"),
    Mutant("a full audit log is overwritten", "pipelines/serving/audit.py",
           "if self._handler.shouldRollover(record):", "if False:", "tests/pipelines/serving/test_audit.py"),
    Mutant("the wait for a batch has the model's time in it", "pipelines/serving/records.py",
           "started_s - outcome.model_s)", "started_s)", "tests/pipelines/serving/test_audit.py"),
    Mutant("Ray is not told of a metric", "pipelines/serving/metrics.py",
           "if self._in_ray is not None:", "if self._in_ray is None:", "tests/pipelines/serving/test_metrics.py"),
    Mutant("Retry-After names the newest request", "pipelines/serving/quotas.py",
           "usage.recent[excess][0] + WINDOW_S", "usage.recent[-1][0] + WINDOW_S", "tests/pipelines/serving/test_quotas.py"),
    Mutant("a token's limits hold for no request", "pipelines/serving/front.py",
           "with self._quotas.place(admission.client,", "with self._quotas.place(Client(),", "tests/pipelines/serving/test_tokens.py -k limit"),
    Mutant("one request too many is admitted", "pipelines/serving/guard.py",
           "if self._in_flight >= self._settings.max_in_flight:", "if self._in_flight > self._settings.max_in_flight:",
           "tests/test_client.py -k 'admission or patience or capacity'"),
    Mutant("places are never freed", "pipelines/serving/guard.py",
           "self._change_in_flight(-1)", "self._change_in_flight(0)", "tests/pipelines/serving/test_http.py -k 'leaves'"),
    Mutant("a client that has gone is asked for again", "pipelines/serving/front.py",
           "if client.gone or reply.is_from_replica:", "if reply.is_from_replica:", "tests/pipelines/serving/test_http.py -k has_gone"),
    Mutant("a body in chunks is unbounded", "pipelines/serving/front.py",
           "if size_bytes > admission.max_upload_bytes:", "if size_bytes < 0:", "tests/pipelines/serving/test_http.py -k bounded"),
    Mutant("the client gives up on overload", "robometer/calls.py",
           "return response.status_code in (429, 503) or", "return response.status_code == 529 or", "tests/test_client.py -k 'capacity'"),
    Mutant("the client does not wait as it is told", "robometer/calls.py",
           "seconds = float(retry_after) if retry_after.isdecimal() else", "seconds = 0.0 if retry_after.isdecimal() else",
           "tests/test_client.py -k 'retry_after'"),
    Mutant("the async client sends all at once", "robometer/async_client.py",
           "async with self._places:", "if True:", "tests/test_async_client.py -k bounded"),
    Mutant("an error has no problem details", "pipelines/serving/errors.py",
           "media_type=PROBLEM_JSON", 'media_type="application/json"', "tests/pipelines/serving/test_http.py -k 'safe'"),
    Mutant("one bad input fails its whole batch", "pipelines/serving/answerer.py",
           "if len(items) > 1:", "if len(items) > 9:", "tests/pipelines/serving/test_model.py"),
    Mutant("comparisons that are not finite are answered", "pipelines/serving/answerer.py",
           "if not np.isfinite(values).all():", "if np.isnan(values).any():", "tests/pipelines/serving/test_model.py"),
    Mutant("answers of a mixed batch in another order", "pipelines/serving/answerer.py",
           "return [replace(outcomes[i], **shared", "return [replace(list(outcomes.values())[i], **shared", "tests/pipelines/serving/test_model.py"),
    # --- deploy and update
    Mutant("a replica answers what did not come through the proxy's checks", "pipelines/serving/guard.py",
           "if FRONT_HEADER not in headers:\n            raise unavailable(UNPROTECTED, 60)\n        if", "if",
           "tests/pipelines/serving/test_http.py -k without_the_checks"),
    Mutant("a client may say that it came through the checks", "pipelines/serving/front.py",
           'b"accept authorization ', 'b"x-robometer-front accept authorization ', "tests/pipelines/serving/test_http.py -k no_client_steers"),
    Mutant("a file deploys without the checks of uploads", "pipelines/deploy.py",
           "if os.environ.get(name) != value:", "if False:", "tests/pipelines/test_deploy.py"),
    Mutant("a file deploys jobs that its next update drops", "pipelines/deploy.py",
           "if config.serve.max_jobs and not config.serve.jobs_folder:", "if False:", "tests/pipelines/test_deploy.py -k mistake"),
    Mutant("a file deploys to a port of another program", "pipelines/serve.py",
           ' and "x-request-id" in answer.headers', '', "tests/pipelines/test_deploy.py"),
    Mutant("a file's settings of frames are ignored", "pipelines/deploy.py",
           'if f"ingest.{name}" in args}', 'if f"ingest.{name}" in ()}', "tests/pipelines/test_deploy.py"),
    Mutant("an update ends the old replicas first", "pipelines/serve.py",
           '"max_surge_percent": c.max_surge_percent,', '"max_surge_percent": 0,', "tests/pipelines/test_deploy.py"),
    # --- several models, and replicas under load
    Mutant("a video is decoded for the default model", "pipelines/serving/backend.py",
           "return self.others.get(chosen(), self.frames)", "return self.frames", "tests/pipelines/serving/test_models.py -k decoded"),
    Mutant("any name of a model passes", "pipelines/serving/choice.py",
           "if name not in self.names():", "if False:", "tests/pipelines/serving/test_models.py -k 'refused or split'"),
    Mutant("the canary takes who it likes", "pipelines/serving/choice.py",
           "hashlib.sha256(key.encode())", "hashlib.sha256(str(id(object())).encode() + __import__('os').urandom(8))", "tests/pipelines/serving/test_models.py -k canary"),
    Mutant("one model loads after the other", "pipelines/serving/model.py",
           "with ThreadPoolExecutor(at_once + 1) as threads:", "with ThreadPoolExecutor(1) as threads:", "tests/pipelines/serving/test_models.py -k side_by_side"),
    Mutant("a load ends with who asked for it", "pipelines/serving/model.py",
           "await asyncio.shield(loading)", "await loading", "tests/pipelines/serving/test_models.py -k not_lost"),
    Mutant("the first model answers a mixed batch", "pipelines/serving/batching.py",
           "if one.key is key]", "]", "tests/pipelines/serving/test_batching.py -k one_key"),
    Mutant("a batch is as large as it likes", "pipelines/serving/batching.py",
           "[: self._max_size]", "", "tests/pipelines/serving/test_batching.py -k next_batch"),
    Mutant("one client waits for others", "pipelines/serving/batching.py",
           "while len(self._waiting) < self._last_size:", "while len(self._waiting) <= self._last_size:", "tests/pipelines/serving/test_batching.py -k nobody"),
    Mutant("nobody waits for others", "pipelines/serving/batching.py",
           "while len(self._waiting) < self._last_size:", "while False:", "tests/pipelines/serving/test_batching.py -k nobody"),
    Mutant("a push sent again ends another's batch", "pipelines/serving/session_store.py",
           "{r.session_id for r in requests})", "{r.session_id for _, r in fresh})", "tests/pipelines/serving/test_sessions.py -k counts_twice"),
    Mutant("an upload sent again is a second job", "pipelines/serving/job_routes.py",
           "job_id=request.headers[FRONT_HEADER],", "job_id=__import__('secrets').token_hex(16),", "tests/pipelines/serving/test_jobs.py -k sends_again"),
    Mutant("any program with TLS is our proxy", "pipelines/deploy.py",
           'return answers_as_front(config, verify=False)', "return True", "tests/pipelines/test_deploy.py -k nobody_can_reach"),
    Mutant("a fork outlives its decoder for ever", "pipelines/serving/child.py",
           "with suppress(ProcessLookupError):", "if self._process.poll() is None:", "tests/pipelines/serving/test_uploads.py -k outlives --timeout 20"),
    Mutant("a batch computes for who has gone", "pipelines/serving/batching.py",
           "if not one.answer.done()]", "]", "tests/pipelines/serving/test_batching.py -k gone"),
    Mutant("a permission to send a body never ends", "pipelines/serving/front.py",
           "and now_s < known.until_s:", ":", "tests/pipelines/serving/test_http.py -k permission"),
    Mutant("one client's permission is another's", "pipelines/serving/front.py",
           "if name in _WHO_ASKS)\n        if (known", "if name == b'host')\n        if (known", "tests/pipelines/serving/test_http.py -k permission"),
    Mutant("adapters take the weights of another model", "robometer/models/sharing.py",
           "or not _equal(parameter, twin):", "or parameter.shape != twin.shape:", "tests/models/test_lora.py -k share"),
    Mutant("latency starts replicas where nobody waits", "pipelines/serving/scaling.py",
           "and context.total_num_requests > running)", ")", "tests/pipelines/serving/test_models.py -k follow"),
    Mutant("a model scores frames that were made for another", "pipelines/serving/model.py",
           "if frames_tag != self._frames_tag:", "if False:", "tests/pipelines/serving/test_models.py -k made_for"),
    Mutant("the proxy takes an old replica's word for it", "pipelines/serving/front.py",
           " and AGAIN_HEADER.encode() not in names", "", "tests/pipelines/serving/test_http.py -k other_version"),
    Mutant("the guard forgets the replicas to come", "pipelines/serve.py",
           "c.max_batch_size * c.most_replicas", "c.max_batch_size * c.replicas", "tests/pipelines/serving/test_models.py -k admits"),
    # --- jobs
    Mutant("any token reads a job", "pipelines/serving/job_runner.py",
           "if job is not None and job.owner == owner else None", "if job is not None else None", "tests/pipelines/serving/test_jobs.py -k owner"),
    Mutant("a job that ran is not run again", "pipelines/serving/job_store.py",
           "is not None and not job.ended]", "is not None and job.state == QUEUED]", "tests/pipelines/serving/test_jobs.py -k goes_on"),
    Mutant("a job that kills its runner is run for ever", "pipelines/serving/job_runner.py",
           "if job.starts >= MAX_STARTS:", "if False:", "tests/pipelines/serving/test_jobs.py -k goes_on"),
    Mutant("two runners share a folder", "pipelines/serving/job_runner.py",
           "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH", "tests/pipelines/serving/test_jobs.py -k successor"),
    Mutant("a cancelled job goes on", "pipelines/serving/job_runner.py",
           "self._running[job_id].cancel()", "pass", "tests/pipelines/serving/test_jobs.py -k cancelled"),
    Mutant("a malformed body becomes a job", "pipelines/serving/job_routes.py",
           "await checks[asked.route](request)", "pass", "tests/pipelines/serving/test_jobs.py -k malformed"),
    Mutant("a URL that may not be fetched becomes a job", "pipelines/serving/bodies.py",
           'if self.kind == "url":\n            decoders.check_url', 'if self.kind == "never":\n            decoders.check_url', "tests/pipelines/serving/test_jobs.py -k malformed"),
    Mutant("a job forgets which model it is for", "pipelines/serving/job_routes.py",
           '"content-encoding", MODEL_HEADER)', '"content-encoding")', "tests/pipelines/serving/test_jobs.py -k names"),
    Mutant("a job that has just ended makes room", "pipelines/serving/job_store.py",
           "if ended_s + KEPT_S <= self.clock()]", "if ended_s <= self.clock()]", "tests/pipelines/serving/test_jobs.py -k ended_first"),
    Mutant("a token keeps as many jobs as it likes", "pipelines/serving/job_routes.py",
           "submit(asked, await request.body(), limit)", "submit(asked, await request.body())", "tests/pipelines/serving/test_jobs.py -k a_token_keeps"),
    Mutant("jobs of others make room within a token's limit", "pipelines/serving/job_store.py",
           "(job := self.find(name)) and job.owner == owner]", "(job := self.find(name))]", "tests/pipelines/serving/test_jobs.py -k a_token_keeps"),
    Mutant("any job that has ended makes room", "pipelines/serving/job_store.py",
           "in sorted(ended) if ended_s", "in sorted(ended, reverse=True) if ended_s", "tests/pipelines/serving/test_jobs.py -k ended_first"),
    Mutant("jobs do not expire", "pipelines/serving/job_store.py",
           "job.ended_s + self.ttl_s <= self.clock()", "job.ended_s < 0", "tests/pipelines/serving/test_jobs.py -k expire"),
    Mutant("an overloaded model fails a job", "pipelines/serving/job_runner.py",
           "if status != 503:", "if True:", "tests/pipelines/serving/test_jobs.py -k tried_again"),
    # --- the routes of the public server
    Mutant("samples are sorted as text", "pipelines/serving/samples.py",
           "sorted((int(match[1]), name) for name", "sorted((match[1], name) for name", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a gap between samples is not seen", "pipelines/serving/samples.py",
           "if [number for number, _ in numbers] != list(range(len(numbers))):", "if False:", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a list of numbers may have holes", "pipelines/serving/number_lists.py",
           "len(values) == count == len(_edges(bare)[0])", "len(values) == len(_edges(bare)[0])", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a number in two pieces is two numbers", "pipelines/serving/number_lists.py",
           "len(values) == count == len(_edges(bare)[0])", "len(values) == count", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("rows of different lengths are an array", "pipelines/serving/number_lists.py",
           "if shape is not None and _is_of(skeleton, shape):", "if shape is not None:", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("numbers above 255 wrap around", "pipelines/serving/number_lists.py",
           "return None if values.max(initial=0) > 255 else", "return", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("one request takes all places of the model", "pipelines/serving/shares.py",
           "async with own:", "if True:", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a request of many clips may take all memory for frames", "pipelines/serving/decoding.py",
           "decoded.frames.nbytes > self.max_bytes_of_many:", "decoded.frames.nbytes > self._max_held_bytes:", "tests/pipelines/serving/test_many.py"),
    Mutant("a clip of many that cannot be scored now is no error of its own", "pipelines/serving/many.py",
           "if len(failures) == count and all(", "if any(", "tests/pipelines/serving/test_many.py"),
    Mutant("pairs are asked in one order", "pipelines/serving/tournament.py",
           "(asked + 1 - asked.T) / 2", "asked", "tests/pipelines/serving/test_tournament.py"),
    Mutant("clips that are compared may take all memory for frames", "pipelines/serving/tournament.py",
           "if bytes_left < 0:", "if False:", "tests/pipelines/serving/test_tournament.py"),
    Mutant("a clip that always wins is infinitely strong", "robometer/evaluation/bradley_terry.py",
           "sum(axis=1) + prior_games / 2", "sum(axis=1)", "tests/evaluation/test_bradley_terry.py"),
    Mutant("a path of the allow-list allows what begins alike", "robometer/configs/allow_list.py",
           "url.path.startswith(f\"{self.path.rstrip('/')}/\")", "url.path.startswith(self.path)", "tests/configs/test_allow_list.py"),
    Mutant("a path may climb out of what is allowed", "robometer/configs/allow_list.py",
           'or {".", ".."} & set(unquote(path).split("/"))', "", "tests/configs/test_allow_list.py"),
    Mutant("an allowed name may lead inside", "pipelines/serving/fetching.py",
           "not all(is_public(ip)", "not any(is_public(ip)", "tests/pipelines/serving/test_fetching.py"),
    Mutant("the connection resolves the name again", "pipelines/serving/fetching.py",
           "host=ip, port=", "host=address.host, port=", "tests/pipelines/serving/test_fetching.py"),
    Mutant("a certificate of any name will do", "pipelines/serving/fetching.py",
           '"sni_hostname": address.host', '"sni_hostname": "data.example.org"', "tests/pipelines/serving/test_fetching.py"),
    Mutant("what is fetched may have any size", "pipelines/serving/fetching.py",
           "too_large = len(body) > self._max_bytes", "too_large = False", "tests/pipelines/serving/test_fetching.py"),
    Mutant("an address of IPv4 in IPv6 is public", "pipelines/serving/fetching.py",
           "return is_public(str(address.ipv4_mapped))", "return True", "tests/pipelines/serving/test_fetching.py"),
    Mutant("a client takes a clip that failed for a score", "robometer/many_calls.py",
           'if "error" in clip else None', "if False else None", "tests/test_many_calls.py"),
    Mutant("a client sends texts alone as no form", "robometer/calls.py",
           '{"files": {**texts, **files}}', '{"data": call.fields, "files": files}', "tests/test_many_calls.py"),
    Mutant("an example of OpenAPI is refused", "pipelines/serving/schemas.py",
           'clips = {"frames_base64_0": _TWO_FRAMES,', 'clips = {"frames_base64": _TWO_FRAMES,', "tests/pipelines/serving/test_openapi.py"),
    Mutant("clips of two models are mixed", "pipelines/serving/many.py",
           "if len(models) > 1:", "if False:", "tests/pipelines/serving/test_many.py"),
    Mutant("an update is the fault of one clip", "pipelines/serving/many.py",
           "if AGAIN_HEADER in error.headers:", "if False:", "tests/pipelines/serving/test_many.py"),
    Mutant("clips of one reward are ordered by their numbers alone", "pipelines/serving/many.py",
           "-float(result.score.success.mean()), number)", "number)", "tests/pipelines/serving/test_many.py"),
    Mutant("frames per second are taken by their numbers, not their times", "robometer/frames/timeline.py",
           "times = _seconds(source, first, count)\n", "times = None\n", "tests/pipelines/serving/test_options.py -k second"),
    Mutant("more frames per second than there are are the ones there are", "robometer/frames/timeline.py",
           "if wanted > 1.02 * count:", "if False:", "tests/pipelines/serving/test_options.py -k second"),
    Mutant("a client may ask for any number of prefixes", "pipelines/serving/options.py",
           "if num_frames > MAX_PREFIX_FRAMES:", "if False:", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("the end of a part is in it", "pipelines/serving/decoder.py",
           "None if job.end is None else int(job.end)", "None if job.end is None else int(job.end) + 1",
           "tests/pipelines/serving/test_options.py"),
    Mutant("frames of a part are numbered from 0", "pipelines/serving/decoder.py",
           "frame_index=video.frame_index + first", "frame_index=video.frame_index",
           "tests/pipelines/serving/test_options.py"),
    Mutant("each prefix has one frame too many", "robometer/scoring.py",
           "clip.up_to(p + 1) for p in needed", "clip.up_to(p + 2) for p in needed",
           "tests/models/test_rewind.py tests/test_scoring.py"),
    Mutant("old tasks are kept for ever", "robometer/models/rewind_scorer.py",
           "- self._known_tasks - MAX_TASKS, 0)", "- self._known_tasks - 10 * MAX_TASKS, 0)", "tests/models/test_rewind.py"),
    Mutant("tasks of the corpus are forgotten", "robometer/models/rewind_scorer.py",
           "islice(self._task_cache, self._known_tasks, self._known_tasks + surplus)", "islice(self._task_cache, surplus)",
           "tests/models/test_rewind.py"),
    Mutant("colours from 0 to 1 become black", "pipelines/serving/samples.py",
           "is_share = not is_whole and high <= 1", "is_share = False", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("colours are cut off, not rounded", "pipelines/serving/samples.py",
           "np.rint(values * 255.0 if is_share else values)", "np.floor(values * 255.0 if is_share else values)", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("negative colours wrap around", "pipelines/serving/samples.py",
           "not (low >= 0 and high <= 255)", "not (high <= 255)", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("the rejected clip is taken for the chosen one", "pipelines/serving/samples.py",
           "else (clips[0], clips[1])", "else (clips[1], clips[0])", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a stated shape may be wrong", "pipelines/serving/samples.py",
           "stated[:3] != list(frames.shape[:3])", "stated[3:] != [3]", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("an array without .npy in its name is read", "pipelines/serving/samples.py",
           'or not part.filename.endswith(".npy")', "", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("embeddings that are not finite are scored", "pipelines/serving/samples.py",
           "if not np.isfinite(features).all():", "if np.isnan(features).any():", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("arrays in Fortran order are read in C order", "pipelines/serving/npy.py",
           'order="F" if header.fortran_order else "C"', 'order="C"', "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("arrays of other types have one byte per number", "pipelines/serving/npy.py",
           "math.prod(header.shape) * header.dtype.itemsize", "math.prod(header.shape)", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("the flag is ignored", "pipelines/serving/evaluate_batch.py",
           "ScoreRequest(sample, mode)", "ScoreRequest(sample)", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a draw is a win", "pipelines/serving/evaluate_batch.py",
           "int(probability > 0.5)", "int(probability >= 0.5)", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("a failure does not name its sample", "pipelines/serving/evaluate_batch.py",
           'outcome.error and f"in sample_{position} {outcome.error}"', "outcome.error", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("JSON of any size is parsed", "pipelines/serving/text.py",
           "if min(marks_left, escapes_left, letters_left) < 0:", "if min(escapes_left, letters_left) < 0:", "tests/pipelines/serving/test_evaluate_batch.py"),
    Mutant("prefixes are scored as whole clips", "pipelines/serving/answerer.py",
           "score_prefixes(scorer, [request.clip for request in requests])", "scorer.score([request.clip for request in requests])",
           "tests/pipelines/serving/test_model.py"),
    Mutant("whole clips and prefixes share a batch", "pipelines/serving/answerer.py",
           "if request.positions else request.mode]", "if request.positions else \"whole\"]", "tests/pipelines/serving/test_model.py"),
    # --- gRPC
    Mutant("frames that were not asked for are scored", "robometer/scoring.py",
           "    if len(needed) <= whole - (scorer.info.max_frames or 0) and", "    if False and", "tests/test_scoring.py"),
    Mutant("every position is answered", "pipelines/serving/relabel.py",
           'ScoreRequest(clip, "prefix", asked.positions)', 'ScoreRequest(clip, "prefix")', "tests/pipelines/serving/test_relabel.py"),
    Mutant("frames before the stage are shown", "pipelines/serving/relabel.py",
           "shown = slice(top.first,", "shown = slice(0,", "tests/pipelines/serving/test_relabel.py"),
    Mutant("the first picture of a stack is shown", "pipelines/serving/relabel.py",
           "return values[-1] if", "return values[0] if", "tests/pipelines/serving/test_relabel.py"),
    Mutant("a message may have any number of fields", "pipelines/serving/wire.py",
           "if self._fields_left < 0:", "if False:", "tests/pipelines/serving/test_relabel.py"),
    Mutant("what a client cancels goes on", "pipelines/serving/grpc_calls.py",
           "            await _ended(task, 0 if exchange.is_reading else _GRACE_S)\n", "", "tests/pipelines/serving/test_relabel.py"),
    Mutant("gRPC listens at every address", "pipelines/serving/grpc_server.py",
           'here = _address(self._settings.host, int(address.rpartition(":")[2]))', "here = address",
           "tests/pipelines/serving/test_relabel.py"),
    Mutant("gRPC sends no token on", "pipelines/serving/grpc_calls.py",
           'names = ("authorization", ', 'names = (', "tests/pipelines/serving/test_relabel.py"),
    Mutant("any number of streams may be open", "pipelines/serving/grpc_calls.py",
           "        self._open_streams += 1\n", "", "tests/pipelines/serving/test_relabel.py"),
    Mutant("bad input ends a stream", "pipelines/serving/grpc_calls.py",
           "_BAD_INPUT = 422", "_BAD_INPUT = 0", "tests/pipelines/serving/test_relabel.py"),
    # --- sessions
    Mutant("a session shows one frame too few", "robometer/frames/window.py",
           "+ 1 > max(max_frames, 2)", "+ 1 >= max(max_frames, 2)", "tests/frames/test_window.py"),
    Mutant("a window keeps the wrong frames", "robometer/frames/window.py",
           "return self.pushed % self.stride == 0", "return (self.pushed + 1) % self.stride == 0", "tests/frames/test_window.py"),
    Mutant("a session keeps the buffer of its caller", "robometer/sessions.py",
           "Clip(frame[None].copy(), self.task)", "Clip(frame[None], self.task)", "tests/test_sessions.py -k buffer"),
    Mutant("a session of ReWiND looks at one frame too few", "robometer/models/rewind_last.py",
           "len(member.transformer.layers) + 1 for", "len(member.transformer.layers) for", "tests/test_sessions.py -k rewind"),
    Mutant("keys of frames that were dropped are kept", "robometer/models/continuing.py",
           "if self.window.make_room():\n            self._past = None", "self.window.make_room()", "tests/test_sessions.py -k vision"),
    Mutant("the newest frame's keys are always kept", "robometer/models/continuing.py",
           "end = ends[-2]", "end = ends[-1]", "tests/test_sessions.py -k 'vision or tokens'"),
    Mutant("tokens that follow others start at the first position", "robometer/models/continuing.py",
           "prompted.positions[:, place]", "prompted.positions[:, place - start]", "tests/test_sessions.py -k vision"),
    Mutant("answers of a batch of sessions are swapped", "robometer/models/robometer_scorer.py",
           "for i in last], grown", "for i in last[::-1]], grown", "tests/test_sessions.py -k share_a_batch"),
    Mutant("a session goes on in another order", "robometer/sessions.py",
           "session.window.restore(whole, looks[:whole])", "session.window.restore(whole, looks[:whole][::-1])", "tests/test_sessions.py -k vision"),
    Mutant("a push that is sent twice counts twice", "pipelines/serving/session_store.py",
           "or request.index == held.pushes - 1)", ")", "tests/pipelines/serving/test_sessions.py -k twice"),
    Mutant("an open that is sent again opens a second session", "robometer/remote_session.py",
           '"key": self._key, **continued', "**continued", "tests/pipelines/serving/test_sessions.py -k answer_is_lost"),
    Mutant("a key opens the session of another reference", "pipelines/serving/session_bodies.py",
           "digest.update(np.ascontiguousarray(array).data)", "pass", "tests/pipelines/serving/test_sessions.py -k its_key"),
    Mutant("room for frames is made after they are pushed", "pipelines/serving/session_store.py",
           "self._free(sum(_added_bytes(held, request) for held, request in fresh), ", "self._free(0, ", "tests/pipelines/serving/test_sessions.py -k room_for_frames"),
    Mutant("a window that drops frames is said to grow", "robometer/frames/window.py",
           "return self.keeps_next and stride_of(self.pushed + 1, self.max_frames) == self.stride", "return self.keeps_next", "tests/test_sessions.py -k known_before"),
    Mutant("a token opens as many sessions as it likes", "pipelines/serving/session_bodies.py",
           "most=client.limits.session_trajectories", "most=None", "tests/pipelines/serving/test_sessions.py -k both_interfaces"),
    Mutant("a session is everybody's", "pipelines/serving/session_store.py",
           "if held is None or held.owner != owner:", "if held is None:", "tests/pipelines/serving/test_sessions.py -k owners"),
    Mutant("idle sessions stay", "pipelines/serving/session_store.py",
           "if held is not None and held.used_s <", "if held is not None and 9e9 <", "tests/pipelines/serving/test_sessions.py -k idle"),
    Mutant("the reference is compared with the trajectory", "pipelines/serving/session_store.py",
           "pairs = [(session.clip(), h.reference)", "pairs = [(h.reference, session.clip())", "tests/pipelines/serving/test_sessions.py -k compared"),
    Mutant("pushes to one session in any order", "pipelines/serving/answerer.py",
           "in reversed(waiting.items())}", "in waiting.items()}", "tests/pipelines/serving/test_sessions.py -k order"),
    Mutant("calls of one request wait for ever", "pipelines/serving/session_router.py",
           "def _get_pending_request_matching_internal_request_id(", "def _unused(", "tests/pipelines/test_serve.py -k many_clips"),
    Mutant("an upload counts twice", "pipelines/serving/guard.py",
           "if (record.route, answer.status) != (ADMIT, 200):", "if True:", "tests/pipelines/serving/test_audit.py -k one_line_whoever"),
    Mutant("a GET may wait for ever", "pipelines/serving/guard.py",
           "return await self._within_time(scope, receive, send)", "return await self._app(scope, receive, send)", "tests/pipelines/serving/test_sessions.py -k hangs"),
    Mutant("a refused socket is not told why", "pipelines/serving/handshake.py",
           "    await socket.send_json(problem(error, request_id))", "", "tests/pipelines/serving/test_sessions.py -k handshake"),
    Mutant("any page may open a session", "pipelines/serving/guard.py",
           "if is_foreign(headers", "if not is_foreign(headers", "tests/pipelines/serving/test_sessions.py -k page"),
    Mutant("a lost session goes on without its trajectories' new starts", "robometer/remote_session.py",
           "self._windows[i] = Window(self._windows[i].max_frames)", "pass", "tests/pipelines/serving/test_sessions.py -k survives"),
    Mutant("a lost session starts anew", "robometer/remote_session.py",
           '"pushed": [window.pushed for window in self._windows]} if held else {}', '"pushed": []} if held else {}',
           "tests/pipelines/serving/test_sessions.py -k survives"),
    # --- tracking, sweep, parity
    Mutant("a run that failed is finished", "robometer/runs/tracking.py",
           'client.set_terminated(run_id, "FAILED")', 'client.set_terminated(run_id, "FINISHED")', "tests/runs/test_tracking.py"),
    Mutant("the worst trial wins", "pipelines/sweep.py",
           "reverse=not smallest", "reverse=smallest", "tests/pipelines/test_sweep.py -k failed_trials"),
    Mutant("a trial's worst validation counts", "pipelines/sweep.py",
           "idxmin() if smallest else", "idxmin() if not smallest else", "tests/pipelines/test_sweep.py -k failed_trials"),
    Mutant("a failed trial may win", "pipelines/sweep.py",
           'good = [row for row in rows if not row["error"]]', "good = rows", "tests/pipelines/test_sweep.py -k failed_trials"),
    Mutant("a sweep that lost trials ends well", "pipelines/sweep.py",
           "if lost := sum(result.error is not None", "if lost := sum(result.error is None and False",
           "tests/pipelines/test_sweep.py -k failed_trials"),
    Mutant("a trial whose node is lost is given up", "pipelines/sweep.py",
           "max_failures=train.max_failures", "max_failures=0",
           "tests/pipelines/test_node_kills.py -m slow -k sweep"),
    Mutant("views of an episode are parted by validation", "robometer/training/validation_split.py",
           'episodes = rows.drop_duplicates(["source", "episode_key"]).copy()', "episodes = rows.copy()",
           "tests/training/test_validation_split.py"),
    Mutant("a single episode is kept back", "robometer/training/validation_split.py",
           "(size > 1) & (place", "(size > 0) & (place", "tests/training/test_validation_split.py"),
    Mutant("training draws what is kept back for validation", "robometer/training/validation_split.py",
           '    return Corpus(config.corpus.path, cut(corpus.manifest, config.sampling.split))', "    return corpus",
           "tests/training/test_validation_split.py"),
    Mutant("a metric that cannot be measured is found out at the end", "pipelines/train.py",
           "    if metric not in metrics:\n        splits", "    if False:\n        splits",
           "tests/pipelines/test_train.py -k no_validation"),
    Mutant("other micro-batches are not spoken of", "pipelines/train.py",
           "if before != now and (", "if False and (", "tests/pipelines/test_train.py -k other_micro_batches"),
    Mutant("no range of a setting is checked", "robometer/settings.py",
           "require(value is None or value in limits", "require(True or value in limits", "tests/configs/test_loading.py"),
    Mutant("the end of a range counts as inside", "robometer/settings.py",
           "self.above is None or value > self.above", "self.above is None or value >= self.above",
           "tests/configs/test_loading.py"),
    Mutant("a number may be infinite", "robometer/settings.py",
           "if isinstance(value, float) and not math.isfinite(value):", "if False:", "tests/configs/test_loading.py"),
    Mutant("an alias counts before a source's own cut-off", "robometer/sampling/targets.py",
           'names = (source, lists["aliases"].get(source, source))', 'names = (lists["aliases"].get(source, source), source)',
           "tests/sampling/test_targets.py"),
    Mutant("upstream's progress loss is the mean that was meant", "parity/upstream/losses.py",
           "progress_weight=config.progress_weight / frames", "progress_weight=config.progress_weight",
           "tests/parity/upstream/test_losses.py"),
    Mutant("upstream keeps the peak of a rewind", "parity/upstream/clips.py",
           "(start < middle and middle in positions)", "(start < middle)", "tests/parity/upstream/test_clips.py"),
    Mutant("parity passes numbers that are not there", "parity/difference.py",
           "return Row(case, what, math.inf, tolerance)", "return Row(case, what, 0.0, tolerance)", "tests/parity/test_difference.py"),
    # --- the page
    Mutant("an answer that nobody takes is not held", "pipelines/serving/front.py",
           "self._held_bytes += len(body)", "self._held_bytes += 0 * len(body)", "tests/pipelines/serving/test_frames.py"),
    Mutant("the page may run anything", "pipelines/serving/page_routes.py",
           "default-src 'self'; base-uri", "default-src *; base-uri", "tests/pipelines/serving/test_frames.py"),
    Mutant("a part of a video answers the whole", "pipelines/serving/frames.py",
           ".decode(options.cut, decoders)", ".decode(type(options.cut)(), decoders)", "tests/pipelines/serving/test_frames.py"),
    Mutant("an alarm does not wait for the hold time", "pipelines/serving/page/alarm.js",
           "held >= hold", "held >= 1", "tests/pipelines/serving/test_page.py"),
    Mutant("a retry goes on where it failed", "pipelines/serving/page/views.js",
           "...range(second - 1, first - 1, -1), ", "", "tests/pipelines/serving/test_page.py"),
    Mutant("the page names no model, so that a canary answers some requests", "pipelines/serving/page/api.js",
           'address.searchParams.set("model", modelName);', "", "tests/pipelines/serving/test_page.py"),
    Mutant("an onset is a frame late", "pipelines/serving/page/labels.js",
           "Number(i >= row.onset)", "Number(i > row.onset)", "tests/pipelines/serving/test_page.py"),
    Mutant("the better clip is labelled the worse one", "pipelines/serving/page/labelling.js",
           "const [high, low] = ordered(", "const [low, high] = ordered(", "tests/pipelines/serving/test_page.py"),
    Mutant("a streamed curve is shown when it is whole", "pipelines/serving/page/runs.js",
           "run.model = answer.model.name;\n    observe(run);", "run.model = answer.model.name;", "tests/pipelines/serving/test_page.py"),
    Mutant("frames after the cursor count as seen", "pipelines/serving/page/views.js",
           'mode === "prefix" ? moment + 1 : length', "length", "tests/pipelines/serving/test_page.py"),
)
# fmt: on


def main(words: Sequence[str]) -> int:
    """Plant every fault that `words` name, and print what became of it."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork has one thread, whatever a pool believes
    chosen = [m for m in MUTANTS if not words or any(word in m.name or word in m.file for word in words)]
    if stale := [m.name for m in MUTANTS if (ROOT / m.file).read_text().count(m.old) != 1]:
        print(f"these do not stand exactly once in their files any more: {', '.join(stale)}")
        return 2
    for name in PRELOADED:
        __import__(name)
    missed = []
    with _copy() as tree:
        for tests in sorted({m.tests for m in chosen}):
            if (found := run(tree, tests)) != "MISSED":
                print(f"{_log(tree).read_text()[-5000:]}\nwithout any fault {tests} fails", flush=True)
                return 2
        for mutant in chosen:
            started = time.monotonic()
            with planted(tree, mutant):
                found = run(tree, mutant.tests)
            print(f"{found:6} {mutant.name} ({mutant.file}): {time.monotonic() - started:.0f} s", flush=True)
            missed += [mutant.name] if found != "caught" else []
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught; missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


@contextmanager
def _copy() -> Iterator[Path]:
    """A copy of what git knows of the tree as it is, beside the same `shared`."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
        for name in map(os.fsdecode, filter(None, names)):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
        if (ROOT.parent / "shared").exists():
            (tree.parent / "shared").symlink_to((ROOT.parent / "shared").resolve())
        yield tree


@contextmanager
def planted(tree: Path, mutant: Mutant) -> Iterator[None]:
    """The fault in its file for the time of the block."""
    path = tree / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)


def run(tree: Path, tests: str) -> str:
    """`caught`, `MISSED`, or `broken` where pytest itself failed; the output is in a file beside the tree."""
    child = os.fork()
    if child == 0:
        _run_here(
            tree, ["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)], any(n in tests for n in STARTS_RAY)
        )
    end = time.monotonic() + TIMEOUT_S
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "caught"  # what never ends does not pass
        time.sleep(0.1)
    return {0: "MISSED", 1: "caught"}.get(os.waitstatus_to_exitcode(ended[1]), "broken")


def _log(tree: Path) -> Path:
    return tree.with_suffix(".log")


def _run_here(tree: Path, arguments: list[str], anew: bool) -> None:
    """Run pytest in this fork, with the tree's code and no other, and end it; `anew`: in a Python of its own."""
    os.setpgrp()
    os.chdir(tree)
    with _log(tree).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # What is compiled is known by its time in seconds, which a fault and its mending share.
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    if anew:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(place for place in sys.path if place not in ("", str(ROOT)))]
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("tests", "robometer", "pipelines", "jobs", "parity")
    ]:
        del sys.modules[name]
    import pytest

    status = 3
    try:
        status = int(pytest.main(arguments))
    finally:
        os._exit(status)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
