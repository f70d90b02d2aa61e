"""One resolver from a word to a Scorer: a checkpoint wherever it lies, an endpoint, or a published baseline.

Every command asks here, so that one word means one model everywhere. What `resolve` returns loads nothing until it is
asked, and travels to Ray workers.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robometer import baselines
from robometer.baselines.config import BaselineConfig
from robometer.client import RemoteScorer
from robometer.frames import FrameSettings
from robometer.models.checkpoint import checkpoint_identity, checkpoint_scorer, frames_of
from robometer.models.layouts import open_checkpoint
from robometer.models.sources import for_workers, is_checkpoint_name, locate
from robometer.runs.paths import SCORER_FORMS
from robometer.runs.redaction import redacted
from robometer.scoring import Scorer
from robometer.settings import ConfigError

_URL = re.compile(r"(?i)https?://")


class ScorerReference(ABC):
    """A scorer that is named and not loaded.

    Attributes:
        takes_any_frames: it was not trained on frames of a corpus, so that no others can be wrong.
    """

    takes_any_frames = False

    @property
    def asks_api(self) -> bool:
        """Whether it can ask an API, whose answers `baseline.cache` keeps."""
        return False

    @property
    def runtime_env(self) -> Mapping[str, Any]:
        """Ray's, of the workers that load it; empty where ours will do."""
        return {}

    @abstractmethod
    def load(self, device: str = "cpu") -> Scorer:
        """Load it; `device` is where a model of this process computes."""

    @abstractmethod
    def identity(self) -> str:
        """What its answers follow from, found without its weights in memory: equal means the same answers."""

    def frames(self) -> FrameSettings | None:
        """How a recording becomes the frames that it was trained on; None where it does not say."""
        return FrameSettings()

    def for_workers(self) -> ScorerReference:
        """The same scorer by a name that means the same in a worker, whose working directory may be another."""
        return self


@dataclass(frozen=True)
class CheckpointReference(ScorerReference):
    """A checkpoint: a folder, `org/name[@revision]` of the hub, or an MLflow URI.

    Attributes:
        tracking_uri: of MLflow; empty: its default, see `locate`.

    Raises:
        CheckpointError: by all methods, where it cannot be had or is damaged.
    """

    name: str
    tracking_uri: str = ""

    def load(self, device: str = "cpu") -> Scorer:
        """See `ScorerReference.load`."""
        return checkpoint_scorer(open_checkpoint(locate(self.name, self.tracking_uri)), device)

    def identity(self) -> str:
        """See `ScorerReference.identity`; it reads the weights once, to hash them."""
        return checkpoint_identity(open_checkpoint(locate(self.name, self.tracking_uri)))

    def frames(self) -> FrameSettings | None:
        """See `ScorerReference.frames`."""
        return frames_of(open_checkpoint(locate(self.name, self.tracking_uri)))

    def for_workers(self) -> CheckpointReference:
        """See `ScorerReference.for_workers`; what lies in MLflow is fetched once, here."""
        return CheckpointReference(for_workers(self.name, self.tracking_uri))


@dataclass(frozen=True)
class EndpointReference(ScorerReference):
    """An endpoint of `robometer serve` by its URL; its bearer token is ROBOMETER_TOKEN of the environment.

    Raises:
        ScoringError: by all methods but `for_workers`, where no endpoint answers or it refuses the token.
    """

    url: str

    def load(self, device: str = "cpu") -> RemoteScorer:
        """See `ScorerReference.load`; the model computes elsewhere."""
        return RemoteScorer(self.url, os.environ.get("ROBOMETER_TOKEN"))

    def identity(self) -> str:
        """See `ScorerReference.identity`."""
        with self.load() as remote:
            return f"{remote.name} {remote.info.revision}"

    def frames(self) -> FrameSettings | None:
        """See `ScorerReference.frames`."""
        with self.load() as remote:
            return remote.info.frames


@dataclass(frozen=True)
class BaselineReference(ScorerReference):
    """A published baseline by its name, with its settings.

    Raises:
        ConfigError: by `load` and `identity`, where no baseline has that name or its settings cannot work.
    """

    name: str
    settings: BaselineConfig

    takes_any_frames = True

    def load(self, device: str = "cpu") -> Scorer:
        """See `ScorerReference.load`."""
        return baselines.load_baseline(self.name, self.settings, device)

    def identity(self) -> str:
        """See `ScorerReference.identity`."""
        return baselines.identity(self.name, self.settings)

    def for_workers(self) -> BaselineReference:
        """See `ScorerReference.for_workers`."""
        return replace(self, settings=baselines.for_workers(self.settings))

    @property
    def asks_api(self) -> bool:
        """See `ScorerReference`."""
        return self.name in baselines.ASK_APIS

    @property
    def runtime_env(self) -> Mapping[str, Any]:
        """See `ScorerReference`."""
        return baselines.runtime_env(self.name)


def resolve(name: str | Path, tracking_uri: str = "", baseline: BaselineConfig | None = None) -> ScorerReference:
    """The scorer that a word names: `baseline:NAME`, the URL of an endpoint, or a checkpoint.

    Args:
        tracking_uri: of MLflow, for checkpoints that lie there.
        baseline: settings of a baseline; default: as published.

    Raises:
        ConfigError: it is none of these.
    """
    word = str(name)
    if word.startswith(baselines.PREFIX):
        return BaselineReference(word.removeprefix(baselines.PREFIX), baseline or BaselineConfig())
    if _URL.match(word):
        return EndpointReference(word)
    if is_checkpoint_name(word):
        return CheckpointReference(word, tracking_uri)
    raise ConfigError(f"{redacted(word)} names no scorer: give {SCORER_FORMS}")


def load_scorer(
    name: str | Path, device: str = "cpu", tracking_uri: str = "", baseline: BaselineConfig | None = None
) -> Scorer:
    """`resolve(...).load(device)`."""
    return resolve(name, tracking_uri, baseline).load(device)
