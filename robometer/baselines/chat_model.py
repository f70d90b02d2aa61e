"""Vision-language models of transformers that run in this process and answer in words.

Our own code (`robometer.models`) tokenises prompts and cuts pictures, as for Robometer itself: its results equal those
of the authors' processors, it needs no torchvision, and no task can forge a control token. A video goes in as pictures
of a few frames each, as in Qwen3-VL; families without time captions see these pictures in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from robometer.baselines.asking import Prompt, PromptVideo
from robometer.baselines.config import BaselineConfig
from robometer.models.backbones import backbone_of
from robometer.models.images import QwenCutter
from robometer.models.processing import PromptTokenizer
from robometer.models.prompts import chat_prompt
from robometer.models.sources import locate
from robometer.models.tiny import TINY, tiny_config, tiny_tokenizer
from robometer.scoring import OneAtATime, one_at_a_time
from robometer.settings import ConfigError


@dataclass(frozen=True)
class Tokens:
    """One prompt as the model reads it.

    Attributes:
        ids: int64 [L].
        positions: int64 [4, L]: place in the prompt, then time, row and column for the rotary embedding.
        identity: int64 [L]: the id, or -1 - i for a token of picture i of the batch. The model's states agree as long
            as two prompts agree from the start.
        pictures: the number in the batch of each picture, in order.
    """

    ids: np.ndarray
    positions: np.ndarray
    identity: np.ndarray
    pictures: list[int]

    def followed_by(self, ids: np.ndarray) -> Tokens:
        """The prompt with text tokens appended."""
        positions = self.positions[:, -1:] + 1 + np.arange(len(ids))
        return Tokens(
            np.concatenate([self.ids, ids]),
            np.concatenate([self.positions, positions], 1),
            np.concatenate([self.identity, ids]),
            self.pictures,
        )


class ChatModel(OneAtATime):
    """A vision-language model and its tokenizer.

    Calls are independent, and a call batches its prompts in their order. So a scorer that asks for one clip at a time
    gets the same numbers whatever the other clips are.

    Args:
        model: a model of a family in `robometer.models.backbones`, with its language-modelling head.
        batch_size: prompts that are answered at once.
        max_new_tokens: most tokens of an answer.
        bounds: fewest and most px of a picture (Qwen's families); None for 4 and 16384 features.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        max_new_tokens: int = 128,
        bounds: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.family = model.eval(), tokenizer, backbone_of(model.config)
        cutter = self.family.cutter(model.config)
        self._cutter = replace(cutter, bounds=bounds) if isinstance(cutter, QwenCutter) else cutter
        self._prompts = PromptTokenizer(tokenizer, self.family)
        self._batch_size = batch_size
        ends = tokenizer.convert_tokens_to_ids([str(self.family.chat.closing[0])])
        self._end = sorted({*cast(list[int], ends), cast(int, tokenizer.eos_token_id)})
        # Replaces the checkpoint's own settings, which sample; calls take what they do not set from here.
        model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=self._end, pad_token_id=self._end[0]
        )

    @one_at_a_time
    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt by greedy decoding."""
        groups = (prompts[i : i + self._batch_size] for i in range(0, len(prompts), self._batch_size))
        return [answer for group in groups for answer in self._ask(group)]

    @torch.inference_mode()
    def _ask(self, prompts: Sequence[Prompt]) -> list[str]:
        inputs = self.padded(*self.read(prompts))
        answers = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True)

    @one_at_a_time
    @torch.inference_mode()
    def log_prob(self, prompts: Sequence[Prompt], word: str) -> np.ndarray:
        """Log-probability float64 [N] that the answer to each prompt begins with `word`.

        All prompts go through the model at once, as a tree: the beginning that a prompt shares with the one before it
        is computed once. This is exact and, for prefixes of a clip, saves nearly all of the work.
        """
        ids = self._prompts.text_ids(word)
        tokens, features = self.read(prompts)
        tree = Tree.of([prompt.followed_by(ids[:-1]) for prompt in tokens])
        read_out = np.stack([path[-len(ids) :] for path in tree.paths])  # [N, W]
        logits = self.model(
            **self._tensors(tree.ids[None], tree.positions[:, None]),
            attention_mask=self._put(tree.sees)[None, None],
            mm_encoder_outputs={"image": self._features_of(features, tree.pictures)},
            logits_to_keep=self._put(read_out.ravel()),
            use_cache=False,
        ).logits[0]
        log_probs = logits.double().log_softmax(-1).view(*read_out.shape, -1)  # [N, W, V]
        total: np.ndarray = log_probs[:, range(len(ids)), ids].sum(1).cpu().numpy()
        return total

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt]) -> tuple[list[Tokens], Any]:
        """Tokens of the prompts, up to the start of the answer, and the features of their distinct pictures."""
        numbers: dict[tuple[Any, bytes], int] = {}
        cut: list[tuple[np.ndarray, np.ndarray]] = []
        turns: list[tuple[list[str], list[int]]] = []
        for prompt in prompts:
            content, pictures = self._content(prompt)
            keys = [(frames.shape, frames.tobytes()) for frames in pictures]
            for key, frames in zip(keys, pictures, strict=True):
                if key not in numbers:
                    numbers[key] = len(numbers)
                    cut.append(self._cutter.cut_moment(frames))
            turns.append((chat_prompt(content, self.family.chat), [numbers[key] for key in keys]))
        patches, grid = (np.concatenate(parts) for parts in zip(*cut, strict=True))
        size = self._cutter.features(grid)
        features = self.family.features(self.model.model, self._cutter.pixels(self._put(patches)), self._put(grid))
        return [self._tokens(parts, of_turn, size) for parts, of_turn in turns], features

    def _content(self, prompt: Prompt) -> tuple[list[str], list[np.ndarray]]:
        """The parts of the user's turn, and its pictures uint8 [t, H, W, 3] of t frames each."""
        chat, parts, pictures = self.family.chat, list[str](), list[np.ndarray]()
        for part in prompt:
            if isinstance(part, str):
                parts.append(part)
                continue
            for caption, frames in self._moments(part) if isinstance(part, PromptVideo) else [("", part[None])]:
                parts += [*([caption] if caption else []), *chat.before, chat.image, *chat.after]
                pictures.append(frames)
        return parts, pictures

    def _moments(self, video: PromptVideo) -> Iterator[tuple[str, np.ndarray]]:
        """Captions (the mean time of t frames, even if the last ones are missing) and pictures of a video, as in
        qwen_vl_utils 0.0.14."""
        size = self._cutter.temporal
        for start in range(0, len(video.frames), size):
            seconds = (start + (size - 1) / 2) / video.fps
            yield self.family.chat.moment.format(seconds=seconds), video.frames[start : start + size]

    def _tokens(self, parts: Sequence[str], pictures: list[int], size: np.ndarray) -> Tokens:
        prompted = self._prompts.tokenise(parts, size[pictures])
        identity = prompted.ids.copy()
        for number, at in zip(pictures, prompted.frame_tokens, strict=True):
            identity[at] = -1 - number
        place = np.arange(len(identity))[None]
        return Tokens(prompted.ids, np.concatenate([place, prompted.positions]), identity, pictures)

    def padded(self, tokens: Sequence[Tokens], features: Any) -> dict[str, Any]:
        """Model inputs of a batch of prompts, padded on the left."""
        length = max(len(prompt.ids) for prompt in tokens)
        ids = np.full((len(tokens), length), self._end[0], dtype=np.int64)
        mask, positions = np.zeros_like(ids), np.zeros((4, *ids.shape), dtype=np.int64)
        for row, prompt in enumerate(tokens):
            at = slice(length - len(prompt.ids), None)
            ids[row, at], mask[row, at], positions[:, row, at] = prompt.ids, 1, prompt.positions
        pictures = [number for prompt in tokens for number in prompt.pictures]
        return self._tensors(ids, positions) | {
            "attention_mask": self._put(mask),
            "mm_encoder_outputs": {"image": self._features_of(features, pictures)},
        }

    def _tensors(self, ids: np.ndarray, positions: np.ndarray) -> dict[str, Tensor]:
        spatial = self.family.spatial_positions
        return {"input_ids": self._put(ids), "position_ids": self._put(positions if spatial else positions[0])}

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.model.device)

    @staticmethod
    def _features_of(features: Any, pictures: Sequence[int]) -> Any:
        """Features of the pictures in the order of their tokens; each picture was encoded once."""
        ordered = type(features)(pooler_output=[features.pooler_output[i] for i in pictures])
        if getattr(features, "deepstack_features", None) is not None:
            ordered.deepstack_features = [[level[i] for i in pictures] for level in features.deepstack_features]
        return ordered


