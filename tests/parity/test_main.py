"""`python -m parity`: every recorded case passes, a perturbed recording does not, mistakes are one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from parity.__main__ import main
from parity.recorded_set import RecordedSet
from parity.run import compare

Change = Callable[[Path], None]

WHAT = {
    "a_targets": {"progress targets", "targets of the pipeline", "padding mask", "decoded logits", "two-hot"},
    "b_losses": {"progress loss", "gradient of the success loss", "total loss", "gradient of pref_logits"},
    "d_rewind": {"output progress_B", "output pref", "gradient", "names and shapes of parameters"},
    "f_samplers": {"frames", "targets", "pair that our plan draws too", "pairs of different quality"},
    "g_video": {"frames at a rate", "pixels", "index of a corpus"},
    "h_prompts": {"text", "token ids", "id of a special token"},
    "i_training": {"parameters that decay", "learning rate", "gradient norm", "loss of a micro-batch", "final weights"},
}


@pytest.mark.parametrize("group", WHAT)
def test_every_recorded_case_of_a_group_passes(golden: Path, group: str) -> None:
    comparison = compare(RecordedSet(golden), [group])
    assert WHAT[group] <= {row.what for row in comparison.rows}
    assert {row.case.split("/")[0] for row in comparison.rows} == {group}
    assert not comparison.failed


def _json(name: str, change: Callable[[Any], None]) -> Change:
    def perturb(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return perturb


def _npz(name: str, array: str) -> Change:
    def perturb(folder: Path) -> None:
        arrays = dict(np.load(folder / name))
        arrays[array] = arrays[array] + np.float32(0.01)
        np.savez(folder / name, **arrays)

    return perturb


def _tensors(name: str, tensor: str) -> Change:
    def perturb(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensors[tensor] += 0.01
        save_file(tensors, folder / name)

    return perturb


def _shift(values: list[Any]) -> None:
    values[0] += 1


PERTURBED = {
    "a_targets": _json("progress_targets.json", lambda cases: _shift(cases[0]["value"])),
    "b_losses": _npz("total/0000.npz", "grad_pref_logits"),
    "d_rewind": _tensors("raw.io.safetensors", "preference.pref"),
    "f_samplers": _json(
        "samplers.json", lambda b: _shift(b[0]["train_samples"][0]["sample"]["trajectory"]["frame_ids"])
    ),
    "g_video": _json("video.json", lambda videos: _shift(videos[0]["extract"]["3.0"]["indices"])),
    "h_prompts": _json("prompts.json", lambda recorded: _shift(recorded["prompts"][0]["qwen_bpe_ids"])),
    "i_training": _json("cases.json", lambda runs: runs[0]["optimizer_steps"][1].update(lr=0.0004)),
}


@pytest.mark.parametrize("group", PERTURBED)
def test_a_perturbed_recording_fails_and_is_named(
    golden: Path, tmp_path: Path, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(golden / group, tmp_path / group)
    PERTURBED[group](tmp_path / group)
    assert main([str(tmp_path), "--data", str(golden.parent / "data"), "--only", group, "--show", "failed"]) == 1
    printed = capsys.readouterr().out
    assert " 1 failed; " in printed.splitlines()[-1] and "FAIL" in printed


def test_the_tables_say_what_was_compared_and_where_upstream_is_wrong(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_targets").symlink_to(golden / "a_targets")
    assert main([str(tmp_path)]) == 0
    summary = capsys.readouterr().out
    assert "where upstream is wrong" in summary and "FAIL" not in summary
    assert "b_losses: not compared, no such folder in this set" in summary
    assert main([str(tmp_path), "--show", "all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 100 * len(WHAT)


def test_a_group_that_breaks_off_is_a_failed_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a_targets").mkdir()
    assert main([str(tmp_path)]) == 1
    assert "broke off with FileNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no folder nowhere"),
        (["."], "has none of the folders a_targets"),
        ([".", "--only", "z_none"], "--only names z_none: the groups are a_targets"),
        ([".", "--only", "b_losses"], "has no folder b_losses"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "b_losses" in arguments:
        (tmp_path / "a_targets").mkdir()
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_where_the_tokenizer_lies_is_told_or_found_above_the_set(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "h_prompts").symlink_to(golden / "h_prompts")
    assert main([str(tmp_path / "set")]) == 1
    assert "No folder data/qwen3_vl_4b_instruct lies above" in capsys.readouterr().out
    assert main([str(tmp_path / "set"), "--data", str(tmp_path)]) == 1
    assert f"{tmp_path} has no folder qwen3_vl_4b_instruct" in capsys.readouterr().out
    (tmp_path / "data").symlink_to(golden.parent / "data")
    assert main([str(tmp_path / "set")]) == 0
