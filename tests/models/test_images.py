"""Our cutters equal the families' own image processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from robometer.errors import RobometerError
from robometer.models.backbones import BACKBONES
from robometer.models.images import QwenCutter, SquareCutter
from robometer.models.tiny import TINY, tiny_config, tiny_tokenizer
from tests.models.images import noise_clip

SIZES = [(64, 64), (50, 75), (240, 320), (130, 61), (30, 90), (16, 16)]


def _cutter(name: str) -> Any:
    return BACKBONES[TINY[name]].cutter(tiny_config(name, tiny_tokenizer()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["tiny", "tiny_qwen2_5_vl"])
def test_pixel_values_equal_qwens_image_processor(name: str, size: tuple[int, int]) -> None:
    cutter = _cutter(name)
    assert isinstance(cutter, QwenCutter)
    frames = noise_clip(0, 2, *size).frames
    patches, grid = cutter.cut(frames)
    factor = cutter.patch * cutter.merge
    reference = Qwen2VLImageProcessorPil(
        patch_size=cutter.patch,
        merge_size=cutter.merge,
        image_mean=list(cutter.mean),
        image_std=list(cutter.std),
        size={"shortest_edge": 4 * factor**2, "longest_edge": 16384 * factor**2},
    )([Image.fromarray(frame) for frame in frames], return_tensors="pt")
    assert np.array_equal(grid, reference["image_grid_thw"].numpy())
    assert torch.allclose(cutter.pixels(torch.from_numpy(patches)), reference["pixel_values"], atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_pixel_values_equal_smolvlms_image_processor(size: tuple[int, int]) -> None:
    cutter = _cutter("tiny_smolvlm")
    assert isinstance(cutter, SquareCutter)
    frames = noise_clip(0, 2, *size).frames
    patches, grid = cutter.cut(frames)
    edge = {"longest_edge": cutter.size}
    reference = SmolVLMImageProcessorPil(size=edge, max_image_size=edge)(
        [[Image.fromarray(frame) for frame in frames]], return_tensors="pt"
    )
    assert torch.allclose(cutter.pixels(torch.from_numpy(patches)), reference["pixel_values"][0], atol=1e-6)
    assert reference["pixel_attention_mask"].all() and (grid == [1, 8, 8]).all()


@pytest.mark.parametrize("size", [(1, 1), (48, 48), (80, 112), (1080, 1920), (9000, 9000), (40, 8000)])
def test_sizes_are_multiples_of_32_within_the_limits(size: tuple[int, int]) -> None:
    height, width = _cutter("tiny").size(*size)
    assert height % 32 == 0 and width % 32 == 0
    assert 4096 <= height * width <= 16777216


def test_a_frame_that_is_far_too_long_is_refused() -> None:
    with pytest.raises(RobometerError, match=r"10x2001 px \(height x width\) is too long"):
        _cutter("tiny").size(10, 2001)
