"""The quickstart's image encoder on one core: OpenVINO against torch, in batches as `embed` and `serve` make.

`python -m benchmarks.encoders`
"""

from __future__ import annotations

import argparse
import sys
import time
from unittest import mock

import numpy as np
import torch

from robometer import text
from robometer.models.encoders import ImageEncoder, image_encoder

NAME, ROUNDS = "efficientnet_lite0_grid", 7


def encoders() -> dict[str, ImageEncoder]:
    """The encoder in both runtimes."""
    openvino = image_encoder(NAME)
    with mock.patch.dict(sys.modules, {"openvino": None}):
        return {"openvino": openvino, "torch": image_encoder(NAME)}


def rate(encoder: ImageEncoder, frames: np.ndarray) -> float:
    """Frames per second, the median of some rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        encoder.encode(frames)
        seconds.append(time.perf_counter() - start)
    return len(frames) / float(np.median(seconds))


def main() -> None:
    """Print rates, their ratio and the largest difference of the vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    both, draws = encoders(), np.random.default_rng(0)
    rows = []
    for count, size in ((1, (240, 320)), (8, (240, 320)), (64, (240, 320)), (64, (160, 160))):
        frames = draws.integers(0, 255, (count, *size, 3), dtype=np.uint8)
        fast, slow = (rate(encoder, frames) for encoder in both.values())
        difference = np.abs(both["openvino"].encode(frames) - both["torch"].encode(frames)).max()
        if not difference < 1e-4:
            raise SystemExit(f"the vectors differ by {difference:.1e}")
        sizes = f"{count} of {size[0]}x{size[1]}"
        rows.append([sizes, f"{fast:.0f}", f"{slow:.0f}", f"{fast / slow:.2f}", f"{difference:.0e}"])
    print(text.table(["frames", "openvino/s", "torch/s", "ratio", "difference"], rows))


if __name__ == "__main__":
    main()
