"""Weights on disk: one safetensors file, or several with an index, under the names of the public checkpoints.

Everything here works tensor by tensor: names and shapes come from the files' headers, and a tensor is read when it is
put in its place. So a model is never in memory twice, and one that is spread over workers can be filled piece by piece.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robometer.errors import RobometerError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_SIZE = "5GB"
MODEL_FILES = ("*.safetensors", "*.json", "*.yaml", "*.txt", "*.model", "*.jinja")
"""The files of a model and its tokenizer, in our layout and in others."""

EMBEDDING = re.compile(r"(^|\.)embed_tokens\.weight$")
"""The token embedding, wherever a backbone keeps it."""

_HEADS = r"(?:progress_head|preference_head|success_head|similarity_head|frame_pool_attn)\."
_ONE_LEVEL_DEEPER = re.compile(rf"^model\.(?={_HEADS}|model\.|lm_head\.)")
_IGNORED = re.compile(r"^(?:similarity_head|lm_head)\.")
_POOLING = "frame_pool_attn.weight"
_SHOWN = 6


class CheckpointError(RobometerError):
    """A checkpoint cannot be found, loaded or saved; the message says why."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies (`key` in `file`), its shape, and its data type in safetensors' words (BF16, F32)."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Match:
    """How the tensors of a checkpoint fit a model, by our names.

    Attributes:
        missing: in the model, not in the checkpoint.
        unexpected: in the checkpoint, not in the model.
        misshaped: name, shape in the model, and shape in the checkpoint.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def problems(self) -> str:
        """What does not fit, in words; empty if everything fits."""
        shapes = [f"{name} (model {ours}, checkpoint {theirs})" for name, ours, theirs in self.misshaped]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": shapes}
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)


def our_name(key: str) -> str:
    """The name of a tensor in the public layout.

    `lerobot/Robometer-4B` stores the class with a language-model head, one `model.` deeper; some exports put the heads
    there as well.
    """
    while (shorter := _ONE_LEVEL_DEEPER.sub("", key)) != key:
        key = shorter
    return key


def match(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()
) -> Match:
    """Compare shapes by name; heads that none of our models have are ignored."""
    unexpected = tuple(name for name in stored if name not in expected and not _IGNORED.match(name))
    missing = tuple(name for name in expected if name not in stored and name not in optional)
    shapes = [(name, tuple(shape), tuple(stored[name])) for name, shape in expected.items() if name in stored]
    return Match(missing, unexpected, tuple(entry for entry in shapes if entry[1] != entry[2]))


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in order.

    Raises:
        CheckpointError: there are none, the index cannot be read, or files that it names are missing.
    """
    path = Path(folder)
    if not (path / INDEX).is_file():
        if not (path / WEIGHTS).is_file():
            raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")
        return [path / WEIGHTS]
    try:
        names = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/{INDEX} cannot be read: {error}") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{folder}/{INDEX} names files outside its folder: {_some(outside)}")
    if absent := [name for name in names if not (path / name).is_file()]:
        raise CheckpointError(f"{folder} is incomplete: of {len(names)} shards, these are missing: {_some(absent)}")
    return [path / name for name in names]


def slots(folder: str | Path) -> dict[str, Slot]:
    """Every tensor of a checkpoint folder by our name, from the headers alone.

    Raises:
        CheckpointError: a file is damaged, or two tensors have the same name.
    """
    slots: dict[str, Slot] = {}
    for file in weight_files(folder):
        for name, slot in _header(file):
            if name in slots:
                raise CheckpointError(f"{folder} holds {name} twice: as {slots[name].key} and as {slot.key}")
            slots[name] = slot
    return slots


