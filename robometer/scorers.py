"""One resolver from a name to a Scorer: a checkpoint, wherever it lies, an endpoint, or a published baseline.

Every command resolves names here, so that a name means the same model everywhere. `resolve` returns a reference, which
loads nothing by itself and can be sent to Ray workers.
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
from robometer.models import inventory
from robometer.models.checkpoint import checkpoint_identity, checkpoint_scorer, frames_of
from robometer.models.layouts import open_checkpoint
from robometer.models.sources import for_workers, is_checkpoint_name, locate
from robometer.runs.paths import SCORER_FORMS
from robometer.runs.redaction import redacted
from robometer.scoring import Scorer
from robometer.settings import ConfigError

_URL = re.compile(r"(?i)https?://")


class ScorerReference(ABC):
    """A scorer that is named but not loaded.

    Attributes:
        takes_any_frames: it was not trained on a corpus, so that any frames suit it.
    """

    takes_any_frames = False

    @property
    def asks_api(self) -> bool:
        """Whether it can ask an API, whose answers `baseline.cache` keeps."""
        return False

    @property
    def runtime_env(self) -> Mapping[str, Any]:
        """Ray's `runtime_env` of the workers that load it; empty if ours will do."""
        return {}

    @abstractmethod
    def load(self, device: str = "cpu") -> Scorer:
        """Load the scorer; `device` is for models that run in this process."""

    @abstractmethod
    def identity(self) -> str:
        """Text that is equal for scorers with equal answers, made without loading weights."""

    def frames(self) -> FrameSettings | None:
        """How a recording becomes the frames that it was trained on; None if that is not recorded."""
        return FrameSettings()

    def describe(self) -> dict[str, Any]:
        """What its checkpoint is, ready for JSON (see `inventory.describe`), without its weights; empty without one."""
        return {}

    def for_workers(self) -> ScorerReference:
        """A reference for workers, whose working directory may differ."""
        return self


@dataclass(frozen=True)
class CheckpointReference(ScorerReference):
    """A checkpoint: a folder, `org/name[@revision]` of the hub, or an MLflow URI.

    Attributes:
        tracking_uri: URI of MLflow; empty for its default, see `locate`.

    Raises:
        CheckpointError: all methods raise it if the checkpoint cannot be found or is damaged.
    """

    name: str
    tracking_uri: str = ""

    def load(self, device: str = "cpu") -> Scorer:
        """See `ScorerReference.load`."""
        return checkpoint_scorer(open_checkpoint(locate(self.name, self.tracking_uri)), device)

    def identity(self) -> str:
        """See `ScorerReference.identity`; reads the weights once, to hash them."""
        return checkpoint_identity(open_checkpoint(locate(self.name, self.tracking_uri)))

    def frames(self) -> FrameSettings | None:
        """See `ScorerReference.frames`."""
        return frames_of(open_checkpoint(locate(self.name, self.tracking_uri)))

    def describe(self) -> dict[str, Any]:
        """See `ScorerReference.describe`."""
        return inventory.describe(open_checkpoint(locate(self.name, self.tracking_uri)))

    def for_workers(self) -> CheckpointReference:
        """See `ScorerReference.for_workers`; a checkpoint in MLflow is fetched once, here."""
        return CheckpointReference(for_workers(self.name, self.tracking_uri))


@dataclass(frozen=True)
class EndpointReference(ScorerReference):
    """An endpoint of `robometer serve` by its URL; ROBOMETER_TOKEN of the environment is its bearer token, and
    ROBOMETER_CA the PEM file of a certificate of its own.

    Raises:
        ScoringError: all methods but `for_workers` raise it if no endpoint answers or it refuses the token.
    """

    url: str

    def load(self, device: str = "cpu") -> RemoteScorer:
        """See `ScorerReference.load`; the model runs elsewhere."""
        return RemoteScorer(self.url, os.environ.get("ROBOMETER_TOKEN"), ca_file=os.environ.get("ROBOMETER_CA"))

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
        ConfigError: `load` and `identity` raise it if the name is unknown or the settings are invalid.
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
    """The reference of a scorer: `baseline:NAME`, the URL of an endpoint, or a checkpoint.

    Args:
        tracking_uri: URI of MLflow, for checkpoints that lie there.
        baseline: settings of a baseline; None for those that were published.

    Raises:
        ConfigError: `name` is none of these.
    """
    word = str(name)
    if word.startswith(baselines.PREFIX):
        return BaselineReference(word.removeprefix(baselines.PREFIX), baseline or BaselineConfig())
    if _URL.match(word):
        return EndpointReference(word)
    if is_checkpoint_name(word):
        return CheckpointReference(word, tracking_uri)
    raise ConfigError(f"{redacted(word)} names no scorer, and there is no such folder: give {SCORER_FORMS}")


def load_scorer(
    name: str | Path, device: str = "cpu", tracking_uri: str = "", baseline: BaselineConfig | None = None
) -> Scorer:
    """`resolve(...).load(device)`."""
    return resolve(name, tracking_uri, baseline).load(device)
