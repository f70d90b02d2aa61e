"""The pages in docs/ run: their own format by its command, their lines of JSON, their calls of the endpoint."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.baselines.trivial import FrameDifference
from robometer.client import RemoteScorer
from robometer.configs import load
from robometer.corpus.corpus import Corpus
from robometer.corpus.formats import Unit, list_units, names
from robometer.frames import overridden, read_frames
from robometer.sampling.groups import members
from robometer.sampling.targets import source_facts
from robometer.scoring import Clip, ClipScore, score_prefixes
from robometer.sessions import score_as_session
from tests.corpus.formats.raw import roll_out, row_of, rows, shows
from tests.local_endpoint import endpoint

ROOT = Path(__file__).resolve().parents[2]
RBM_1M = ("rbm-1m-id", "rbm-1m-id-eval", "rbm-1m-ood")


def blocks(page: str, language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


VIDEO = ROOT / "robometer/data/metaworld/videos/drawer-open-v3/failure-000.mp4"


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClipScore:
    """What the scorer behind the endpoint says of `clip.mp4`, which lies in the working folder."""
    shutil.copy(VIDEO, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    scorer = FrameDifference()
    frames = read_frames("clip.mp4", overridden(scorer.info.frames, {})).frames
    return scorer.score([Clip(frames, "open the drawer")])[0]


@pytest.mark.parametrize("page", ["serving.md", "../README.md"])
def test_the_python_example_prints_the_progress_of_a_video(
    page: str, expected: ClipScore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, *_ = blocks(page, "python")
    with endpoint(FrameDifference()) as url:
        exec(code.replace("http://127.0.0.1:8000", url), {})
    assert capsys.readouterr().out == f"{expected.progress}\n"


def test_the_example_of_the_public_protocol_gets_a_value_for_each_frame(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = [block for block in blocks("serving.md", "python") if "evaluate_batch_npy" in block]
    with endpoint(FrameDifference()) as url:
        exec(code.replace("http://127.0.0.1:8000", url), {})
    answer = ast.literal_eval(capsys.readouterr().out)
    assert [len(row) for row in answer["outputs_progress"]["progress_pred"]] == [4]
    assert [len(row) for row in answer["outputs_success"]["success_probs"]] == [4]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_of_sessions_push_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "frame.npy", frames[0])
    [code] = [block for block in blocks("serving.md", "python") if "open_session" in block]
    [command] = [block for block in blocks("serving.md", "bash") if "/v1/sessions" in block]
    with endpoint(FrameDifference()) as url:
        values: dict[str, Any] = {"frames": frames}
        exec(code.replace("http://127.0.0.1:8000", url), values)
        shell = "curl() { command curl -sf $@; }; set -e; " + command.replace("http://127.0.0.1:8000", url)
        run = subprocess.run(["bash", "-c", shell.replace("$@", '"$@"')], cwd=tmp_path, capture_output=True, text=True)
    assert values["progress"] == score_as_session(FrameDifference(), Clip(frames, "open the drawer")).progress[-1]
    assert run.returncode == 0 and json.loads(run.stdout)["index"] == [0], run.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_examples_answer_the_progress_of_a_video_and_of_a_part_and_an_order(
    expected: ClipScore, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(VIDEO.with_name("failure-001.mp4"), "first.mp4")
    shutil.copy("clip.mp4", "second.mp4")
    whole, part, rank, *_ = [block for block in blocks("serving.md", "bash") if block.startswith("curl")]
    [python] = [block for block in blocks("serving.md", "python") if "rank_videos" in block]
    with endpoint(FrameDifference()) as url:
        answers = [
            json.loads(subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout)
            for line in (
                command.replace("curl", "curl -s", 1).replace("http://127.0.0.1:8000", url)
                for command in (whole, part, rank)
            )
        ]
        exec(python.replace("http://127.0.0.1:8000", url), {})
    np.testing.assert_array_equal(np.float32(answers[0]["progress"]), expected.progress)
    rewards = [clip["reward"] for clip in answers[2]["clips"]]
    assert rewards[1] == answers[0]["reward"] and answers[2]["order"] == sorted((0, 1), key=lambda i: -rewards[i])
    assert capsys.readouterr().out == f"{answers[2]['order']} {rewards}\n"
    assert answers[1]["mode"] == "prefix"
    assert answers[1]["frame_index"] == [i for i in answers[0]["frame_index"] if 0.2 <= i / answers[0]["fps"] < 1.0]


def test_the_example_of_a_job_prints_the_progress_of_every_prefix(
    expected: ClipScore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = [block for block in blocks("serving.md", "python") if "submit_video" in block]
    frames = read_frames("clip.mp4", overridden(FrameDifference().info.frames, {})).frames
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs") as url:
        exec(code.replace("http://127.0.0.1:8000", url), {})
    [prefixes] = score_prefixes(FrameDifference(), [Clip(frames, "open the drawer")])
    assert capsys.readouterr().out == f"{prefixes.progress}\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_examples_submit_a_job_and_read_it(expected: ClipScore, tmp_path: Path) -> None:
    [block] = [block for block in blocks("serving.md", "bash") if "/v1/jobs/score" in block]
    submit, state, result, delete = block.replace("curl", "curl -s").splitlines()
    with endpoint(FrameDifference(), jobs=tmp_path / "jobs") as url:

        def run(line: str, job_id: str = "") -> str:
            command = line.replace("http://127.0.0.1:8000", url).replace("/ID", f"/{job_id}")
            return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout

        [job_id] = re.findall(r"location: /v1/jobs/(\w+)", run(submit))
        with RemoteScorer(url) as remote:
            progress = remote.job(job_id).result(30).progress
        assert json.loads(run(state, job_id))["state"] == "succeeded"
        np.testing.assert_array_equal(np.float32(json.loads(run(result, job_id))["progress"]), progress)
        assert len(progress) == len(expected.progress)
        run(delete, job_id)
        assert json.loads(run(state, job_id))["status"] == 404


def test_the_example_of_an_own_format_runs_by_its_command(tmp_path: Path) -> None:
    (code,) = blocks("bring_your_own_data.md", "python")
    (command,) = [block for block in blocks("bring_your_own_data.md", "bash") if "my_format" in block]
    (tmp_path / "my_format.py").write_text(code)
    (tmp_path / "arrays").mkdir()
    for i, quality in enumerate(("successful", "failure")):
        np.save(tmp_path / "arrays" / f"do_it_{i}.{quality}.npy", roll_out(i, quality).frames)
    paths = os.pathsep.join((".", str(ROOT)))
    line = command.replace("PYTHONPATH=. robometer ingest", f"{sys.executable} -m jobs.ingest")
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    corpus = Corpus(str(tmp_path / "outputs" / "corpus"))
    assert rows(corpus, "source", "task", "quality_label", "view") == [
        ("my_robot", "do it 0", "successful", "front"),
        ("my_robot", "do it 1", "failure", "front"),
    ]
    assert shows(corpus, row_of(corpus, task="do it 0"), roll_out(0).frames)


def test_the_lines_of_json_are_valid(tmp_path: Path) -> None:
    for block in blocks("bring_your_own_data.md", "json"):
        (tmp_path / "trajectories.jsonl").write_text(block)
        found = list(list_units("mp4_jsonl", str(tmp_path)))
        assert len(found) == len(json.loads(f"[{','.join(block.splitlines())}]"))
        assert all(isinstance(entry, Unit) for entry in found)


def test_the_table_of_data_sets_says_what_the_code_does() -> None:
    """Formats exist, cut-offs are those in use, and every member of a group of RBM-1M has its line."""
    lines = (ROOT / "docs" / "formats.md").read_text().splitlines()
    table = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in lines
        if re.match(r"\| `(?!ingest)", line)
    ]
    data_sets = {row[0]: row for row in table if len(row) == 6}
    formats = {format for row in table if len(row) == 2 for format in re.findall(r"\w+", row[0])}
    assert {row[1] for row in data_sets.values()} | formats == set(names())
    for name, (_, _, labels, cutoff, group, _) in data_sets.items():
        if not name.endswith("*"):
            facts = source_facts(name, 1.0)
            assert (f"{facts.cutoff:.2f}", facts.preference_only) == (cutoff, "preference only" in labels), name
        assert group == (", ".join(key for key in RBM_1M if name in members(key)) or "-"), name
    assert {member for key in RBM_1M for member in members(key)} <= data_sets.keys()


def test_the_settings_of_baselines_exist() -> None:
    settings = re.findall(r"\b(?:evaluate|baseline)\.\w+=[^\s`']+", (ROOT / "docs" / "baselines.md").read_text())
    assert len(settings) > 5
    for setting in settings:
        load([setting])


@pytest.mark.slow
def test_the_guide_to_fine_tuning_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every command of the page, in its order, in a folder that has the repository's data and nothing else."""
    (tmp_path / "robometer").symlink_to(ROOT / "robometer")
    script = "\n".join(block for block in blocks("fine_tuning.md", "bash") if "activate" not in block)
    script = re.sub(r"^robometer ", f"{sys.executable} -m jobs.cli ", script, flags=re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "outputs/tiny/published/README.md").is_file()
    assert (tmp_path / "outputs/tiny/curve.png").stat().st_size > 1000
