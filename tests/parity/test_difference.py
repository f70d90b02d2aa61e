"""How far two arrays are apart."""

from __future__ import annotations

import math

import numpy as np
import torch

from parity.difference import close, exact


def test_not_a_number_and_shapes_must_match_too() -> None:
    assert close("", "", [1.0, math.nan], [1.0, math.nan]).passed
    assert not close("", "", [1.0, 2.0], [1.0, math.nan], atol=9).passed
    assert not close("", "", [1.0, math.nan], [1.0, 2.0], atol=9).passed
    assert not close("", "", torch.ones(2, 1), torch.ones(2), atol=9).passed
    assert close("", "", [99.0, 1.0], [100.0, 1.0], rtol=0.01).passed
    assert not close("", "", [98.9, 1.0], [100.0, 1.0], rtol=0.01).passed
    assert exact("", "", [1, 2], [1, 2]).passed and not exact("", "", np.array([1, 2]), np.array([1, 3])).passed
