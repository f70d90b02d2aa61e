"""A plan: what it refuses, in which order it runs, and what counts as done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.pipeline import _settings_of
from pipelines import plan as plans
from pipelines.pipeline import state_table
from pipelines.plan import FAILED, RUNNING, SUCCEEDED, Plan, Record, Records, read_plan
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError

PLAN = """
output: {output}
settings: {{tracking.uri: none}}
stages:
  measured: evaluate {{tuned}}/best {{model}}/best --corpus {{corpus}} --output {{here}}
  tuned: sweep --corpus {{embedded}} --output {{here}}
  model: train --corpus {{embedded}} --output {{here}} train.steps={steps} train.num_workers={workers}
  embedded: embed --corpus {{corpus}}
  corpus: robometer ingest '{raw}' --corpus {{here}}
"""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "ra w"
    folder.mkdir()
    (folder / "trajectories.jsonl").write_text("{}")
    return folder


def written(folder: Path, text: str) -> Plan:
    (folder / "plan.yaml").write_text(text)
    return read_plan(str(folder / "plan.yaml"), _settings_of)


@pytest.fixture(params=["tmp_path", "bucket"])
def out(request: pytest.FixtureRequest) -> str:
    """The output of a plan, on a disk and in a bucket."""
    return f"{request.getfixturevalue(request.param)}/out"


def planned(folder: Path, raw: Path, out: str = "", steps: int = 3, workers: int = 1) -> Plan:
    return written(folder, PLAN.format(output=out or folder / "out", raw=raw, steps=steps, workers=workers))


def done(records: Records, name: str) -> None:
    """As if a stage had run."""
    stage = records.plan.stages[name]
    key = records.key(stage)
    assert key is not None
    records.write(name, Record(key, SUCCEEDED, records.line(stage), "2026-01-01 00:00:00", ended="2026-01-01 00:01:30"))
    if stage.has_output:
        Storage(records.place(stage)).write_bytes("made", name.encode())


@pytest.fixture
def corpus_hashes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Contents of corpora by path, in place of corpora on disk."""
    hashes = dict[str, str]()

    class Counted:
        def __init__(self, path: str) -> None:
            if path not in hashes:
                raise plans.CorpusError(path)
            self.content_hash = hashes[path]

        def __len__(self) -> int:
            return 1

    monkeypatch.setattr(plans, "Corpus", Counted)
    return hashes


def test_stages_run_in_the_order_of_what_they_name(tmp_path: Path, raw: Path) -> None:
    plan = planned(tmp_path, raw)
    order = list(plan.stages)
    assert order[:2] == ["corpus", "embedded"] and order[-1] == "measured" and set(order[2:4]) == {"model", "tuned"}
    assert plan.stages["measured"].needs == ("tuned", "model", "corpus")
    assert plan.stages["corpus"].words == ("ingest", str(raw), "--corpus", "{here}", "tracking.uri=none")
    assert plan.dependents("embedded") == [name for name in order if name in ("model", "tuned", "measured")]
    assert plan.dependents("measured") == []


def test_what_is_done_follows_from_its_inputs(
    tmp_path: Path, raw: Path, out: str, corpus_hashes: dict[str, str]
) -> None:
    plan = planned(tmp_path, raw, out)
    records = Records(plan)
    stages = plan.stages
    here = records.place(stages["corpus"])
    assert here.startswith(f"{out}/corpus-") and len(here) == len(f"{out}/corpus-") + 12
    assert records.line(stages["corpus"]) == ["ingest", str(raw), "--corpus", here, "tracking.uri=none"]
    assert records.key(stages["embedded"]) is None and not records.is_done(stages["corpus"])
    corpus_hashes[here] = "aaa"
    done(records, "corpus")
    assert records.is_done(stages["corpus"]) and records.identity(stages["corpus"]) == "aaa"
    done(records, "embedded")
    assert records.place(stages["embedded"]) == here, "it works on the corpus"
    done(records, "model")
    place = records.place(stages["model"])
    assert place == f"{out}/model-{records.key(stages['model'])[:12]}"  # type: ignore[index]
    assert records.line(stages["model"])[:5] == ["train", "--corpus", here, "--output", place]

    def model_is_done(plan: Plan) -> bool:
        return Records(plan).is_done(plan.stages["model"])

    assert model_is_done(planned(tmp_path, raw, out))
    assert model_is_done(planned(tmp_path, raw, out, workers=2)), "how it runs does not matter"
    assert not model_is_done(planned(tmp_path, raw, out, steps=4)), "what it computes does"
    assert model_is_done(planned(tmp_path, raw, out)), "and what was made before is found again"
    corpus_hashes[here] = "bbb"
    assert not model_is_done(planned(tmp_path, raw, out)), "the corpus has grown"
    corpus_hashes[here] = "aaa"
    (raw / "more.mp4").write_bytes(b"1")
    assert not Records(plan).is_done(stages["corpus"]) and not model_is_done(plan), "there are new raw files"
    assert Records(plan).place(stages["corpus"]) == here, "which are added to the corpus"
    other = written(tmp_path, (tmp_path / "plan.yaml").read_text().replace("ingest '", "ingest ingest.short_edge=64 '"))
    assert Records(other).place(other.stages["corpus"]) != here, "another line has a corpus of its own"


