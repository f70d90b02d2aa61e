import pytest
import torch

from parity.groups.logged import spearman


@pytest.mark.parametrize(("lean", "correlation"), [(None, 0.5), (-1, 0.5), (0, 0.75**0.5), (1, 1.0)])
def test_predictions_that_are_almost_equal_rank_as_they_lean(lean: int | None, correlation: float) -> None:
    prediction = torch.tensor([[0.1, 0.1 + 5e-6, 0.5]])
    target = torch.tensor([[0.2, 0.1, 0.9]])
    assert spearman(prediction, target, torch.ones(1, 1), lean).item() == pytest.approx(correlation, abs=1e-6)


def test_predictions_further_apart_rank_as_they_are() -> None:
    prediction = torch.tensor([[0.1, 0.1 + 5e-5, 0.5]])
    target = torch.tensor([[0.2, 0.1, 0.9]])
    assert [spearman(prediction, target, torch.ones(1, 1), lean).item() for lean in (-1, 0, 1)] == pytest.approx(
        [0.5] * 3
    )
