"""The numbers of a report for other tools: Markdown to read, LaTeX to include, and CSV to compute with."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from robometer.evaluation.paired import Difference
from robometer.evaluation.results import metric_rows
from robometer.evaluation.seeds import OVER_SEEDS, seed_groups, seed_tables, spread
from robometer.report.comparison import RunComparison, remarks
from robometer.report.headlines import Headline
from robometer.report.published import anchor_tables, protocol
from robometer.report.runs import EvaluationRun
from robometer.report.tables import EFFECTIVE_N, Table, difference_tables, leaderboards, source_tables

Row = Sequence[str]

_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
        "τ": r"$\tau$", "±": r"$\pm$", "→": r"$\rightarrow$", "↔": r"$\leftrightarrow$", "…": r"\dots{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
        "[": "{[}", "]": "{]}", "*": "{*}",  # after the \\ of a row, these would be its arguments
        } | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def files(comparison: RunComparison) -> dict[str, str]:
    """The text of each file, by its name."""
    return {"report.md": markdown(comparison), "report.tex": latex(comparison), "report.csv": csv_table(comparison)}


def csv_table(comparison: RunComparison) -> str:
    """Every metric of every run as CSV: a row with value, interval, n, and the difference to the first run.

    If there are runs of one recipe, rows follow for the mean, standard deviation, minimum and maximum over seeds
    (`statistic`). An undefined number is an empty cell.
    """
    baseline = comparison.runs[0].name
    rows: list[dict[str, Any]] = []
    for run in comparison.runs:
        differences = comparison.differences.get(run.name, {})
        for row in metric_rows(run.results):
            difference = differences.get((row["evaluation"], row["split"], row["metric"]))
            rows.append({"model": run.name, "statistic": "value"} | row | _compared(difference, baseline))
    rows += [dict.fromkeys(rows[0], "") | row for row in _over_seeds(comparison.runs)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0] if rows else ["model"])
    writer.writerows([_plain(value) for value in row.values()] for row in rows)
    return stream.getvalue()


def _over_seeds(runs: Sequence[EvaluationRun]) -> Iterable[dict[str, Any]]:
    statistics = {"mean": "mean", "standard deviation": "std", "minimum": "low", "maximum": "high"}
    for group in seed_groups(runs):
        for result in group.runs[0].results:
            for metric in result.metrics:
                over_seeds = spread(group, result.evaluation, result.split, metric.name)
                if over_seeds is None:
                    continue
                key = {"split": result.split, "evaluation": result.evaluation, "metric": metric.name}
                for words, name in statistics.items():
                    value = {"statistic": f"{words} over seeds", "value": getattr(over_seeds, name)}
                    yield {"model": group.name} | key | value | {"n": over_seeds.n, "over": "seeds"}


def _compared(difference: Difference | None, baseline: str) -> dict[str, Any]:
    names = {"difference": "value", "difference_low": "low", "difference_high": "high", "p": "p"}
    values = {name: getattr(difference, field) if difference else "" for name, field in names.items()}
    reason = difference.reason if difference else ""
    return {"baseline": baseline if difference else ""} | values | {"not_compared": reason}


def _plain(value: Any) -> Any:
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def markdown(comparison: RunComparison) -> str:
    """Leaderboard, differences, sources, published results and provenance as Markdown tables."""
    runs = comparison.runs
    parts = [f"# Evaluation of {', '.join(_md(run.name) for run in runs)}"]
    if sentences := remarks(runs):
        parts.append(_md_list(sentences))
    for board in leaderboards(runs):
        parts += [f"## {_md(board['split'])}", _md(EFFECTIVE_N), _md_table(*_board(board))]
    for table in seed_tables(runs):
        parts += [f"## Over seeds, {_md(table['split'])}", _md(OVER_SEEDS), _md_table(*_seeds(table))]
    for table in difference_tables(comparison):
        title = f"## Differences to {_md(runs[0].name)}, {_md(table['split'])}"
        parts += [title, _md_table(*_differences(runs, table))]
    for table in source_tables(comparison):
        header = ["data source", "model", "clips", *(f"{h.title}: {h.what}" for h in table["headlines"])]
        rows = [[r["source"], r["name"], r["clips"], *map(_with_interval, r["cells"])] for r in table["rows"]]
        parts += [f"## Data sources, {_md(table['split'])}", _md_table(map(_md, header), (map(_md, r) for r in rows))]
    parts += ["## Published results", _md_list(protocol(runs))]
    for table in anchor_tables(comparison):
        header = ["model", *table["columns"]]
        rows = [[row["name"], *(cell["value"] for cell in row["cells"])] for row in table["rows"]]
        parts += [f"### {_md(table['anchor'].title)}", _md_list(table["caveats"])]
        parts += [_md_table(map(_md, header), (map(_md, row) for row in rows))]
    return "\n\n".join([*parts, *map(_md_provenance, runs)]) + "\n"


def _with_interval(cell: Table) -> str:
    return f"{cell['value']} ({cell['interval']})" if cell["interval"] else str(cell["value"])


def _md_provenance(run: EvaluationRun) -> str:
    rows = [[name.replace("_", " "), _md(_flat(v))] for name, v in run.provenance.items() if name != "config"]
    return f"## Provenance of {_md(run.name)}\n\n" + _md_table(["", ""], rows)


def _flat(value: Any) -> str:
    return "; ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _md(text: Any) -> str:
    """Text with its markup escaped, on one line."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in str(text))
    return " ".join(escaped.split())


