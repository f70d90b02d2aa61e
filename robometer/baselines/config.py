"""Settings of the published baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from robometer.runs import paths
from robometer.runs.redaction import redacted
from robometer.settings import Count, Positive, Range, Settings, WholeNumber, require


@dataclass
class BaselineConfig(Settings, section="baseline"):
    """How a published baseline runs; `baseline:gvl` in the place of a checkpoint names one (`robometer.baselines`)."""

    model: str = ""
    """Hub id or folder of weights, or a model's name at an API; empty: what its authors published."""
    provider: Literal["gemini", "openai"] = "gemini"
    """API models: `gemini`, or `openai` (any server that speaks its chat completions)."""
    base_url: str = ""
    """API models: URL with its version; empty: the provider's, with its key in GEMINI_API_KEY or OPENAI_API_KEY."""
    max_frames: WholeNumber = 0
    """Frames of a clip that the model is shown, at least 2; 0: as published."""
    prompt: str = ""
    """Local models: a file with `{task}` and the marks `<image>` or `<video>`; empty: as published."""
    batch_size: Count = 8
    """Local models: prompts that are answered at once."""
    interval: Count = 1
    """Models that compare two frames: how far these are apart, in frames."""
    mode: Literal["", "incremental", "forward", "backward"] = ""
    """robo_dopamine: `incremental`, `forward` or `backward`; empty: as published for the model."""
    temperature: Annotated[float | None, Range(least=0)] = 0.0
    """Sampling temperature; null: not sent, for models that refuse one."""
    max_tokens: Count = 4096
    """API models: tokens of an answer, with what the model thinks before it."""
    structured: bool = True
    """API models: ask for JSON by schema, where the baseline needs JSON."""
    requests_per_minute: Positive = 60.0
    """API models: requests of each actor per minute."""
    concurrency: Count = 8
    """API models: requests of each actor in flight at the same time."""
    cache: str = "outputs/answers"
    """API models: where answers are kept, by the hash of the request; a folder, or a storage URI."""
    timeout_s: Positive = 120.0
    """Seconds that one request may take."""
    seed: WholeNumber = 0
    """Sent to an API; decides the order of GVL's frames, and the answers of `baseline:random`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        paths.check_storage("baseline.cache", self.cache)
        paths.check_local("baseline.prompt", self.prompt, empty=True)
        if "://" in self.model:  # names at an API may hold a colon
            paths.check_local("baseline.model", self.model)
        require(
            not self.base_url or self.base_url.startswith(("http://", "https://")),
            f"baseline.base_url={redacted(self.base_url)!r} must start with http:// or https://",
        )
        require(self.max_frames != 1, "baseline.max_frames must be 0 or at least 2")
