"""The split `validation`: episodes kept back from training to choose checkpoints and trials by.

What a number was chosen by says too much of it. With clips of their own for the choice, the splits that an evaluation
reports are clips that nothing was chosen by.
"""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.trajectory import normalise_task

logger = logging.getLogger(__name__)

VALIDATION = "validation"
ONE_IN = 10


def training_corpus(config: Config) -> Corpus:
    """The corpus as training sees it.

    Where `train.validation_splits` names `validation`, and the corpus has no such split, one is cut from the split that
    training draws from (`cut`).
    """
    corpus = Corpus(config.corpus.path)
    if VALIDATION not in config.train.validation_splits or len(corpus.rows(VALIDATION)):
        return corpus
    return Corpus(config.corpus.path, cut(corpus.manifest, config.sampling.split))


def cut(manifest: pa.Table, split: str) -> pa.Table:
    """The manifest with one in `ONE_IN` episodes of `split` moved to `validation`.

    Of each task and quality it takes a tenth, but one at least where there are two. Which ones follows from a hash of
    source and episode, so that all views of an episode stay together, and every process and run cuts alike.
    """
    chosen = pc.equal(manifest["split"], split).to_numpy(zero_copy_only=False)
    rows = manifest.filter(pa.array(chosen)).select(["source", "episode_key", "task", "quality_label"]).to_pandas()
    tasks = {task: normalise_task(task) for task in rows["task"].unique()}
    rows["task"] = rows["task"].map(tasks)
    episodes = rows.drop_duplicates(["source", "episode_key"]).copy()
    episodes["order"] = [
        hashlib.sha256(f"{VALIDATION}\x1f{source}\x1f{key}".encode()).hexdigest()
        for source, key in zip(episodes["source"], episodes["episode_key"], strict=True)
    ]
    episodes = episodes.sort_values("order")
    groups = episodes.groupby(["task", "quality_label"])["order"]
    place, size = groups.cumcount(), groups.transform("size")
    kept_back = episodes[(size > 1) & (place < np.maximum(1, size // ONE_IN))]
    moved = rows.merge(kept_back[["source", "episode_key"]], how="left", indicator=True)["_merge"].eq("both")
    splits = np.array(manifest["split"].to_pylist(), dtype=object)
    splits[np.flatnonzero(chosen)[moved.to_numpy()]] = VALIDATION
    logger.info("%d of %d trajectories of split %s are kept back for validation.", moved.sum(), len(rows), split)
    place_of_split = manifest.schema.get_field_index("split")
    return manifest.set_column(place_of_split, "split", pa.array(splits, pa.string()))