@dataclass(frozen=True)
class Tree:
    """Prompts in one row, each without the beginning that it shares with the prompt before it.

    Attributes:
        ids, positions: int64 [N] and [4, N].
        sees: bool [N, N], whether a token attends to another.
        paths: for each prompt, the places of its tokens in the row.
        pictures: the number in the batch of each picture in the row.
    """

    ids: np.ndarray
    positions: np.ndarray
    sees: np.ndarray
    paths: list[np.ndarray]
    pictures: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Tokens]) -> Tree:
        """The tree of prompts; it is small if neighbours share long beginnings."""
        paths, shared_lengths, pictures, total = list[np.ndarray](), list[int](), list[int](), 0
        for i, prompt in enumerate(prompts):
            shared = _common(prompts[i - 1].identity, prompt.identity) if i else 0
            new = np.arange(total, total + len(prompt.ids) - shared)
            paths.append(np.concatenate([paths[-1][:shared], new]) if i else new)
            shared_lengths.append(shared)
            shared_pictures = np.flatnonzero(np.diff(prompt.identity[:shared] < 0, prepend=False))[::2]
            pictures += prompt.pictures[len(shared_pictures) :]
            total += len(new)
        sees = np.zeros((total, total), dtype=bool)
        for path, shared in zip(paths, shared_lengths, strict=True):
            sees[np.ix_(path[shared:], path)] = np.tri(len(path) - shared, len(path), shared, dtype=bool)
        new_of = list(zip(prompts, shared_lengths, strict=True))
        return cls(
            np.concatenate([prompt.ids[shared:] for prompt, shared in new_of]),
            np.concatenate([prompt.positions[:, shared:] for prompt, shared in new_of], 1),
            sees,
            paths,
            pictures,
        )


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of leading elements that agree."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def load_chat_model(
    config: BaselineConfig,
    published: str,
    device: str = "cpu",
    max_new_tokens: int = 128,
    bounds: tuple[int, int] | None = None,
) -> ChatModel:
    """The model of `baseline.model`, or the published one: bfloat16 on a GPU, float32 on a CPU, safetensors only.

    A name in `TINY` is a small random model. Attention is always torch's own (whose fused kernels are FlashAttention if
    no mask is needed), so that no optional package changes a number.

    Raises:
        CheckpointError: the model cannot be found.
        ConfigError: it cannot be loaded, lacks weights, or its family is not supported.
    """
    source = config.model or published
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if source in TINY:
        tokenizer = tiny_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(
                tiny_config(source, tokenizer), dtype=dtype, attn_implementation="sdpa"
            )
    else:
        tokenizer, model = _load(source, dtype)
    return ChatModel(model.to(device), tokenizer, config.batch_size, max_new_tokens, bounds)


def _load(source: str, dtype: torch.dtype) -> tuple[PreTrainedTokenizerBase, Any]:
    folder = locate(source)
    safe = {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model, report = cast(Any, AutoModelForImageTextToText).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True, **safe
        )
    except (OSError, ValueError) as error:  # transformers raises these for files and configurations alike
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"baseline.model={source!r} cannot be loaded ({reason}): give a folder or hub id of a vision-language "
            f"model in safetensors, or one of {', '.join(TINY)}"
        ) from error
    if report["missing_keys"]:
        raise ConfigError(f"baseline.model={source!r} lacks weights: {', '.join(sorted(report['missing_keys'])[:6])}")
    return cast(PreTrainedTokenizerBase, tokenizer), model
