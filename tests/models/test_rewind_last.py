"""The graph of a session's newest frame: the model's own numbers, by each of the two ways to run it."""

from __future__ import annotations

import sys

import pytest
import torch

from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.models.rewind_last import LastFrame, reach_of


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("progress_loss", ["discrete", "l2"])
@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_a_graph_gives_the_numbers_of_the_model(
    runtime: str, progress_loss: str, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    else:
        monkeypatch.setitem(sys.modules, "openvino", None)
    torch.manual_seed(0)
    some = [
        Rewind(24, 20, 32, 2, 4, 16, 10, progress_loss, attention="state", standardise=True, window=3).eval()
        for _ in range(members)
    ]
    model = RewindEnsemble(some) if members > 1 else some[0]
    reach = reach_of(model)
    assert reach == 5  # two layers, each of which looks back by two frames
    last, looks = LastFrame(model, reach), list[str]()
    last.register_forward_hook(lambda *_: looks.append("without a graph"))
    graph = last.graph(torch.zeros(1, 20), torch.zeros(1, reach, 24))
    looks.clear()
    for _ in range(3):
        text, embeddings = torch.randn(1, 20), torch.randn(1, reach, 24)
        answer = graph(text, embeddings)
        assert not looks
        with torch.inference_mode():
            assert answer == pytest.approx(last(text, embeddings).tolist(), abs=1e-6)
        looks.clear()
    assert answer != pytest.approx(graph(text, embeddings.flip(1)), abs=1e-4)