def _header(file: Path) -> list[tuple[str, Slot]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            # Tensors that share memory (a tied head and embedding) are stored once; the header names the stored key.
            keys = {key: key for key in tensors.keys()}  # noqa: SIM118 - not a mapping
            keys |= {alias: key for alias, key in (tensors.metadata() or {}).items() if key in keys}
            views = {alias: tensors.get_slice(key) for alias, key in keys.items()}
            return [
                (our_name(key), Slot(file, keys[key], tuple(view.get_shape()), str(view.get_dtype())))
                for key, view in views.items()
            ]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def iter_weights(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Stream (our name, tensor) of a checkpoint folder, file by file; heads that none of our models have are ignored.

    Raises:
        CheckpointError: as `slots`.
    """
    by_file: dict[Path, list[tuple[str, Slot]]] = {}
    for name, slot in slots(folder).items():
        if not _IGNORED.match(name):
            by_file.setdefault(slot.file, []).append((name, slot))
    for file, entries in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name, slot in entries:
                yield name, tensors.get_tensor(slot.key)


def shapes_of(model: nn.Module, names: Collection[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the tensors in a checkpoint of `model`: all of them, or those in `names`."""
    state = model.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if names is None or name in names}


def optional_of(model: nn.Module) -> set[str]:
    """Tensors that a checkpoint of `model` may lack: the attention over a frame's tokens, if unused."""
    return {name for name, p in model.named_parameters() if name == _POOLING and not p.requires_grad}


def check_fit(model: nn.Module, folder: str | Path, names: Collection[str] | None = None) -> None:
    """Compare the headers of a checkpoint folder with the model, or with its tensors in `names`.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshaped; the message names them.
    """
    stored = {name: slot.shape for name, slot in slots(folder).items()}
    if problems := match(shapes_of(model, names), stored, optional_of(model)).problems:
        raise CheckpointError(f"{folder} does not fit the model that its configuration describes: {problems}")


@torch.no_grad()
def fill(model: nn.Module, folder: str | Path, names: Collection[str] | None = None) -> None:
    """Fill a model, on the meta device or any other, with the weights of a checkpoint folder, strictly.

    With `names`, the folder must hold exactly these tensors. Each tensor is put into the model (in the model's data
    type) before the next one is read.

    Raises:
        CheckpointError: as `check_fit`; the model is then unchanged.
    """
    check_fit(model, folder, names)
    ours, filled = model.state_dict(), set()
    for name, tensor in iter_weights(folder):
        # Copied out of the mapped file, where it is not aligned for kernels (which also changes the last bit).
        _assign(model, name, tensor.to(ours[name].dtype, copy=True))
        filled.add(name)
    for name, empty in ours.items():
        if empty.is_meta and name not in filled:  # optional: nothing reads it
            _assign(model, name, torch.zeros(empty.shape, dtype=empty.dtype))
    _restore_buffers(model)


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    old = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def _restore_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds: rotary frequencies, in float32 whatever the weights are."""
    for name, module in model.named_modules():
        buffers = {key: buffer for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        if not buffers:
            continue
        config: Any = getattr(module, "config", None)
        if config is None:
            raise CheckpointError(
                f"the buffers of {name} are in no checkpoint and cannot be computed: {_some(list(buffers))}"
            )
        fresh = dict(type(module)(config).named_buffers(recurse=False))
        for key in buffers:
            setattr(module, key, fresh[key])


def save_weights(folder: str | Path, state: Mapping[str, Tensor], max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
    """Write `model.safetensors` or, above `max_shard_size` (bytes, or text such as "5GB"), shards with an index."""
    save_torch_state_dict(
        {name: tensor.detach() for name, tensor in state.items()}, folder, max_shard_size=max_shard_size
    )
    for file in weight_files(folder):  # safetensors makes them private, whatever the folder's mode
        file.chmod(Path(folder).stat().st_mode & 0o666)


def weights_hash(folder: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of the weights, all files in order: the model's revision."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        _read_into(digest, file)
    return digest.hexdigest()[:12]


def folder_hash(folder: str | Path) -> str:
    """First 12 hex digits of the SHA-256 of all `MODEL_FILES` of a folder of any layout, names and contents."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in MODEL_FILES for file in Path(folder).glob(pattern) if file.is_file()}):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        _read_into(digest, file)
    return digest.hexdigest()[:12]


def _read_into(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 22), b""):
            digest.update(chunk)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
