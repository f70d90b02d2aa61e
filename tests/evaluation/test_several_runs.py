"""Several runs on one page: leaderboard, paired differences, curves of the same clip, and files for other tools."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import report as job
from robometer.baselines.progress import ProgressScorer
from robometer.baselines.trivial import Clock, FrameDifference, Random
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.metrics import Estimate
from robometer.evaluation.plan import plan_split
from robometer.evaluation.predict import ClipSource, predict
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Metric, Result
from robometer.report import exports, tables
from robometer.report import page as report
from robometer.report.clips import clip_cards
from robometer.report.comparison import compare_runs
from robometer.report.published import anchor_tables, protocol
from robometer.report.runs import EvaluationRun, ReportError, load_runs
from tests.corpus.test_page import browse
from tests.evaluation.corpora import build_corpus
from tests.evaluation.pages import Tags

CONFIG = EvaluateConfig(scorer="a/model", bootstrap=20)
SCORERS: Mapping[str, ProgressScorer] = {"clock": Clock(), "difference": FrameDifference(), "random": Random()}


def store(folder: Path, name: str, scorer: ProgressScorer, on: Corpus, drop: int = 0, **facts: Any) -> str:
    """What `robometer evaluate` writes for a scorer, without Ray; `drop` clips are not scored."""
    units = [u for split in CONFIG.splits for u in plan_split(on, split, 1000, 5, 0, CONFIG.evaluations)]
    all_predictions = Predictions.of(predict(scorer, ClipSource.for_scorer(on, scorer), units, 16))
    missing = set(sorted({clip.id for clip in all_predictions.clips})[:drop])
    predictions = replace(all_predictions, clips=[clip for clip in all_predictions.clips if clip.id not in missing])
    provenance = {
        "model": name,
        "corpus": on.storage.path,
        "corpus_hash": on.content_hash,
        "mode": "whole clip",
    }
    provenance |= {"config": {"evaluate": asdict(CONFIG)}} | facts
    storage = Storage(str(folder))
    predictions.save(storage)
    storage.write_bytes("metrics.json", json.dumps({"provenance": provenance}).encode())
    return str(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("several") / "corpus")


@pytest.fixture(scope="module")
def folders(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("runs")
    return [store(root / name, name, scorer, corpus) for name, scorer in SCORERS.items()]


@pytest.fixture(scope="module")
def runs(folders: Sequence[str]) -> list[EvaluationRun]:
    return load_runs(folders)


@pytest.fixture(scope="module")
def output(folders: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    assert job.main([*folders, "--output", str(folder)]) == 0
    return folder


def test_settings_under_their_old_names_are_read(
    folders: Sequence[str], runs: Sequence[EvaluationRun], tmp_path: Path
) -> None:
    shutil.copytree(folders[0], tmp_path / "old")
    file = tmp_path / "old/metrics.json"
    file.write_text(file.read_text().replace('"scorer": "a/model"', '"checkpoint": "a/model"'))
    assert "checkpoint" in file.read_text()
    assert load_runs([str(tmp_path / "old")])[0].settings == runs[0].settings == CONFIG


def test_the_page_of_several_runs_is_whole_and_fetches_nothing(output: Path) -> None:
    html = (output / "report.html").read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.fetched == []
    words = re.findall(r">([^<]*)<", html)
    assert all(name in words for name in SCORERS)
    assert "NaN" not in html and "nan" not in words
    assert all(f'id="{name}"' in html for name in ("leaderboard", "differences", "reliability", "published"))


def test_only_a_difference_whose_interval_leaves_out_nought_is_bold(output: Path) -> None:
    html = (output / "report.html").read_text()
    differences = re.findall(r'class="value (clear|unclear)">([^<]*)</span><span class="detail nowrap">([^<]*)<', html)
    assert {kind for kind, _, _ in differences} == {"clear", "unclear"}
    for kind, _, interval in differences:
        if interval:
            low, high = (float(end.replace("−", "-")) for end in interval.split(" to "))
            assert 0 in (low, high) or (kind == "clear") == (low > 0 or high < 0)  # 0: as it is rounded


def test_every_clip_has_one_curve_per_model(runs: Sequence[EvaluationRun], corpus: Corpus) -> None:
    for group in clip_cards(runs, corpus, CONFIG.splits):
        for card in group["clips"]:
            curves = [s for s in card["series"] if s["kind"] == "model"]
            assert [s["name"] for s in curves] == list(SCORERS)
            assert len(card["data"]["series"]) == len(card["series"])
        why = " ".join(card["why"] for card in group["clips"])
        assert all(f"worst judged by {name}" in why for name in SCORERS) and "disagree most" in why


def test_the_clip_that_two_models_disagree_on_is_the_one_that_differs(
    runs: Sequence[EvaluationRun], corpus: Corpus
) -> None:
    first = runs[0]
    clips = first.predictions.clips
    odd = next(c.id for c in clips if c.split == "seen")
    moved = [replace(c, progress=np.zeros_like(c.progress)) if c.id == odd else c for c in clips]
    second = replace(first.on(replace(first.predictions, clips=moved)), name="other")
    cards = clip_cards([first, second], corpus, ["seen"])[0]["clips"]
    assert any(card["id"] == odd and "disagree most" in card["why"] for card in cards)


def test_the_best_of_a_column_is_marked_and_constants_are_not(runs: Sequence[EvaluationRun]) -> None:
    board = tables.leaderboards(runs)[0]
    names = [h.evaluation for h in board["headlines"]]
    best = {names[i]: {row["name"] for row in board["rows"] if row["cells"][i]["best"]} for i in range(len(names))}
    assert best["reward_alignment"] == {"clock"}
    assert best["policy_ranking"] == {"difference"}


def test_a_model_differs_from_itself_by_nothing(runs: Sequence[EvaluationRun]) -> None:
    first = runs[1]
    differences = compare_runs([first, replace(first, name="again")]).differences["again"]
    assert len(differences) > 60
    for (evaluation, _, name), difference in differences.items():
        if not math.isnan(difference.value):
            assert (difference.value, difference.low, difference.high) == (0, 0, 0) or difference.reason, (
                evaluation,
                name,
            )


def test_differences_are_over_the_clips_that_both_scored(
    corpus: Corpus, folders: Sequence[str], tmp_path: Path
) -> None:
    fewer = store(tmp_path / "fewer", "fewer", FrameDifference(), corpus, drop=4)
    runs = load_runs([folders[1], fewer])
    html = report.render(compare_runs(runs), None)
    assert re.search(r"On \w+, fewer scored \d+ clips and difference \d+", html)
    for difference in compare_runs(runs).differences["fewer"].values():
        assert math.isnan(difference.value) or difference.value == 0


def test_a_baseline_by_name_comes_first(folders: Sequence[str]) -> None:
    assert [run.name for run in load_runs(folders, "random")] == ["random", "clock", "difference"]
    with pytest.raises(ReportError, match="--reference='oracle' is none of clock"):
        load_runs(folders, "oracle")


def test_runs_of_one_model_are_told_apart_by_their_folders(corpus: Corpus, tmp_path: Path) -> None:
    both = [store(tmp_path / name, "clock", Clock(), corpus) for name in ("a", "b")]
    assert [run.name for run in load_runs(both)] == ["clock (a)", "clock (b)"]


def test_runs_over_other_corpora_are_refused_in_one_sentence(
    corpus: Corpus, folders: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = store(tmp_path / "other", "other", Clock(), corpus, corpus_hash="0000")
    assert job.main([folders[0], other, "--output", str(tmp_path / "page")]) == 2
    assert "another corpus" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_a_folder_without_an_evaluation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(tmp_path), "--output", str(tmp_path / "page")]) == 2
    assert "no predictions in" in capsys.readouterr().err


def test_a_corpus_that_is_gone_leaves_a_page_without_clips(corpus: Corpus, tmp_path: Path) -> None:
    run = store(tmp_path / "run", "clock", Clock(), corpus, corpus=str(tmp_path / "gone"))
    assert job.main([run, "--output", str(tmp_path / "page")]) == 0
    assert "there are no clips" in (tmp_path / "page/report.html").read_text()
    assert job.main([run, "--output", str(tmp_path / "page"), "--corpus", corpus.storage.path]) == 0
    assert "data:image/jpeg" in (tmp_path / "page/report.html").read_text()


def test_the_csv_has_every_metric_of_every_model_and_only_numbers(output: Path, runs: Sequence[EvaluationRun]) -> None:
    rows = list(csv.DictReader(io.StringIO((output / "report.csv").read_text()), strict=True))
    expected = [(run.name, r.split, r.evaluation, m.name) for run in runs for r in run.results for m in r.metrics]
    assert [(r["model"], r["split"], r["evaluation"], r["metric"]) for r in rows] == expected
    for row in rows:
        assert None not in row and None not in row.values()
        for name in ("value", "low", "high", "difference", "difference_low", "difference_high", "p"):
            assert row[name] == "" or math.isfinite(float(row[name]))
        assert (row["baseline"] == "clock") == (row["model"] != "clock")


def test_the_tables_of_markdown_and_latex_are_rectangular(output: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", (output / "report.md").read_text(), re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    latex = (output / "report.tex").read_text()
    tables = re.findall(r"\\begin{tabular}{(l?r*)}\n(.*?)\n  \\end{tabular}", latex, re.DOTALL)
    assert len(tables) == 4  # leaderboard and differences of two splits
    for columns, body in tables:
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 3 and all(len(re.split(r"(?<!\\)&", line)) == len(columns) for line in lines)


def test_hostile_names_are_text_in_every_file(corpus: Corpus, tmp_path: Path) -> None:
    name = "</script><b>a|b_c & 50% {x} \\ `y`"
    run = load_runs([store(tmp_path / "run", name, Clock(), corpus)])[0]
    comparison = compare_runs([run, replace(run, name="plain")])
    html = report.render(comparison, corpus)
    assert "<b>a" not in html and html.count("</script>") == html.count("<script")
    latex = exports.latex(comparison)
    assert r"a\textbar{}b\_c \& 50\% \{x\} \textbackslash{} `y`" in latex
    assert re.sub(r"\\[{}]", "", latex).count("{") == re.sub(r"\\[{}]", "", latex).count("}")
    assert r"\</script\>\<b\>a\|b\_c & 50% {x} \\ \`y\`" in exports.markdown(comparison)


def of_sources(run: EvaluationRun, sources: int) -> EvaluationRun:
    """The run with its tasks distributed over several data sources of at most five tasks."""
    index = {task: i for i, task in enumerate(sorted({clip.task for clip in run.predictions.clips}))}
    clips = [replace(clip, source=f"lab_{index[clip.task] % sources}") for clip in run.predictions.clips]
    return run.on(replace(run.predictions, clips=clips))


def test_each_source_has_the_interval_of_its_own_clips(runs: Sequence[EvaluationRun]) -> None:
    comparison = compare_runs([of_sources(run, 2) for run in runs[1:]])
    table = tables.source_tables(comparison)[0]
    column = [headline.main for headline in table["headlines"]].index("kendall_last")
    row = next(r for r in table["rows"] if (r["name"], r["source"]) == ("random", "lab_0"))
    alone = comparison.sources["random"]["lab_0"].metric("policy_ranking", table["split"], "kendall_last")
    assert alone is not None and alone.estimate.low < alone.estimate.value < alone.estimate.high
    ends = tables.interval(alone.estimate.low, alone.estimate.high)
    assert row["cells"][column]["interval"] == ends
    means = [r for r in table["rows"] if r["source"] == "mean over sources"]
    assert len(means) == 2 and not any(cell["interval"] for r in means for cell in r["cells"])
    html = report.render(comparison, None)
    sources = html[html.index('id="sources"') : html.index('id="strips"')]
    assert ends in sources and ends in exports.markdown(comparison)


def test_sources_are_resampled_no_more_often_than_is_quick(runs: Sequence[EvaluationRun]) -> None:
    thorough = of_sources(replace(runs[1], settings=replace(CONFIG, bootstrap=1000)), 2)
    quick = compare_runs([thorough]).sources["difference"]["lab_0"]
    assert {m.estimate.replicates.size for r in quick.results for m in r.metrics} <= {0, 200}
    none = of_sources(replace(runs[1], settings=replace(CONFIG, bootstrap=0)), 2)
    results = compare_runs([none]).sources["difference"]["lab_0"].results
    assert all(math.isnan(m.estimate.low) for r in results for m in r.metrics)


HOSTILE = {
    "a_b": r"a\_b", "50%": r"50\%", "a&b": r"a\&b", "#1": r"\#1", "~x": r"\textasciitilde{}x",
    "x^2": r"x\textasciicircum{}2", "a\\b": r"a\textbackslash{}b", "${x}": r"\$\{x\}", "τ": r"$\tau$",
    "1 ± 2": r"1 $\pm$ 2", "a→b": r"a$\rightarrow$b", "−1": "$-$1", "<x|y>": r"\textless{}x\textbar{}y\textgreater{}",
    "[best]": "{[}best{]}", "*": "{*}", "a\n\n b\x00c": "a b c", "Zoë": "Zoë",
}  # fmt: skip
"""Text, and how LaTeX is to be told it: `[` and `*` after the end of a row would be taken for its arguments, an empty
line in a caption or a control character is an error."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_latex_is_the_name(runs: Sequence[EvaluationRun], name: str) -> None:
    latex = exports.latex(compare_runs([replace(runs[0], name=name), runs[1]]))
    rows = [line.strip() for line in latex.splitlines() if line.endswith(r"\\")]
    assert any(row.startswith(f"metric & {HOSTILE[name]} & ") for row in rows)
    assert not any(row.startswith(("[", "*")) for row in rows)
    assert f"difference to {HOSTILE[name]}, its interval" in latex
    assert re.sub(r"\\[{}]", "", latex).count("{") == re.sub(r"\\[{}]", "", latex).count("}")


