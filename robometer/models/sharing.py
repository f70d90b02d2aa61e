"""Models in one process that hold their equal weights once, such as several adapters of one base model."""

from __future__ import annotations

import torch
from torch import nn

from robometer.scoring import Scorer


def share_weights(scorer: Scorer, other: Scorer) -> int:
    """Let `scorer` hold the weights of `other` where both are equal. Neither may be trained afterwards.

    Adapters rename the weights that they adapt (`base_layer`), so that an adapter also shares with its bare base.

    Returns:
        Bytes that it held and holds no more; 0 for scorers without a network.
    """
    network, source = _network(scorer), _network(other)
    if network is None or source is None:
        return 0
    theirs = {_base_name(name): parameter for name, parameter in source.named_parameters()}
    freed = 0
    for name, parameter in network.named_parameters():
        twin = theirs.get(_base_name(name))
        if twin is None or twin is parameter or not _equal(parameter, twin):
            continue
        freed += 0 if parameter.data_ptr() == twin.data_ptr() else parameter.nbytes
        parameter.data = twin.data
    return freed


def _network(scorer: Scorer) -> nn.Module | None:
    network = getattr(scorer, "_model", None)
    return network if isinstance(network, nn.Module) else None


def _base_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
