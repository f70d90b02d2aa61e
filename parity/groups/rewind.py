"""Group d_rewind: outputs and gradients of ReWiND on embeddings, and on raw frames and text through its encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from parity.difference import close, exact
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from robometer.errors import RobometerError
from robometer.models.encoders import PoolerOutput, mean_pool
from robometer.models.rewind import Rewind
from robometer.models.rewind_scorer import clip_inputs
from robometer.training.batch import Batch, ClipTargets, RewardOutput

GROUP = "d_rewind"
_OUTPUT = {"atol": 1e-5, "rtol": 1e-5}
_GRADIENT = {"atol": 1e-12, "rtol": 1e-4}


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    for facts in read(recorded_set.folder / GROUP / "cases.json"):
        stem, case = str(recorded_set.folder / GROUP / facts["name"]), f"{GROUP}/{facts['name']}"
        weights, io = load_file(f"{stem}.weights.safetensors"), load_file(f"{stem}.io.safetensors")
        if facts["mode"] == "raw":
            io = _encoded(facts, weights, io)
            weights = {name: value for name, value in weights.items() if "_encoder." not in name}
        model = model_of(weights, facts).eval()
        shapes = {name: list(value.shape) for name, value in model.named_parameters()}
        if "params" in facts:
            expected = {name: shape for name, shape in facts["params"].items() if "_encoder." not in name}
            yield exact(case, "names and shapes of parameters", shapes, expected)
        for kind in sorted({key.rsplit(".", 1)[0] for key in io if "." in key}):
            yield from _outputs(f"{case}/{kind}", model, kind, io)
        if facts["mode"] != "raw":
            yield from _gradients(case, model, facts, io, load_file(f"{stem}.grads.safetensors"))


def model_of(weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Rewind:
    """A model with upstream's weights, its sizes read off them; every name and shape must fit."""
    layers = {name.split(".")[2] for name in weights if name.startswith("transformer.layers.")}
    model = Rewind(
        weights["video_proj.weight"].shape[1],
        weights["text_proj.weight"].shape[1],
        weights["video_proj.weight"].shape[0],
        len(layers),
        facts["num_attention_heads"],
        weights["prog_token_A"].shape[1] if "prog_token_A" in weights else facts["max_len"],
        weights["progress_head.4.weight"].shape[0],
        facts["progress_loss_type"],
        dropout=0.0,
        attention="causal" if facts["causal_mask"] else "full",
        per_frame_progress_token="prog_token_A" in weights,
    )
    model.load_state_dict(dict(weights), strict=True)
    return model


def batch_of(text: Tensor, a: Tensor, b: Tensor) -> Batch:
    """Clips of embeddings [B, T, D] without targets; an empty `b` where there are no pairs."""
    n = len(text)
    is_pair = torch.full((n,), b.shape[1] > 0)
    of_a, of_b = (ClipTargets(*(torch.ones(n, clip.shape[1], dtype=torch.bool),) * 5) for clip in (a, b))
    none = torch.zeros(n, dtype=torch.int64)
    return Batch(torch.arange(n), clip_inputs(text, list(a), list(b)), of_a, of_b, none.float(), is_pair, none)


def _run(model: Rewind, kind: str, io: Mapping[str, Tensor]) -> RewardOutput:
    """Recorded pairs hold A and then B on one time axis."""
    video = io[f"{kind}.video"]
    length = video.shape[1] // 2 if kind.startswith("preference") else video.shape[1]
    output: RewardOutput = model(batch_of(io[f"{kind}.text"], video[:, :length], video[:, length:]))
    return output


def _outputs(case: str, model: Rewind, kind: str, io: Mapping[str, Tensor]) -> Iterator[Row]:
    with torch.no_grad():
        output = _run(model, kind, io)
    values = {
        "progress_A": output.progress_logits,
        "progress_B": output.progress_logits_b,
        "success_A": output.success_logits,
        "success_B": output.success_logits_b,
        "pref": output.preference_logits,
    }
    for name, ours in values.items():
        theirs = io.get(f"{kind}.{name}")
        if theirs is not None and ours is not None:
            yield close(case, f"output {name}", ours.reshape(theirs.shape), theirs, **_OUTPUT)


def _gradients(
    case: str, model: Rewind, facts: Mapping[str, Any], io: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> Iterator[Row]:
    """Of the sum of squares of all outputs on the recorded pairs."""
    output = _run(model, "preference_B2T8", io)
    total = torch.stack([part.square().sum() for part in output if part is not None]).sum()
    total.backward()
    yield close(case, "sum of squared outputs", total, facts["grad_scalar"], **_OUTPUT)
    named = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    yield exact(case, "parameters with a gradient", sorted(named), sorted(facts["grad_params"]))
    for name, gradient in theirs.items():
        yield close(f"{case}/{name}", "gradient", named[name], gradient, **_GRADIENT)


def _encoded(facts: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Recorded outputs beside the embeddings that our encoders make of the recorded frames and tokens."""
    vision = _encoder(Dinov2Model, Dinov2Config(**facts["dinov2_config"]), "image_encoder.", weights)
    text = _encoder(BertModel, BertConfig(**facts["bert_config"]), "text_encoder.", weights)
    pixels, mask = io["pixel_values_videos"], io["attention_mask"]
    with torch.no_grad():
        frames = PoolerOutput(vision)(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        hidden = text(input_ids=io["input_ids"], attention_mask=mask).last_hidden_state
    kinds = {key.split(".")[0] for key in io if "." in key}
    inputs = {
        f"{kind}.{name}": x for kind in kinds for name, x in (("video", frames), ("text", mean_pool(hidden, mask)))
    }
    return {**io, **inputs}


def _encoder(kind: type[PreTrainedModel], config: PreTrainedConfig, prefix: str, weights: Mapping[str, Tensor]) -> Any:
    """Loaded as from a checkpoint file, since the names of some weights have changed with the library's versions."""
    disable_progress_bar()
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    loaded: Any = kind.from_pretrained(None, config=config, state_dict=own, output_loading_info=True)
    model, info = loaded
    faults = {name: keys for name, keys in info.items() if keys}
    if faults:
        raise RobometerError(f"the recorded weights of {prefix} do not fit: {faults}")
    return model.eval()
