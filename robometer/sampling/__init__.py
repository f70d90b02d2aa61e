"""What each training sample is: the pure plan, from the manifest alone."""

from robometer.sampling.index import ManifestIndex
from robometer.sampling.mix import Histograms, describe, effective_mix, in_words
from robometer.sampling.plan import plan
from robometer.sampling.types import STRATEGIES, ClipPlan, SamplePlan, SamplingError

__all__ = [
    "STRATEGIES",
    "ClipPlan",
    "Histograms",
    "ManifestIndex",
    "SamplePlan",
    "SamplingError",
    "describe",
    "effective_mix",
    "in_words",
    "plan",
]
