"""RoboArena: two external cameras of each policy of a session, graded by partial success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from robometer.corpus.formats import FormatError, list_units
from tests.corpus.formats.raw import ingest, roll_out, row_of, rows, shows


def _session(raw: Path, name: str, policies: dict[str, Any], task: object = "open the drawer") -> Path:
    session = raw / "evaluation_sessions" / name
    for i, (policy, facts) in enumerate(policies.items()):
        folder = session / f"{policy}_{facts.get('policy_name')}"
        folder.mkdir(parents=True)
        for j, view in enumerate(("left", "right", "wrist")):
            (folder / f"2025_{view}.mp4").write_bytes(roll_out(2 * i + j).mp4)
    (session / "metadata.yaml").write_text(yaml.safe_dump({"language_instruction": task, "policies": policies}))
    return session


def test_sessions(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    good = {"A": {"policy_name": "pi0", "partial_success": 1.0}, "B": {"policy_name": "dp", "partial_success": 0.4}}
    _session(raw, "one", good)
    bad = {
        "A": {"policy_name": "pi0", "partial_success": 1.5},
        "B": {"policy_name": "dp", "partial_success": float("nan")},
        "C": {"policy_name": "x"},
        "D": {"policy_name": "y", "partial_success": 1},
    }
    session = _session(raw, "two", bad)
    for video in (session / "D_y").iterdir():
        if "wrist" not in video.name:
            video.unlink()
    _session(raw, "three", {"A": good["A"]}, task=None)
    (_session(raw, "four", {"A": good["A"]}) / "metadata.yaml").write_text("!!python/object/apply:os.getcwd []")
    (_session(raw, "five", {"A": good["A"]}) / "metadata.yaml").unlink()
    (_session(raw, "six", {"A": good["A"]}) / "A_pi0" / "2025_right.mp4").write_bytes(roll_out(0).mp4[:3000])
    corpus = ingest(tmp_path, "roboarena")
    assert rows(corpus, "source", "episode_key", "view", "task", "quality_label", "partial_success", "is_robot") == [
        ("roboarena", "one/A_pi0", "left", "open the drawer", "successful", 1.0, True),
        ("roboarena", "one/A_pi0", "right", "open the drawer", "successful", 1.0, True),
        ("roboarena", "one/B_dp", "left", "open the drawer", "failure", pytest.approx(0.4), True),
        ("roboarena", "one/B_dp", "right", "open the drawer", "failure", pytest.approx(0.4), True),
        ("roboarena", "six/A_pi0", "left", "open the drawer", "successful", 1.0, True),
    ]
    assert shows(corpus, row_of(corpus, episode_key="one/B_dp", view="right"), roll_out(3).frames)
    refused = corpus.quarantine().to_pylist()
    assert {row["view"] for row in refused if row["stage"] == "skip"} == {"wrist"}
    errors = {row["episode_key"]: row["error"] for row in refused if row["stage"] != "skip"}
    assert errors["two/A"] == "policy A: partial_success 1.5 is not in [0, 1]"
    assert errors["two/B"] == "policy B: partial_success nan is not in [0, 1]"
    assert errors["two/C"] == "policy C: partial_success None is not in [0, 1]"
    assert errors["two/D"] == "policy D: it has no video of an external camera"
    assert errors["three/A"] == "policy A: no task text"
    assert "is malformed" in errors["four"] and errors["five"] == "the session has no metadata.yaml"
    assert errors["six/A_pi0"].startswith("the file cannot be decoded as a video") and len(errors) == 8
    _session(raw, "seven", {"A": good["A"]})
    assert len(ingest(tmp_path, "roboarena")) == 7


def test_no_session_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "evaluation_sessions" / "x").mkdir(parents=True)
    with pytest.raises(FormatError, match=r"no session folder with a metadata.yaml"):
        list(list_units("roboarena", str(tmp_path)))