def test_all_that_the_latex_tables_say_of_themselves_is_ascii(output: Path) -> None:
    assert (output / "report.tex").read_text().isascii()


def test_n_and_effective_n_stand_beside_the_value_in_every_file(output: Path, runs: Sequence[EvaluationRun]) -> None:
    metric = runs[1].metric("policy_ranking", "seen", "kendall_last")
    assert metric is not None and tables.extent(metric) == "5 tasks (effective 5.0)"
    texts = {name: (output / name).read_text() for name in ("report.html", "report.md", "report.tex", "report.csv")}
    assert "n = 5 tasks (effective 5.0)" in texts["report.html"] and "uncertainty (Kish)" in texts["report.html"]
    assert r"n = 5 tasks (effective 5.0)" in texts["report.md"] and "uncertainty (Kish)" in texts["report.md"]
    assert (
        r"n = 5 tasks \\ \scriptsize (effective 5.0)" in texts["report.tex"]
        and "uncertainty (Kish)" in texts["report.tex"]
    )
    rows = list(csv.DictReader(io.StringIO(texts["report.csv"])))
    values = [
        r["effective_n"]
        for r in rows
        if (r["model"], r["split"], r["metric"]) == ("difference", "seen", "kendall_last")
    ]
    assert values == ["5.0"]


