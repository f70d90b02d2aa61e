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
    math: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention [1, N, heads, dim] of query [1, heads, N, dim] within each of the packed sequences.

    Without `sequence_lengths` the row is one sequence, and the queries are its last tokens: the keys before them come
    from a cache.
    """
    lengths = [query.shape[2]] if sequence_lengths is None else list(sequence_lengths)
    past = key.shape[2] - query.shape[2]
    lengths_k = [lengths[0] + past, *lengths[1:]]
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


def packed_kwargs(implementation: str, lengths: Tensor) -> dict[str, Any]:
    """Keyword arguments for the language model's attention over sequences with these lengths int64 [B]."""
    if implementation == "flash_attention_2":
        ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        longest = int(lengths.max())
        return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {"sequence_lengths": lengths.tolist()}
