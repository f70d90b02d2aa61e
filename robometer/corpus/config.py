"""Settings of the corpus: where it lies, and how raw data becomes one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from robometer.runs import paths
from robometer.settings import Count, Range, Settings, Share

_FORMATS = Path(__file__).parent / "formats"


@dataclass
class CorpusConfig(Settings, section="corpus"):
    """Where the corpus lies."""

    path: str = "outputs/corpus"
    """Folder of the corpus, or any URI that pyarrow opens (`s3://...`, `gs://...`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_storage("corpus.path", self.path)


@dataclass
class IngestConfig(Settings, section="ingest"):
    """Raw data to corpus. The default sizes are upstream's: at most 32 frames, short edge 240 px."""

    format: str = "mp4_jsonl"
    """How the raw data lies on disk: a module of `robometer.corpus.formats`, or the dotted path of your own."""
    input: str = "bundled"
    """Folder or file of that format, or its URI; `bundled` is the Meta-World corpus that comes with the package."""
    source_name: str = ""
    """Name of the data set (its source); empty: the name that the format gives."""
    split: str = "train"
    """Split of trajectories whose format names none: `train`, or the name of a split to evaluate on."""
    max_frames: Annotated[int, Range(least=2)] = 32
    """Frames stored of a trajectory; the first and the last always are."""
    short_edge: Annotated[int, Range(least=16)] = 240
    """Pixels of the shorter edge of a stored frame."""
    jpeg_quality: Annotated[int, Range(least=1, most=100)] = 90
    """JPEG quality of the stored frames."""
    shard_size: Count = 256
    """About how many trajectories a shard holds; 2048 for a corpus of a million."""
    max_source_frames: Count = 100_000
    """Frames of a video, at most; a longer one is refused."""
    max_source_pixels: Count = 8192 * 8192
    """Pixels of a video's frame, at most; a larger one is refused."""
    max_bad_fraction: Share = 0.5
    """Share of refused episodes above which the job ends with status 2."""
    retry_quarantined: bool = False
    """Read again what was refused before, even if it has not changed."""
    update: bool = False
    """Replace stored trajectories that differ from the raw data; else they are only counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # A user's own module may read from anywhere, and an input that exists is accepted whatever its name looks like.
        if (_FORMATS / f"{self.format}.py").is_file() and not os.path.exists(self.input):
            paths.check_storage("ingest.input", self.input)