def _md_list(sentences: Sequence[str]) -> str:
    return "\n".join(f"* {_md(sentence)}" for sentence in sentences)


def _md_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    first = list(header)
    lines = [first, ["---"] * len(first), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(comparison: RunComparison) -> str:
    """Leaderboards and differences as LaTeX tables to include; they need the package booktabs."""
    runs = comparison.runs
    parts = ["% by `robometer report`; needs \\usepackage{booktabs}; names in other scripts need lualatex or xelatex"]
    for board in leaderboards(runs):
        caption = f"{board['split']}: value, interval and n; the best in bold. {EFFECTIVE_N}"
        parts.append(_tex_table(caption, [row["name"] for row in board["rows"]], *_across(board, _tex_value)))
    for table in seed_tables(runs):
        names = [f"{row['name']}, seeds {row['seeds']}" for row in table["rows"]]
        cells = _across(table, lambda cell: _tex_stack("r", _tex(cell["value"]), cell["range"]))
        parts.append(_tex_table(f"{table['split']}, over seeds. {OVER_SEEDS}", names, *cells))
    for table in difference_tables(comparison):
        caption = f"{table['split']}: difference to {runs[0].name}, its interval and two-sided p."
        headlines = [row["headline"] for row in table["rows"]]
        differences = [[_tex_difference(cell) for cell in row["cells"]] for row in table["rows"]]
        parts.append(_tex_table(caption, [run.name for run in runs[1:]], headlines, differences))
    return "\n\n".join(parts) + "\n"


def _across(table: Table, show: Callable[[Table], str]) -> tuple[Sequence[Headline], list[Row]]:
    """Headlines, and for each the cells of all rows: headlines go down in LaTeX, as many would not fit across."""
    columns = zip(*(row["cells"] for row in table["rows"]), strict=True)
    return table["headlines"], [list(map(show, cells)) for cells in columns]


def _tex_value(cell: Table) -> str:
    value = _tex(cell["value"])
    n, _, effective = cell["n"].partition(" (")
    under = (cell["interval"], f"n = {n}", f"({effective}" if effective else "") if cell["interval"] else ()
    return _tex_stack("r", rf"\textbf{{{value}}}" if cell["best"] else value, *under)


def _tex_difference(cell: Table | None) -> str:
    if cell and cell["interval"]:
        return _tex_stack("r", _tex(cell["value"]), cell["interval"], f"p {cell['p']}")
    return _tex(cell["reason"] if cell else "–")


def _tex_stack(side: str, first: str, *under: str) -> str:
    """A cell of several lines."""
    lines = r" \\ ".join([first, *(rf"\scriptsize {_tex(text)}" for text in under if text)])
    return rf"\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{lines}\end{{tabular}}" if any(under) else first


def _tex(text: str) -> str:
    """Text with its markup escaped, on one line. Letters of other scripts stay, and need lualatex or xelatex."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    return "".join(_TEX.get(character, character) for character in " ".join(printable.split()))


def _tex_table(caption: str, names: Sequence[str], headlines: Sequence[Headline], cells: Sequence[Row]) -> str:
    labels = [_tex_stack("l", _tex(headline.title), headline.what) for headline in headlines]
    rows = [["metric", *map(_tex, names)], *([label, *row] for label, row in zip(labels, cells, strict=True))]
    header, *body = [f"    {' & '.join(row)} \\\\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{_tex(caption)}}}",
            f"  \\begin{{tabular}}{{l{'r' * len(names)}}}",
            r"    \toprule",
            header,
            r"    \midrule",
            "\n    \\addlinespace\n".join(body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _board(board: Table) -> tuple[Row, list[Row]]:
    header = ["model", *(_md(f"{h.title}: {h.what}") for h in board["headlines"])]
    rows: list[Row] = []
    for row in board["rows"]:
        cells = []
        for headline, cell in zip(board["headlines"], row["cells"], strict=True):
            value = _md(cell["value"])
            beside = f"{headline.beside_what} {cell['beside']}" if cell["beside"] else ""
            parts = [cell["interval"], f"n = {cell['n']}", beside]
            more = f"({'; '.join(part for part in parts if part)})" if cell["interval"] else ""
            cells.append(f"{f'**{value}**' if cell['best'] else value} {_md(more)}".rstrip())
        rows.append([_md(row["name"]), *cells])
    return header, rows


def _seeds(table: Table) -> tuple[Row, list[Row]]:
    header = ["model", "seeds", *(_md(f"{h.title}: {h.what}") for h in table["headlines"])]
    rows: list[Row] = []
    for row in table["rows"]:
        cells = [f"{cell['value']} ({cell['range']})" if cell["range"] else cell["value"] for cell in row["cells"]]
        rows.append([_md(text) for text in (row["name"], row["seeds"], *cells)])
    return header, rows


def _differences(runs: Sequence[EvaluationRun], table: Table) -> tuple[Row, list[Row]]:
    header = ["metric", *(_md(run.name) for run in runs[1:])]
    rows: list[Row] = []
    for row in table["rows"]:
        cells = []
        for cell in row["cells"]:
            text = f"{cell['value']} ({cell['interval']}), p {cell['p']}" if cell and cell["interval"] else ""
            cells.append(_md(text or (cell["reason"] if cell else "–")))
        rows.append([_md(f"{row['headline'].title}: {row['headline'].what}"), *cells])
    return header, rows
