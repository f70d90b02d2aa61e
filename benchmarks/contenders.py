"""The usual ways to do the same work, which `benchmarks.training` compares the project with."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from robometer.configs.loading import from_dict
from robometer.corpus.corpus import Corpus
from robometer.models.attention import PackedCache
from robometer.models.checkpoint import build_collator, build_model
from robometer.models.collate import collate_targets
from robometer.models.images import QwenCutter
from robometer.models.processing import RobometerCollator, RobometerProcessor
from robometer.models.prompts import Chat, Control, preference_prompt, progress_prompt
from robometer.models.robometer import Robometer
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import ClipPlan, SamplePlan
from robometer.training.batch import Batch
from robometer.training.losses import compute_losses

Frames = Callable[[ClipPlan], Sequence[np.ndarray]]
"""From a clip to its frames uint8 [H, W, 3], in display order."""

_IMAGE = Control("<|image_pad|>")
_CONTENT = Chat((), (), (), _IMAGE, ())  # the template adds the turn and the marks around pictures

CHAT_TEMPLATE = """{%- set pictures = namespace(count=0) -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{%- set pictures.count = pictures.count + 1 -%}
{{- 'Picture ' ~ pictures.count ~ ': <|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}"""
"""The part of Qwen3-VL's template for a conversation with pictures, for machines without the real one."""


class HuggingFaceCollator:
    """Turns plans into padded tensors as upstream does, by transformers' image processor, chat template and tokenizer.

    Each shown frame becomes a PIL image, is resized as in `qwen_vl_utils`, and goes through the image processor. Each
    conversation is rendered, with image tokens repeated as in `Qwen3VLProcessor`, and all texts are tokenised and
    padded together. (That processor, and the faster image processor that upstream uses, need torchvision.)
    """

    def __init__(self, processor: RobometerProcessor, frames: Frames, template: str) -> None:
        self.processor, self.tokenizer, self.frames, self.template = processor, processor.tokenizer, frames, template
        self.tokenizer.padding_side = "right"
        self.cutter = cast(QwenCutter, processor.cutter)
        self.images: Any = Qwen2VLImageProcessorPil(
            patch_size=self.cutter.patch,
            merge_size=self.cutter.merge,
            temporal_patch_size=self.cutter.temporal,
            image_mean=list(self.cutter.mean),
            image_std=list(self.cutter.std),
        )

    def __call__(self, plans: Sequence[SamplePlan]) -> Batch:
        clips = [clip for sample in plans for clip in (sample.a, sample.b) if clip is not None]
        images = [self._resized(Image.fromarray(frame)) for clip in clips for frame in self.frames(clip)]
        inputs = dict(self.images(images=images, do_resize=False, return_tensors="pt"))
        sizes = iter((inputs["image_grid_thw"].prod(1) // self.cutter.merge**2).tolist())
        texts = [re.sub(re.escape(_IMAGE), lambda match: match[0] * next(sizes), self._render(p)) for p in plans]
        inputs |= dict(self.tokenizer(texts, padding=True, return_tensors="pt"))
        return collate_targets(plans, inputs)

    def _resized(self, image: Image.Image) -> Image.Image:
        height, width = self.cutter.size(image.height, image.width)
        return image.resize((width, height))

    def _render(self, sample: SamplePlan) -> str:
        if sample.b is None:
            parts = progress_prompt(sample.task, len(sample.a), _CONTENT)
        else:
            parts = preference_prompt(sample.task, len(sample.a), len(sample.b), True, _CONTENT)
        content = [{"type": "image"} if part is _IMAGE else {"type": "text", "text": str(part)} for part in parts]
        message: Any = [{"role": "user", "content": content}]
        rendered = self.tokenizer.apply_chat_template(
            message, chat_template=self.template, tokenize=False, add_generation_prompt=False, add_vision_id=True
        )
        return cast(str, rendered)


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], cutter: QwenCutter) -> float:
    """The largest difference in token ids, lengths, grids and vision-tower inputs between two forms of a batch."""
    images = ours["image"]
    pixels = cutter.pixels(ours["patches"]).split(ours["grid"].prod(1).tolist())
    pairs = [
        (ours["input_ids"], theirs["input_ids"][theirs["attention_mask"].bool()]),
        (ours["sequence_length"], theirs["attention_mask"].sum(1)),
        (ours["grid"][images], theirs["image_grid_thw"]),
        (torch.cat([pixels[i] for i in images.tolist()]), theirs["pixel_values"]),
    ]
    return max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs)


class NaiveCollator(RobometerCollator):
    """Sends every shown frame through the vision tower, even if it is shown several times."""

    _number = count()

    def _names(self, clip: ClipPlan) -> list[Hashable]:
        return [(clip.row, int(position), next(self._number)) for position in clip.positions]


class PaddedRobometer(Robometer):
    """Runs the language model as transformers does: on padded rows with a mask."""

    @classmethod
    def of(cls, model: Robometer) -> PaddedRobometer:
        """A copy of `model` with the same weights."""
        padded = copy.deepcopy(model)
        padded.__class__ = cls
        padded.model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
        return cast(PaddedRobometer, padded)

    def hidden_states(self, inputs: dict[str, Tensor], cache: PackedCache | None = None) -> Tensor:
        """See `Robometer.hidden_states`."""
        lengths = inputs["sequence_length"].tolist()
        features = self.family.features(self.model, self.cutter.pixels(inputs["patches"]), inputs["grid"])
        images = inputs["image"].tolist()
        features.pooler_output = [features.pooler_output[i] for i in images]
        features.deepstack_features = [[level[i] for i in images] for level in features.deepstack_features]
        ids = pad_sequence(list(inputs["input_ids"].split(lengths)), batch_first=True)  # [B, L]
        places = pad_sequence(list(inputs["position_ids"][1:].T.split(lengths)), batch_first=True)  # [B, L, 3]
        mask = pad_sequence([torch.ones(n, dtype=torch.int64) for n in lengths], batch_first=True)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places.permute(2, 0, 1),
            mm_encoder_outputs={"image": features},
            use_cache=False,
        )
        return cast(Tensor, output.last_hidden_state[mask.bool()])


def plain_loop(values: dict[str, Any], rates: Sequence[float]) -> tuple[list[float], list[float]]:
    """Losses and seconds of one step per learning rate, by PyTorch alone, on batches that were made beforehand.

    Args:
        values: a `Config` as a dictionary, which another process can receive.
    """
    torch.set_num_threads(1)
    config = from_dict(values)
    corpus, size = Corpus(config.corpus.path), config.train.batch_size
    index, collate = ManifestIndex.from_table(corpus.manifest, config.sampling), build_collator(config, corpus)
    plans = [plan(index, config.sampling, config.train.seed, i) for i in range(size * len(rates))]
    device = "cuda" if config.train.use_gpu else "cpu"
    batches = [collate(plans[i : i + size]).to(device) for i in range(0, len(plans), size)]
    model = build_model(config, corpus).to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=config.train.weight_decay)
    losses, seconds = [], []
    for batch, rate in zip(batches, rates, strict=True):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = compute_losses(model(batch), batch, config.loss, config.model.progress_loss).total
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.train.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return losses, seconds