def test_an_evaluation_that_the_report_has_never_heard_of_is_shown(runs: Sequence[EvaluationRun]) -> None:
    def with_new(run: EvaluationRun, error: float) -> EvaluationRun:
        estimate = Estimate(error, error - 0.1, error + 0.1, 9, "trajectory", 9)
        new = Result("patience", "seen", [Metric("waiting_error", estimate, "clips", "how wrong it is")])
        return replace(run, results=[*run.results, new])

    both = [with_new(run, 0.4 - 0.1 * i) for i, run in enumerate(runs[:2])]
    html = report.render(compare_runs(both), None)
    assert "Patience, seen" in html and "waiting_error" in html and "how wrong it is" in html
    cells = [row["cells"][-1] for row in tables.leaderboards(both)[0]["rows"]]
    assert [cell["best"] for cell in cells] == [False, True]  # an error: lower is better


def test_ours_stands_beside_the_published_with_what_differs(runs: Sequence[EvaluationRun]) -> None:
    published = anchor_tables(compare_runs(runs))
    assert len(published) == 5
    ranking = next(t for t in published if t["anchor"].evaluation == "policy_ranking")
    ours = {row["name"]: row["cells"][-2]["value"] for row in ranking["rows"] if row["ours"]}
    assert list(ours) == list(SCORERS) and ours["clock"] == "0.000"
    assert ranking["caveats"][0].startswith("Other data: no published data set is among ours (test)")
    assert "whole clip" in protocol(runs)[0] and "padded" in protocol(runs)[0] and len(protocol(runs)) > 5


