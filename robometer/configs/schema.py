"""The tree of all settings. Their values come from here, then from the YAML groups, then from overrides."""

from __future__ import annotations

from dataclasses import dataclass, field

from robometer.baselines.config import BaselineConfig
from robometer.configs.stages import RayConfig, ServeConfig, SimulateConfig
from robometer.corpus.config import CorpusConfig, IngestConfig
from robometer.evaluation.config import EvaluateConfig
from robometer.models.config import EmbedConfig, ModelConfig
from robometer.runs.config import TrackingConfig
from robometer.sampling.config import SamplingConfig
from robometer.settings import Settings, require
from robometer.training.config import LossConfig, SweepConfig, TrainConfig


@dataclass
class Config(Settings):
    """All settings."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    simulate: SimulateConfig = field(default_factory=SimulateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.sampling.max_frames <= self.model.max_len or self.model.kind != "rewind",
            f"sampling.max_frames={self.sampling.max_frames} is more than model.max_len={self.model.max_len}",
        )
        require(
            not (self.train.zero_init and self.model.lora.rank),
            "train.zero_init and model.lora exclude each other: adapters copy rows of the embedding when they are made",
        )
