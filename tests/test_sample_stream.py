"""The training stream's manifest and index lie in the object store once, however many actors read them."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import ray

from pipelines.sample_stream import Collate, share
from robometer.configs import load
from robometer.configs.loading import to_dict
from robometer.corpus.corpus import Corpus
from tests.conftest import TINY


class Peek(Collate):
    """A data actor that says where its index lies."""

    def __init__(self, values: dict[str, Any], shared: list[Any]) -> None:
        super().__init__(values, 0, shared[0])  # in a list, since Ray resolves references that are arguments themselves

    def memory(self) -> dict[str, Any]:
        columns, partners = self.index.columns, self.index.partners
        arrays = [columns.task, columns.source, columns.partial_success, self.index.options, partners.successes.rows]
        return {
            "owned": [bool(array.flags.owndata) for array in arrays],
            "writeable": [bool(array.flags.writeable) for array in arrays],
            "arrow": pa.total_allocated_bytes(),
        }


def test_actors_read_one_index_in_shared_memory(tiny_corpus: str) -> None:
    config = load([*TINY, f"corpus.path={tiny_corpus}"])
    shared = share(config)
    manifest, index = ray.get(shared)
    actors = [ray.remote(num_cpus=0)(Peek).remote(to_dict(config), [shared]) for _ in range(2)]
    for found in ray.get([actor.memory.remote() for actor in actors]):
        assert not any(found["owned"]) and not any(found["writeable"])
        assert found["arrow"] < manifest.nbytes  # a private copy of the manifest would be that and more
    rows = [int(row) for row in index.preference_rows]
    assert len(manifest) == len(index) >= len(rows) > 0


def test_a_corpus_keeps_the_manifest_that_it_was_given(tiny_corpus: str) -> None:
    """Rows that were numbered in one process mean the same in the other, whatever was ingested in between."""
    part = Corpus(tiny_corpus).manifest.slice(3, 5)
    corpus = pickle.loads(pickle.dumps(Corpus(tiny_corpus, part)))
    assert corpus.manifest["id"].to_pylist() == part["id"].to_pylist() and len(corpus) == 5
    assert corpus.frames(0).shape[0] == part["num_frames"][0].as_py()
    assert len(pickle.dumps(Corpus(tiny_corpus))) < 500  # one that read its manifest reads it again
