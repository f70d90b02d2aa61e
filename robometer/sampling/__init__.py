"""What each training sample is: the pure plan, from the manifest alone."""

from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import describe, plan
from robometer.sampling.types import STRATEGIES, ClipPlan, SamplePlan, SamplingError

__all__ = ["STRATEGIES", "ClipPlan", "ManifestIndex", "SamplePlan", "SamplingError", "describe", "plan"]
