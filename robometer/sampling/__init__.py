"""What each training sample is: the pure plan, from the manifest alone."""

from robometer.sampling.index import ManifestIndex, SamplingError
from robometer.sampling.plan import describe, plan
from robometer.sampling.types import STRATEGIES, ClipPlan, SamplePlan

__all__ = ["STRATEGIES", "ClipPlan", "ManifestIndex", "SamplePlan", "SamplingError", "describe", "plan"]
