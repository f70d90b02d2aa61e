"""The manifest columns that sampling reads, as arrays by manifest row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.sampling.config import SamplingConfig
from robometer.sampling.strategies import Subject
from robometer.sampling.targets import SourceFacts, source_facts, supervises_progress
from robometer.trajectory import QUALITY_LABELS, SUCCESSFUL, normalise_task

SUCCESSFUL_RANK = QUALITY_LABELS.index(SUCCESSFUL)


@dataclass(frozen=True)
class Columns:
    """Facts about each trajectory, by manifest row; picklable, read-only by convention.

    Attributes:
        task_texts, task_text: the distinct instructions, and the index of each row's one, int32 [R].
        task: number of the row's task, int32 [R]; instructions with the same normalised text are one task.
        sources, source: names of the sources, and the index of each row's one, int32 [R].
        facts: `SourceFacts` of each source.
        num_frames: int32 [R].
        quality: int8 [R], index into `QUALITY_LABELS`.
        partial_success: float64 [R], NaN for none; rounded to 6 digits because the manifest holds float32.
        is_robot: bool [R], False for a human.
        supervised: rows that train progress, bool [R].
    """

    task_texts: pa.StringArray
    task_text: np.ndarray
    task: np.ndarray
    sources: list[str]
    source: np.ndarray
    facts: list[SourceFacts]
    num_frames: np.ndarray
    quality: np.ndarray
    partial_success: np.ndarray
    is_robot: np.ndarray
    supervised: np.ndarray

    @classmethod
    def from_table(cls, table: pa.Table, config: SamplingConfig) -> Columns:
        """Read a manifest; only the distinct tasks and sources pass through Python."""
        task_text, task_texts = _encode(table["task"])
        texts = task_texts.to_pylist()
        keys = [normalise_task(text) for text in texts]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        source, names = _encode(table["source"])
        sources = names.to_pylist()
        facts = [source_facts(name, config.default_cutoff) for name in sources]
        quality = pc.index_in(table["quality_label"], value_set=pa.array(QUALITY_LABELS)).to_numpy().astype(np.int8)
        partial = pc.fill_null(pc.cast(table["partial_success"], pa.float64()), float("nan")).to_numpy().round(6)
        return cls(
            task_texts=task_texts,
            task_text=task_text,
            task=np.array([number[key] for key in keys], dtype=np.int32)[task_text],
            sources=sources,
            source=source,
            facts=facts,
            num_frames=table["num_frames"].to_numpy().astype(np.int32),
            quality=quality,
            partial_success=partial,
            is_robot=pc.fill_null(table["is_robot"], True).to_numpy(),
            supervised=_supervised(sources, facts, source, quality, ~np.isnan(partial)),
        )

    def __len__(self) -> int:
        return len(self.task)

    @property
    def successful(self) -> np.ndarray:
        """Rows whose quality label is `successful`, bool [R]."""
        return np.asarray(self.quality == SUCCESSFUL_RANK)

    @property
    def embodied_task(self) -> np.ndarray:
        """2 x task of each row, + 1 where a robot does it, int32 [R]."""
        return np.asarray(2 * self.task + self.is_robot)

    def of_sources(self, matches: Callable[[str], bool]) -> np.ndarray:
        """Rows of the sources whose name `matches`, bool [R]."""
        return np.array([matches(name) for name in self.sources], dtype=bool).take(self.source)

    def successful_row(self, row: int) -> bool:
        """Whether a row's quality label is `successful`."""
        return bool(self.quality[row] == SUCCESSFUL_RANK)

    def source_of(self, row: int) -> str:
        """Source name of a row."""
        return self.sources[int(self.source[row])]

    def embodied_task_of(self, row: int) -> int:
        """2 x task of a row, + 1 where a robot does it."""
        return 2 * int(self.task[row]) + int(self.is_robot[row])

    def text_of(self, row: int) -> str:
        """The instruction of a row as its source wrote it."""
        return str(self.task_texts[int(self.task_text[row])].as_py())

    def partial_of(self, row: int) -> float | None:
        """Partial success of a row, or None."""
        value = float(self.partial_success[row])
        return None if value != value else value

    def subject(self, row: int) -> Subject:
        """The facts that the targets of a row depend on."""
        facts = self.facts[int(self.source[row])]
        return Subject(
            num_frames=int(self.num_frames[row]),
            quality_label=QUALITY_LABELS[self.quality[row]],
            cutoff=facts.cutoff,
            partial_success=self.partial_of(row),
            supervised=bool(self.supervised[row]),
            preference_only=facts.preference_only,
        )


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.StringArray]:
    encoded = pc.dictionary_encode(column.combine_chunks())
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary


def _supervised(
    sources: list[str], facts: list[SourceFacts], source: np.ndarray, quality: np.ndarray, has_partial: np.ndarray
) -> np.ndarray:
    """`supervises_progress` of every row, from a table over (source, quality, whether there is a partial success)."""
    table = np.array(
        [
            [
                [supervises_progress(label, name, partial, fact.preference_only) for partial in (None, 0.5)]
                for label in QUALITY_LABELS
            ]
            for name, fact in zip(sources, facts, strict=True)
        ],
        dtype=bool,
    ).reshape(len(sources), len(QUALITY_LABELS), 2)
    return np.asarray(table[source, quality, has_partial.astype(np.int8)])
