"""The memory that forward and backward passes of a batch take, counted on torch's meta device: no weights, no GPU.

The model runs as it does in training, but its floating-point tensors have shapes and no values. Every tensor that comes
and goes is counted, so that gradient checkpointing, adapters and frozen parts are in the number as they are in the run.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from robometer.training.batch import Batch
from robometer.training.config import LossConfig
from robometer.training.losses import compute_losses

_META = torch.device("meta")
_COPY = torch.ops.aten._to_copy.default
_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


def peak_bytes(model: nn.Module, batch: Batch, loss: LossConfig, progress_loss: str) -> int:
    """Most bytes of tensors at one time in a training step of `batch`, besides weights, buffers, inputs and gradients.

    Attention counts as a fused kernel: it keeps its inputs, its output, and a number for each query. What kernels use
    inside is not counted.

    Args:
        model: on the meta device, or on the CPU, where the same tensors are counted of a real step. It loses its
            gradients as they come, as under ZeRO.
        batch: on the CPU.
        progress_loss: see `compute_losses`.
    """
    inputs = _tensors([vars(batch), vars(batch.a), vars(batch.b)])
    counter = LiveTensors([*model.parameters(), *model.buffers(), *inputs])
    hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in model.parameters() if p.requires_grad]
    training = model.training
    try:
        with _fused_attention(), counter:
            compute_losses(model.train()(batch), batch, loss, progress_loss).total.backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return counter.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of living tensors, and runs a model on the meta device whose indices have values on the CPU.

    Whole numbers and truth values stay on the CPU: models read lengths and places from them. What is computed with a
    tensor of the meta device is on the meta device.

    Args:
        known: tensors that are there already, and are not counted.

    Attributes:
        live: bytes of the tensors that were made in the block and are still there.
        peak: the most that `live` was.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(leaf.is_meta for leaf in _tensors((args, kwargs))):
            if func in _INDEXING:
                args = (args[0], _places(args[1]), *args[2:])
            if func is _COPY:
                kwargs.pop("device", None)  # there are no values to bring to the CPU
            elif func is not torch.ops.aten.copy_.default:
                args, kwargs = tree_map(_on_meta, (args, kwargs))
        elif kwargs.get("device") == _META:
            made = func(*args, **kwargs | {"device": torch.device("cpu")})
            return self._counted(_on_meta(made) if made.is_floating_point() else made)
        return self._counted(func(*args, **kwargs))

    def _counted(self, result: Any) -> Any:
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if size and key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._gone, key, size))
                self.live += size
                self.peak = max(self.peak, self.live)
        return result

    def _gone(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self.live -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _on_meta(value: Any) -> Any:
    return value.to(_META) if isinstance(value, Tensor) and not value.is_meta else value


def _places(indices: Any) -> list[Any]:
    """Indices with masks as the places where they are true, since the meta device does not know how many there are."""
    places: list[Any] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool
        places.extend(index.nonzero(as_tuple=True) if is_mask else [index])
    return places


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps between forward and backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        query, key, value, *_rest = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextmanager
def _fused_attention() -> Iterator[None]:
    """In the block, attention on the meta device is `_Attention`, also where a backward pass runs it again.

    Torch would take its plain kernel there, which keeps a number for each pair of tokens.
    """
    real = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not query.is_meta:
            return real(query, key, value, attn_mask, *args, **kwargs)
        return _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