@pytest.mark.parametrize("state", [RUNNING, FAILED])
def test_a_stage_that_did_not_succeed_or_lost_its_output_is_not_done(
    state: str, tmp_path: Path, raw: Path, out: str, corpus_hashes: dict[str, str]
) -> None:
    plan = written(tmp_path, f"output: {out}\nstages:\n  model: train --output {{here}}\n")
    records, stage = Records(plan), plan.stages["model"]
    done(records, "model")
    assert records.is_done(stage)
    Storage(records.place(stage)).remove("made")
    assert not records.is_done(stage)
    done(records, "model")
    records.write("model", Record(records.key(stage) or "", state, [], "2026-01-01 00:00:00"))
    assert not records.is_done(stage)
    assert len(records.left_running("model")) == (state == RUNNING) and not records.left_running("mode")


def test_the_state_is_shown(tmp_path: Path, raw: Path, corpus_hashes: dict[str, str]) -> None:
    plan = planned(tmp_path, raw)
    records = Records(plan)
    corpus_hashes[records.place(plan.stages["corpus"])] = "aaa"
    for name in ("corpus", "embedded"):
        done(records, name)
    key = records.key(plan.stages["model"]) or ""
    records.write("model", Record(key, RUNNING, [], "2026-01-01 00:02:00", job="train-1"))
    lines = {line.split()[0]: line for line in state_table(plan).splitlines()}
    assert "done" in lines["corpus"] and "0:01:30" in lines["corpus"] and "out/corpus-" in lines["corpus"]
    assert "ran when last seen" in lines["model"] and "train-1" in lines["model"]
    assert "to do" in lines["tuned"] and "waits" in lines["measured"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("output: /o\nstages: {a: dance}", "'dance' is none of the stages"),
        (
            "output: /o\nstages: {a: train train.stepz=3}",
            "stage a: There is no setting train.stepz. Did you mean train.steps?",
        ),
        ("output: /o\nstages: {a: 'train --corpus {b}'}", "stage a names {b}, which is no stage"),
        ("output: /o\nstages: {a: 'train --corpus {a}'}", "stage a names itself. Its own output is {here}"),
        ("output: /o\nstages: {a: 'embed --corpus {b}', b: 'embed --corpus {a}'}", "these stages wait for one another"),
        ("output: /o\nstages: {a: 'train \"x'}", "close its quotes"),
        ("output: /o\nstages: {a: [train, --help]}", "would only print its help"),
        ("output: /o\nstages: {a: pipeline x.yaml}", "cannot be a pipeline"),
        ("output: /o\nstages: {here: train}", "'here' cannot name a stage"),
        ("output: /o\nstages: {A b: train}", "'A b' cannot name a stage"),
        ("output: /o\nstages: {a: 3}", "stage a must be a command line"),
        ("output: /o\nstages: {}", "stages must be names with their command lines"),
        ("stages: {a: train}", "output must be a folder"),
        ("output: s3:/bucket/o\nstages: {a: train}", "output=s3:/bucket/o is incomplete"),
        ("output: /o\nstages: {a: train}\nretry: 3", "'retry' is none of output, stages, settings, retries. Did you"),
        ("output: /o\nstages: {a: train}\nretries: often", "retries must be a whole number"),
        ("output: /o\nstages: {a: train}\nretries: -1", "retries must be a whole number, 0 or more"),
        ("output: /o\nstages: {a: train}\nretries: true", "retries must be a whole number, 0 or more"),
        ("output: /o\nstages:\n  a: train\n  a: sweep", "'a' is given twice"),
        ("output: /o\nstages: {a: simulate, b: 'report {a}'}", "stage b names {a}, which has no output"),
        ("output: /o\nstages: {a: 'train --output /run'}", "must write into its own output: write --output {here}"),
        ("output: /o\nstages: {a: 'evaluate models:/m@champion'}", "may be another model tomorrow"),
        ("output: /o\nstages: {a: 'evaluate http://host'}", "may be another model tomorrow"),
        ("output: /o\nstages: {a: 'train train.load_from_checkpoint=models:/m@b'}", "may be another model tomorrow"),
        ("output: /o\nstages: {a: train}\nsettings: {corpus.path: '{a}'}", "without places: write corpus.path into"),
        ("output: /o\nstages: {a: train}\nsettings: {sampling.source_weights: {lab: 2}}", "text, numbers or lists"),
        ("output: /o\nstages: {a: train}\nsettings: {train.stepz: 3}", "There is no setting train.stepz"),
        ("- a", "is no plan"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RobometerError, match=re.escape(sentence)) as raised:
        written(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_the_plan_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/pipeline.md").read_text()
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    plan = written(tmp_path, text)
    assert list(plan.stages)[:2] == ["corpus", "embedded"] and list(plan.stages)[-2:] == ["measured", "published"]
    assert plan.retries == 2 and plan.output.path == "/data/drawer"


def test_braces_that_name_no_stage_mean_themselves(tmp_path: Path) -> None:
    line = ["train", "--output", "{here}", "sampling.source_weights={lab: 2}", "tracking.run_name=${oc.env:HOME}"]
    stage = plans._stage("plan", "a", line, [])
    assert stage.filled({"here": "/x"}) == [*line[:2], "/x", *line[3:]] and stage.needs == ()


def test_a_stage_without_output_has_no_place(tmp_path: Path) -> None:
    def settings_of(line: Sequence[str]) -> object:
        return None

    (tmp_path / "plan.yaml").write_text("output: /o\nstages: {a: simulate}")
    plan = read_plan(str(tmp_path / "plan.yaml"), settings_of)  # type: ignore[arg-type]
    assert Records(plan).place(plan.stages["a"]) == "" and Records(plan).line(plan.stages["a"]) == ["simulate"]


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("evaluate {given}/best --output {{here}}", "file"),
        ("train --output {{here}} train.load_from_checkpoint={given}/best", "file"),
        ("publish {given}/best --mlflow a", "file"),
        ("train --output {{here}} 'train.seed=${{oc.env:SEED}}'", "variable"),
        ("train --output {{here}} 'tracking.run_name=${{oc.env:SEED}}'", "name"),
        ("publish {given}/best --mlflow a tracking.uri=sqlite:////a.db", "store"),
        ("evaluate models:/m/1 --output {{here}} tracking.uri=sqlite:////a.db", "store"),
    ],
)
def test_what_a_line_names_itself_counts(
    line: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best/model.safetensors").write_bytes(b"1")
    monkeypatch.setenv("SEED", "1")
    text = f"output: {tmp_path}/out\nstages:\n  a: {line.format(given=tmp_path)}\n"

    def key(text: str) -> str:
        plan = written(tmp_path, text)
        return Records(plan).key(plan.stages["a"]) or ""

    before = key(text)
    assert key(text) == before
    if change == "file":
        (tmp_path / "best/model.safetensors").write_bytes(b"22")
    if change in ("variable", "name"):
        monkeypatch.setenv("SEED", "2")
    after = key(text.replace("/a.db", "/b.db") if change == "store" else text)
    assert (after == before) == (change == "name"), "the name of a run changes nothing"


def test_an_ingest_into_a_corpus_of_another_one_is_done_when_it_is(
    tmp_path: Path, raw: Path, corpus_hashes: dict[str, str]
) -> None:
    first, second = f"ingest '{raw}' --corpus {{here}}", f"ingest '{raw}' --corpus {{a}} ingest.split=extra"
    plan = written(tmp_path, f"output: {tmp_path}/out\nstages:\n  a: {first}\n  b: {second}\n")
    records = Records(plan)
    place = records.place(plan.stages["a"])
    corpus_hashes[place] = "aaa"
    done(records, "a")
    done(records, "b")
    corpus_hashes[place] = "of both"
    again = Records(plan)
    assert again.is_done(plan.stages["a"]) and again.is_done(plan.stages["b"])
    assert again.identity(plan.stages["b"]) == "of both" and again.place(plan.stages["b"]) == place
