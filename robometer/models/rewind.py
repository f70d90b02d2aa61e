"""ReWiND: a small transformer on frozen image and text embeddings (arXiv 2505.10911, sizes and keys as upstream)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robometer.batch import Batch, RewardOutput
from robometer.models.heads import RewardHeads


class Rewind(RewardHeads):
    """Progress, success and preference from embeddings of frames and task.

    The sequence is [task, f1, p1, f2, p2, ..., (the same for trajectory B), preference token]; heads read the
    progress tokens p, or the frames where `per_frame_progress_token` is off. `attention` says what a token sees:

    - `causal`: everything before it, as upstream; prediction t depends on frames 1..t.
    - `full`: everything, also later frames and the other trajectory (upstream without its causal mask).
    - `state`: the task and its own frame only, with no position, so that progress is judged from what the frame
      shows and cannot be told by counting frames. The preference is the preference head's value of A's last frame
      less that of B's (Bradley-Terry), so that swapping A and B swaps the answer exactly.

    With `standardise`, embeddings are brought to zero mean and unit variance by buffers that travel with the weights.

    Batch inputs: `text` [B, E], `embeddings_a` [B, Ta, D], `embeddings_b` [B, Tb, D] (Tb = 0 without pairs).
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        max_len: int,
        bins: int,
        progress_loss: str = "discrete",
        dropout: float = 0.1,
        attention: str = "causal",
        per_frame_progress_token: bool = True,
        standardise: bool = False,
    ) -> None:
        super().__init__(hidden_dim, progress_loss, bins, dropout)
        self.standardise = standardise
        if standardise:
            self.register_buffer("feature_mean", torch.zeros(image_dim))
            self.register_buffer("feature_std", torch.ones(image_dim))
        self.attention = attention
        self.max_len = max_len
        self.tokens_per_frame = 2 if per_frame_progress_token else 1
        self.video_proj = nn.Linear(image_dim, hidden_dim)
        self.text_proj = nn.Linear(text_dim, hidden_dim)
        layer = nn.TransformerEncoderLayer(
            hidden_dim, num_heads, dim_feedforward=4 * hidden_dim, dropout=dropout, batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.first_embedding_A = nn.Parameter(torch.randn(1, 1, hidden_dim))
        self.first_embedding_B = nn.Parameter(torch.randn(1, 1, hidden_dim))
        self.preference_token = nn.Parameter(torch.randn(1, 1, hidden_dim))
        if per_frame_progress_token:
            self.text_position_embedding = nn.Parameter(torch.randn(1, 1, hidden_dim))
            self.prog_token_A = nn.Parameter(torch.randn(1, max_len, hidden_dim))
            self.prog_token_B = nn.Parameter(torch.randn(1, max_len, hidden_dim))

    def forward(self, batch: Batch) -> RewardOutput:
        """Logits for every sample; clips are padded to the longest of the batch and masked.

        Raises:
            ValueError: a clip has more than `max_len` frames.
        """
        text = self.text_proj(batch.inputs["text"])[:, None]  # [B, 1, H]
        if self.tokens_per_frame == 2:
            text = text + self.text_position_embedding
        a = self._clip_tokens(batch.inputs["embeddings_a"], "A")  # [B, Ta * tokens_per_frame, H]
        b = self._clip_tokens(batch.inputs["embeddings_b"], "B")
        preference = self.preference_token.expand(len(text), -1, -1)
        visible = self._visible(batch.a.frame_mask, batch.b.frame_mask)  # [B, L, L]
        mask = torch.zeros(visible.shape, dtype=text.dtype, device=text.device).masked_fill(~visible, float("-inf"))
        heads = self.transformer.layers[0].self_attn.num_heads
        hidden = self.transformer(torch.cat([text, a, b, preference], 1), mask=mask.repeat_interleave(heads, 0))
        states_a, states_b = (
            self._frame_states(hidden, 1, a.shape[1]),
            self._frame_states(hidden, 1 + a.shape[1], b.shape[1]),
        )
        if self.attention == "state":
            last = torch.stack([_last(states_a, batch.a.frame_mask), _last(states_b, batch.b.frame_mask)])
            values = self.preference_head(last).squeeze(-1)  # [2, B]
            logits = values[0] - values[1]
        else:
            logits = self.preference_head(hidden[:, -1]).squeeze(-1)
        return RewardOutput(*self.frame_logits(states_a), *self.frame_logits(states_b), preference_logits=logits)

    def _clip_tokens(self, embeddings: Tensor, side: str) -> Tensor:
        if self.standardise:
            embeddings = (embeddings - self.feature_mean) / self.feature_std
        frames = self.video_proj(embeddings)
        batch, length, dim = frames.shape
        if length > self.max_len:
            raise ValueError(f"a clip of {length} frames is longer than model.max_len={self.max_len}")
        if self.attention != "state" and length:
            first = getattr(self, f"first_embedding_{side}")
            frames = torch.cat([frames[:, :1] + first, frames[:, 1:]], 1)
        if self.tokens_per_frame == 1:
            return frames
        # Without positions both sides share their tokens, so that A and B are judged alike.
        progress = self.prog_token_A if self.attention == "state" else getattr(self, f"prog_token_{side}")
        progress = progress[:, :1].expand(batch, length, dim) if self.attention == "state" else progress[:, :length]
        return torch.stack([frames, progress.expand(batch, length, dim)], 2).reshape(batch, 2 * length, dim)

    def _frame_states(self, hidden: Tensor, start: int, length: int) -> Tensor:
        return hidden[:, start + self.tokens_per_frame - 1 : start + length : self.tokens_per_frame]

    def _visible(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """Which token [B, query, key] sees which; padding is seen by no one but itself."""
        k = self.tokens_per_frame
        ones = frames_a.new_ones(len(frames_a), 1)
        pair = frames_b.any(1, keepdim=True)  # without a second trajectory there is no preference token to see
        valid = torch.cat([ones, frames_a.repeat_interleave(k, 1), frames_b.repeat_interleave(k, 1), pair], 1)
        frames = frames_a.shape[1] + frames_b.shape[1]
        # The moment of each token: 0 is the task, frames of A then of B count up, the last one is the preference token.
        moment = torch.cat([torch.zeros(1), torch.arange(1, frames + 1).repeat_interleave(k), torch.tensor([1e6])]).to(
            frames_a.device
        )
        position = torch.arange(len(moment), device=frames_a.device)
        if self.attention == "state":
            structure = (moment[:, None] == moment) | (moment == 0) | (moment[:, None] == 1e6)
        elif self.attention == "causal":
            structure = position[:, None] >= position
        else:
            structure = torch.ones_like(position[:, None] >= position)
        return (structure & valid[:, None]) | torch.eye(len(moment), dtype=torch.bool, device=frames_a.device)


def _last(states: Tensor, frame_mask: Tensor) -> Tensor:
    """State of the last frame of each clip [B, H]; zeros where there is none."""
    if states.shape[1] == 0:
        return states.new_zeros(states.shape[0], states.shape[2])
    index = (frame_mask.sum(1) - 1).clamp(min=0)
    return states[torch.arange(len(states), device=states.device), index] * frame_mask.any(1, keepdim=True)
