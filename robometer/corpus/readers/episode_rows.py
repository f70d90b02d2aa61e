"""The rows of one episode in parquet files, where every row is a frame (LeRobot, MolmoAct)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robometer.frames.video import VideoError
from robometer.trajectory import TrajectoryError

BATCH_ROWS = 4
"""Rows of images in memory at a time."""


class EpisodeRows:
    """The rows with one `episode_index`, in the order of `frame_index`, wherever they lie in the files.

    Without `frame_index`, which GR00T does not write, they are in the order of `index`, or of the files.

    Small columns are read whole. Images are read a few rows at a time, since a file may be far larger than memory. Use
    it in a `with` block, which closes the files.

    Raises:
        TrajectoryError: a file is missing, is not parquet, or has no column `episode_index`.
    """

    def __init__(self, paths: Sequence[Path], episode: int) -> None:
        self._files: list[tuple[pq.ParquetFile, list[int]]] = []
        self._rows = np.zeros(0, np.int64)
        columns: list[np.ndarray] = []
        with ExitStack() as stack:
            for path in paths:
                file = stack.enter_context(open_parquet(path))
                self._files.append((file, [i for i, (lo, hi) in enumerate(ranges(file)) if lo <= episode <= hi]))
            if paths:
                order = next((name for name in ("frame_index", "index") if self.has(name)), "episode_index")
                columns = [np.asarray(self._column(name)) for name in ("episode_index", order)]
            self._stack = stack.pop_all()
        if columns:
            rows = np.flatnonzero(columns[0] == episode)
            self._rows = rows[np.argsort(columns[1][rows], kind="stable")]

    def __enter__(self) -> EpisodeRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, name: str) -> bool:
        """Whether all files have a column."""
        return all(name in file.schema_arrow.names for file, _ in self._files)

    def numbers(self, name: str) -> list[float]:
        """A column with one number per row.

        Raises:
            TrajectoryError: there is no such column, or it has a value that is not a number.
        """
        column = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in self._column(name)]
        values = [column[row] for row in self._rows]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise TrajectoryError(f"column {name} has a value that is not a number")
        return values

    def images(self, name: str) -> Callable[[int], bytes]:
        """A function from a frame's number to its encoded image. In ascending order, it reads the column once."""
        column = _Forward(lambda: self._batches(name))
        rows = self._rows

        def image(frame: int) -> bytes:
            value = column.row(int(rows[frame]))
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise VideoError(f"row {rows[frame]} of column {name} holds no image")
            return content

        return image

    def _column(self, name: str) -> list[Any]:
        values: list[Any] = []
        for file, groups in self._files:
            if name not in file.schema_arrow.names:
                raise TrajectoryError(f"the parquet file has no column {name}")
            try:
                values += file.read_row_groups(groups, columns=[name], use_threads=False)[name].to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise TrajectoryError(f"column {name} cannot be read ({str(error).splitlines()[0]})") from error
        return values

    def _batches(self, name: str) -> Iterator[pa.Array]:
        for file, groups in self._files:
            for batch in file.iter_batches(BATCH_ROWS, groups, columns=[name], use_threads=False):
                yield batch.column(0)


class _Forward:
    """Access by row number to arrays that can only be read one after the other; going back starts from the first."""

    def __init__(self, arrays: Callable[[], Iterator[pa.Array]]) -> None:
        self._arrays, self._left, self._start = arrays, arrays(), 0
        self._array: Any = ()

    def row(self, row: int) -> Any:
        if row < self._start:
            self._left, self._start, self._array = self._arrays(), 0, ()
        while row >= self._start + len(self._array):
            self._start += len(self._array)
            self._array = next(self._left)
        return self._array[row - self._start].as_py()


def open_parquet(path: Path) -> pq.ParquetFile:
    """A parquet file that is read in pieces, on demand.

    Raises:
        TrajectoryError: it is missing, or not parquet.
    """
    try:
        return pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise TrajectoryError(f"{path.name} cannot be read ({reason})") from error


def ranges(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Least and greatest `episode_index` of every row group, from the footer if it has them.

    Raises:
        TrajectoryError: there is no such column.
    """
    if "episode_index" not in file.schema_arrow.names:
        raise TrajectoryError("the parquet file has no column episode_index")
    bounds = []
    for group in range(file.num_row_groups):
        least, greatest = _statistics(file.metadata.row_group(group))
        if least is None:
            column = file.read_row_group(group, columns=["episode_index"])["episode_index"]
            least, greatest = pc.min(column).as_py(), pc.max(column).as_py()
        bounds.append((0, -1) if least is None else (int(least), int(greatest)))
    return bounds


def _statistics(group: Any) -> tuple[Any, Any]:
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema == "episode_index" and column.statistics and column.statistics.has_min_max:
            return column.statistics.min, column.statistics.max
    return None, None
