"""EgoCOT: arrays of frames with a plan in words; both orders of axes, and nothing unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_arrays(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "part" / "EgoCOT_clear").mkdir(parents=True)
    frames = [roll_out(i).frames[:8] for i in range(3)]
    arrays = {
        "part/EgoCOT_clear/a.npy": frames[0].transpose(0, 3, 1, 2),
        "part/b.npy": frames[1],
        "part/float.npy": frames[0].astype(np.float32),
        "part/flat.npy": frames[0][0],
        "part/pickled.npy": np.array([Trap(tmp_path / "unpickled")], dtype=object),
    }
    for name, array in arrays.items():
        np.save(raw / name, array)
    (raw / "part/short.npy").write_bytes((raw / "part/b.npy").read_bytes()[:5000])
    plan = "\n pick up the cup \n1. reach\n2. grasp"
    entries: list[object] = [{"image": "a.npy", "planing": plan}, {"image": "b.npy", "planning": "pour"}]
    others = ("float", "flat", "pickled", "short", "../x", "no")
    entries += [{"image": f"{name}.npy", "planing": "p"} for name in others]
    entries += [{"image": "a.npy", "planing": " \n "}, {"image": "a.npy", "planing": "twice"}, "a.npy"]
    (raw / "part" / "results.json").write_text(json.dumps({"data": entries}))
    corpus = ingest(tmp_path, "egocot")
    assert rows(corpus, "source", "episode_key", "view", "task", "quality_label", "is_robot", "source_num_frames") == [
        ("egocot", "part/EgoCOT_clear/a.npy", "ego", "pick up the cup", "successful", False, 8),
        ("egocot", "part/b.npy", "ego", "pour", "successful", False, 8),
    ]
    assert shows(corpus, row_of(corpus, task="pick up the cup"), frames[0])
    assert shows(corpus, row_of(corpus, task="pour"), frames[1])
    reasons = "\n".join(sorted(refusals(corpus).values()))
    for reason in (
        "the array is float32 [8, 160, 160, 3], not uint8",
        "the array is uint8 [160, 160, 3], not uint8",
        "the array cannot be read",
        "image '../x.npy' must be the path",
        "there is no file no.npy",
        "entry 9 of results.json is malformed: no 'task'",
        "duplicate: part/EgoCOT_clear/a.npy",
        "entry 11 of results.json is malformed: it is not an object",
    ):
        assert reason in reasons, reason
    assert reasons.count("the array cannot be read") == 2 and not (tmp_path / "unpickled").exists()
    (raw / "results.json").write_text(json.dumps([{"image": "c.npy", "planing": "wipe"}]))
    np.save(raw / "c.npy", frames[2])
    assert len(ingest(tmp_path, "egocot")) == 3


def test_what_is_no_egocot_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no results.json in"):
        list(list_units("egocot", str(tmp_path)))
    (tmp_path / "results.json").write_text('{"images": []}')
    with pytest.raises(FormatError, match="is not a list of annotations"):
        list(list_units("egocot", str(tmp_path)))