def test_a_split_of_one_run_only_is_said_and_not_mixed(runs: Sequence[EvaluationRun]) -> None:
    first, second = runs[:2]
    only_seen = second.on(
        replace(second.predictions, clips=second.predictions.split("seen").clips, pairs=[], instructions=[])
    )
    comparison = compare_runs([first, only_seen])
    assert "On held_out, clock scored clips, but difference scored none." in report.render(comparison, None)
    held_out = [key for key in comparison.differences["difference"] if key[1] == "held_out"]
    assert held_out == []


def test_a_heading_sorts_and_the_cursor_moves_in_a_browser(
    runs: Sequence[EvaluationRun], output: Path, tmp_path: Path
) -> None:
    """Click the heading of Kendall tau twice and go back two frames on the first clip."""
    act = """<script>
      const button = document.querySelector(".board th:nth-child(3) button");
      button.click(); button.click();
      const key = () => new KeyboardEvent("keydown", { key: "ArrowLeft" });
      for (let i = 0; i < 2; i++) document.querySelector(".plot").dispatchEvent(key());
    </script></body>"""
    page = tmp_path / "page.html"
    page.write_text((output / "report.html").read_text().replace("</body>", act))
    dom = browse(page)
    board = dom[dom.index('<table class="board') : dom.index("</table>")]
    tau = {row["name"]: row["cells"][1]["sort"] for row in tables.leaderboards(runs)[0]["rows"]}
    assert re.findall(r'<th scope="row" data-sort="(\w+)"', board) == sorted(tau, key=lambda name: tau[name])
    assert 'aria-sort="ascending"' in board
    clip = dom[dom.index('<article class="card clip"') : dom.index("</article>")]
    assert '<span data-of="frame">7 of 9</span>' in clip
