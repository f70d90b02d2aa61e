"""Attention over packed sequences: samples of any length, one after another in one row, without padding.

Registered with transformers as `packed` and `packed_math`, for the causal language models of all backbones. Each
sample runs through torch's scaled dot-product attention as a causal sequence of its own: there is no mask and no work
on padding, and samples cannot see each other. With `flash_attention_2`, transformers' variable-length kernel does the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, bias, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

IMPLEMENTATIONS = {"sdpa": "packed", "eager": "packed_math", "flash_attention_2": "flash_attention_2"}
"""By `model.attn_implementation`, the name that the language model gets; `eager` is torch's plain kernel."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequence_lengths: Sequence[int] | None = None,
    key_lengths: Sequence[int] | None = None,
    math: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention [1, N, heads, dim] of query [1, heads, N, dim] within each of the packed sequences.

    Where a sequence has more keys (`key_lengths`) than queries (`sequence_lengths`), the queries are its last tokens,
    and the keys before them come from a cache. Without lengths the row is one sequence.
    """
    lengths = [query.shape[2]] if sequence_lengths is None else list(sequence_lengths)
    lengths_k = [key.shape[2]] if sequence_lengths is None else list(key_lengths or lengths)
    parts = zip(query.split(lengths, 2), key.split(lengths_k, 2), value.split(lengths_k, 2), strict=True)
    with sdpa_kernel(SDPBackend.MATH) if math else nullcontext():
        outputs = [_causal(q, k, v, dropout, scaling) for q, k, v in parts]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    length, length_k = query.shape[2], key.shape[2]
    mask = bias.causal_lower_right(length, length_k) if length != length_k and length > 1 else None
    if mask is not None:  # with a mask, torch's kernels need as many heads of keys as of queries
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=length == length_k,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


AttentionInterface.register("packed", packed_attention)
AttentionInterface.register("packed_math", partial(packed_attention, math=True))


def packed_kwargs(implementation: str, lengths: Tensor, past: Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments for the language model's attention over sequences with these lengths int64 [B].

    Args:
        past: int64 [B], how many keys of each sequence come from a `PackedCache`.
    """
    keys = lengths if past is None else lengths + past
    if implementation == "flash_attention_2":
        ends, ends_k = (nn.functional.pad(n.cumsum(0), (1, 0)).int() for n in (lengths, keys))
        longest = {"max_length_q": int(lengths.max()), "max_length_k": int(keys.max())}
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends_k, **longest}
    return {"sequence_lengths": lengths.tolist(), "key_lengths": keys.tolist()}


KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values [1, heads, L, dim] of the L tokens of one sequence, for each layer."""


class PackedCache:
    """Stands in for transformers' `Cache`: puts the keys and values of earlier tokens before those of the new ones.

    Args:
        past: of each of the packed sequences; an empty list for one that starts.
        lengths: the number of new tokens of each.

    Attributes:
        grown: of each sequence, past and new, once the language model has run.
    """

    def __init__(self, past: Sequence[KeyValues], lengths: Sequence[int]) -> None:
        self._past, self._lengths = past, list(lengths)
        self.grown: list[KeyValues] = [[] for _ in past]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all sequences, packed, for a layer."""
        for past, grown, *new in zip(
            self._past, self.grown, key.split(self._lengths, 2), value.split(self._lengths, 2), strict=True
        ):
            grown.append(tuple(torch.cat([*([past[layer][i]] if past else []), new[i]], 2) for i in (0, 1)))  # type: ignore[arg-type]
        keys, values = (torch.cat([grown[layer][i] for grown in self.grown], 2) for i in (0, 1))
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        """Zero: positions are given, and no mask is made."""
        return 0
