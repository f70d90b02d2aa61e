"""The three heads of every reward model, with the keys of the public checkpoints."""

from __future__ import annotations

from torch import Tensor, nn


def head(dim: int, out: int, dropout: float, sigmoid: bool = False) -> nn.Sequential:
    """Linear, LayerNorm, GELU, dropout, linear (and sigmoid); keys 0, 1 and 4 hold weights (upstream heads.py)."""
    layers = [
        nn.Linear(dim, dim // 2),
        nn.LayerNorm(dim // 2),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(dim // 2, out),
    ]
    return nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid else []))


class RewardHeads(nn.Module):
    """Base class of reward models: `progress_head`, `success_head` and `preference_head` on hidden states [..., dim].

    Args:
        dim: size of the hidden states.
        progress_loss: `discrete` gives `bins` logits per frame; `l1` and `l2` give one value in [0, 1].
    """

    def __init__(self, dim: int, progress_loss: str, bins: int, dropout: float) -> None:
        super().__init__()
        discrete = progress_loss == "discrete"
        self.progress_head = head(dim, bins if discrete else 1, dropout, sigmoid=not discrete)
        self.preference_head = head(dim, 1, dropout)
        self.success_head = head(dim, 1, dropout)

    def frame_logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Progress [B, T, K] and success [B, T] logits of frame states [B, T, dim]."""
        return self.progress_head(hidden), self.success_head(hidden).squeeze(-1)
