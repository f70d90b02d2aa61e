"""Which trajectories, frames and targets make each training sample: a pure function of the manifest."""

from robometer.sampling.index import ManifestIndex
from robometer.sampling.mix import Histograms, describe_mix, effective_mix, in_words
from robometer.sampling.plan import plan
from robometer.sampling.types import STRATEGIES, ClipPlan, SamplePlan, SamplingError

__all__ = [
    "STRATEGIES",
    "ClipPlan",
    "Histograms",
    "ManifestIndex",
    "SamplePlan",
    "SamplingError",
    "describe_mix",
    "effective_mix",
    "in_words",
    "plan",
]
