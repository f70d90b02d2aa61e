"""ReWiND: a small transformer on frozen image and text embeddings (arXiv 2505.10911; sizes and keys as upstream)."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor, nn

from robometer.models.heads import RewardHeads
from robometer.training.batch import Batch, RewardOutput, progress_from_logits

VALUE_OF_PROGRESS = 5.0
VALUE_OF_SUCCESS = 0.25
"""Weights of progress (0 to 1) and of the success logit in a frame's value with `attention=state`. In 450 steps on an
earlier bundled corpus (one seed) they raised tau of new clips from 0.77 to 0.82 and preference accuracy from 0.91 to
0.92."""


class Rewind(RewardHeads):
    """Progress, success and preference from embeddings of frames and task.

    The sequence is [task, f1, p1, f2, p2, ..., (the same for trajectory B), preference token]. The heads read the
    progress tokens p, or the frames if `per_frame_progress_token` is off. `attention` says which tokens a token sees:

    - `causal`: all tokens before it, as upstream; prediction t depends on frames 1..t.
    - `full`: all tokens, also later frames and the other trajectory (upstream without its causal mask).
    - `state`: the task, its own frame and (in each layer) the `window - 1` frames before it. There are no positions, so
      that progress is judged by what the frames show and not by counting them (only the first frames, whose window is
      cut short, can be told apart). A frame's value is the output of the preference head plus its progress and success
      (`VALUE_OF_PROGRESS`, `VALUE_OF_SUCCESS`), so that pairs train all three heads and the heads agree. The value of
      a trajectory is that of its last frame plus the mean over frames. The preference is the value of A minus that of B
      (Bradley-Terry), so that swapping A and B swaps the answer exactly.

    With `standardise`, embeddings get zero mean and unit variance: those of frames per dimension, by buffers that are
    stored with the weights, and those of a task over its dimensions.

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
        window: int = 1,
    ) -> None:
        super().__init__(hidden_dim, progress_loss, bins, dropout)
        self.standardise = standardise
        if standardise:
            self.register_buffer("feature_mean", torch.zeros(image_dim))
            self.register_buffer("feature_std", torch.ones(image_dim))
        self.image_dim, self.attention = image_dim, attention
        self.max_len = max_len
        self.window = window
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
        """Logits of every sample; clips are padded to the longest in the batch and masked.

        Raises:
            ValueError: a clip has more than `max_len` frames.
        """
        text = batch.inputs["text"]
        if self.standardise:  # sentence embeddings have unit length, which is tiny beside the other tokens
            text = nn.functional.layer_norm(text, text.shape[-1:])
        text = self.text_proj(text)[:, None]  # [B, 1, H]
        if self.tokens_per_frame == 2:
            text = text + self.text_position_embedding
        a = self._clip_tokens(batch.inputs["embeddings_a"], "A")  # [B, Ta * tokens_per_frame, H]
        b = self._clip_tokens(batch.inputs["embeddings_b"], "B")
        preference = self.preference_token.expand(len(text), -1, -1)
        visible = self._visible(batch.a.frame_mask, batch.b.frame_mask)  # [B, L, L]
        mask = torch.zeros(visible.shape, dtype=text.dtype, device=text.device).masked_fill(~visible, float("-inf"))
        heads = self.transformer.layers[0].self_attn.num_heads
        hidden = self.transformer(torch.cat([text, a, b, preference], 1), mask=mask.repeat_interleave(heads, 0))
        states_a = self._frame_states(hidden, 1, a.shape[1])
        states_b = self._frame_states(hidden, 1 + a.shape[1], b.shape[1])
        of_a, of_b = self.frame_logits(states_a), self.frame_logits(states_b)
        if self.attention == "state":
            a_value = _clip_value(self._frame_values(states_a, *of_a), batch.a.frame_mask)
            logits = a_value - _clip_value(self._frame_values(states_b, *of_b), batch.b.frame_mask)
        else:
            logits = self.preference_head(hidden[:, -1]).squeeze(-1)
        return RewardOutput(*of_a, *of_b, preference_logits=logits)

    def _frame_values(self, states: Tensor, progress_logits: Tensor, success_logits: Tensor) -> Tensor:
        value: Tensor = self.preference_head(states).squeeze(-1)  # [B, T]
        return value + VALUE_OF_PROGRESS * progress_from_logits(progress_logits) + VALUE_OF_SUCCESS * success_logits

    def _clip_tokens(self, embeddings: Tensor, side: str) -> Tensor:
        if self.standardise:
            embeddings = (embeddings - self.feature_mean) / self.feature_std
        frames: Tensor = self.video_proj(embeddings)
        batch, length, dim = frames.shape
        if length > self.max_len:
            raise ValueError(f"a clip of {length} frames is longer than model.max_len={self.max_len}")
        if self.attention != "state" and length:
            first = getattr(self, f"first_embedding_{side}")
            frames = torch.cat([frames[:, :1] + first, frames[:, 1:]], 1)
        if self.tokens_per_frame == 1:
            return frames
        # Without positions, both sides share their tokens, so that A and B are judged alike.
        progress = self.prog_token_A if self.attention == "state" else getattr(self, f"prog_token_{side}")
        progress = progress[:, :1].expand(batch, length, dim) if self.attention == "state" else progress[:, :length]
        return torch.stack([frames, progress.expand(batch, length, dim)], 2).reshape(batch, 2 * length, dim)

    def _frame_states(self, hidden: Tensor, start: int, length: int) -> Tensor:
        return hidden[:, start + self.tokens_per_frame - 1 : start + length : self.tokens_per_frame]

    def _visible(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """Which tokens see which, bool [B, query, key]; a padding token is visible only to itself."""
        k, state = self.tokens_per_frame, self.attention == "state"
        ones = frames_a.new_ones(len(frames_a), 1)
        pair = frames_b.any(1, keepdim=True)  # without a second trajectory, the preference token is hidden
        valid = torch.cat([ones, frames_a.repeat_interleave(k, 1), frames_b.repeat_interleave(k, 1), pair], 1)
        length_a, length_b = k * frames_a.shape[1], k * frames_b.shape[1]
        position = torch.arange(valid.shape[1], device=valid.device)
        if state:
            structure = self._state_structure(position, length_a, length_b)
        elif self.attention == "causal":
            structure = position[:, None] >= position
        else:
            structure = torch.ones_like(position[:, None] >= position)
        return (structure & valid[:, None]) | torch.eye(len(position), dtype=torch.bool, device=valid.device)

    def _state_structure(self, position: Tensor, length_a: int, length_b: int) -> Tensor:
        """`_visible` for `state`, of the tokens [task, A, B, preference token]; the last one is not used."""
        frame = (position - 1).div(self.tokens_per_frame, rounding_mode="floor")
        side = (position > length_a).long() + (position > length_a + length_b)
        ago = frame[:, None] - frame
        return (position == 0) | (side[:, None] == side) & (ago >= 0) & (ago < self.window)


class RewindEnsemble(nn.Module):
    """Several `Rewind` models that differ in their initial weights and in the samples that they learn from.

    In training, each sample goes to one member by its `sample_index`, so to the same one for any number of workers. In
    evaluation, the answer is the mean of all members' logits. On the bundled corpus (400 steps, seeds 42 and 1), two
    members with 40 samples a step each got 0.965 and 0.957 of the pairs of seen tasks right, one member with 96 samples
    0.945 and 0.952; VOC of held-out tasks was 0.90 and 0.88 against 0.52 and 0.44.
    """

    def __init__(self, members: Sequence[Rewind]) -> None:
        super().__init__()
        self.members, self.image_dim = nn.ModuleList(members), members[0].image_dim

    def forward(self, batch: Batch) -> RewardOutput:
        """As `Rewind.forward`, with its errors."""
        if not self.training:
            answers = [member(batch) for member in self.members]
            return RewardOutput(*(torch.stack(part).mean(0) for part in zip(*answers, strict=True)))
        # Each member also answers the first sample, and that answer is dropped, so that no member lacks gradients.
        members, count = len(self.members), len(batch.sample_index)
        sample = torch.cat([torch.arange(count), torch.zeros(members, dtype=torch.int64)]).to(batch.sample_index.device)
        member = member_of(batch.sample_index[sample], members)
        member[count:] = torch.arange(members)
        rows = [(member == k).nonzero().squeeze(1) for k in range(members)]
        answers = [net(batch.map(itemgetter(sample[at]))) for net, at in zip(self.members, rows, strict=True)]
        place = torch.cat(rows).argsort()[:count]
        return RewardOutput(*(torch.cat(part)[place] for part in zip(*answers, strict=True)))


def member_of(sample_index: Tensor, members: int) -> Tensor:
    """Which of `members` learns from each sample, int64 [B].

    Multiples of the golden ratio (in units of 2^-32) spread samples evenly, whatever the period with which their kinds
    repeat.
    """
    return (sample_index * 0x9E3779B1 % 2**32 * members) >> 32


def _clip_value(values: Tensor, frame_mask: Tensor) -> Tensor:
    """The value of the last frame plus the mean over frames [B], from values [B, T]; 0 without frames."""
    if values.shape[1] == 0:
        return values.new_zeros(len(values))
    count = frame_mask.sum(1)
    last = values[torch.arange(len(values), device=values.device), (count - 1).clamp(min=0)]
    mean = (values * frame_mask).sum(1) / count.clamp(min=1)
    return (last + mean) * (count > 0)
