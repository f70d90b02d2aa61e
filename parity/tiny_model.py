"""The tiny model whose outputs were recorded of upstream, as ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file

from robometer.configs.schema import Config
from robometer.models.config import ModelConfig
from robometer.models.processing import RobometerProcessor
from robometer.models.robometer import Robometer, build_robometer, load_processor
from robometer.sampling.config import SamplingConfig


def load(
    golden: Path, weights: str = "weights_discrete10.safetensors", **settings: Any
) -> tuple[Robometer, RobometerProcessor]:
    """Model in evaluation mode with the weights of `golden`/d_rbm, strictly, and its processor.

    Args:
        settings: of `ModelConfig`, where they are not the default ones.
    """
    recorded = golden / "d_rbm"
    state = load_file(recorded / weights)
    bins = len(state["progress_head.4.weight"])
    config = Config(
        model=ModelConfig(kind="robometer", progress_loss="discrete" if bins > 1 else "l2", **settings),
        sampling=SamplingConfig(progress_bins=max(bins, 2)),
    )
    with TemporaryDirectory() as temporary:
        # A checkpoint folder as upstream leaves it: processor files and the resized backbone configuration.
        folder = Path(shutil.copytree(recorded / "processor", Path(temporary) / "checkpoint"))
        folder.chmod(0o755)
        shutil.copyfile(recorded / "base_model_config_after_resize.json", folder / "config.json")
        model, _ = build_robometer(config, folder)
        processor = load_processor(config, folder)
    model.load_state_dict(state, strict=True)
    return model.eval(), processor
