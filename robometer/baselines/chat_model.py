"""Vision-language models of transformers that run in this process and answer in words.

Prompts are tokenised and pictures are cut by our own code (`robometer.models`), as for Robometer itself: it gives what
the authors' processors give, needs no torchvision, and no task can forge a control token. A video goes in as pictures
of a few frames each, which is what Qwen3-VL makes of one; families that do not name the time of each see them in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from robometer.baselines.asking import Prompt, Video
from robometer.configs.schema import BaselineConfig, ConfigError
from robometer.models.backbones import backbone_of
from robometer.models.images import QwenCutter
from robometer.models.processing import PromptTokenizer
from robometer.models.prompts import chat_prompt
from robometer.models.sources import locate
from robometer.models.tiny import TINY, tiny_config, tiny_tokenizer
from robometer.scoring import OneAtATime, one_at_a_time


@dataclass(frozen=True)
class Tokens:
    """One prompt as the model reads it.

    Attributes:
        ids: int64 [L].
        positions: int64 [4, L]: place in the prompt, then time, row and column for the rotary embedding.
        identity: int64 [L]: the id, or for a token of picture i of the batch -1 - i. Where two prompts agree from
            the start, the model's states agree.
        pictures: number in the batch of each picture, in order.
    """

    ids: np.ndarray
    positions: np.ndarray
    identity: np.ndarray
    pictures: list[int]

    def followed_by(self, ids: np.ndarray) -> Tokens:
        """With tokens of text behind it."""
        positions = self.positions[:, -1:] + 1 + np.arange(len(ids))
        return Tokens(
            np.concatenate([self.ids, ids]),
            np.concatenate([self.positions, positions], 1),
            np.concatenate([self.identity, ids]),
            self.pictures,
        )


class ChatModel(OneAtATime):
    """A vision-language model and its tokenizer.

    Every call stands for itself, and its prompts are grouped in their order. So a scorer that asks for one clip at a
    time gets the same numbers whatever other clips there are.

    Args:
        model: of a family in `robometer.models.backbones`, with its language-modelling head.
        batch_size: prompts that are answered at once.
        max_new_tokens: of an answer.
        bounds: least and most px of a picture (Qwen's families); None: 4 and 16384 features.
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
        # In place of the checkpoint's own, which samples: what is not said in a call is taken from here.
        model.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=self._end, pad_token_id=self._end[0]
        )

    @one_at_a_time
    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """The most likely words, one after another, in answer to each prompt."""
        groups = (prompts[i : i + self._batch_size] for i in range(0, len(prompts), self._batch_size))
        return [answer for group in groups for answer in self._ask(group)]

    @torch.inference_mode()
    def _ask(self, prompts: Sequence[Prompt]) -> list[str]:
        inputs = self.padded(*self.read(prompts))
        written = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(written, skip_special_tokens=True)

    @one_at_a_time
    @torch.inference_mode()
    def log_prob(self, prompts: Sequence[Prompt], word: str) -> np.ndarray:
        """Log-probability float64 [N] that the answer to each prompt begins with `word`.

        All prompts go through the model at once, as a tree: what a prompt has in common with the one before it, from
        the start, is computed once. For prefixes of a clip that is nearly everything, and it is exact.
        """
        ids = self._prompts.text_ids(word)
        tokens, features = self.read(prompts)
        tree = Tree.of([prompt.followed_by(ids[:-1]) for prompt in tokens])
        read_out = np.stack([path[-len(ids) :] for path in tree.paths])  # [N, W]
        logits = self.model(
            **self._tensors(tree.ids[None], tree.positions[:, None]),
            attention_mask=self._put(tree.sees)[None, None],
            mm_encoder_outputs={"image": self._shown(features, tree.pictures)},
            logits_to_keep=self._put(read_out.ravel()),
            use_cache=False,
        ).logits[0]
        given = logits.double().log_softmax(-1).view(*read_out.shape, -1)  # [N, W, V]
        total: np.ndarray = given[:, range(len(ids)), ids].sum(1).cpu().numpy()
        return total

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt]) -> tuple[list[Tokens], Any]:
        """Tokens of the prompts, up to where the answer begins, and the features of their distinct pictures."""
        known: dict[tuple[Any, bytes], int] = {}
        cut: list[tuple[np.ndarray, np.ndarray]] = []
        turns: list[tuple[list[str], list[int]]] = []
        for prompt in prompts:
            content, pictures = self._content(prompt)
            keys = [(frames.shape, frames.tobytes()) for frames in pictures]
            for key, frames in zip(keys, pictures, strict=True):
                if key not in known:
                    known[key] = len(known)
                    cut.append(self._cutter.cut_moment(frames))
            turns.append((chat_prompt(content, self.family.chat), [known[key] for key in keys]))
        patches, grid = (np.concatenate(parts) for parts in zip(*cut, strict=True))
        size = self._cutter.features(grid)
        features = self.family.features(self.model.model, self._cutter.pixels(self._put(patches)), self._put(grid))
        return [self._tokens(parts, numbers, size) for parts, numbers in turns], features

    def _content(self, prompt: Prompt) -> tuple[list[str], list[np.ndarray]]:
        """The parts of what a user says, and the pictures in it, uint8 [t, H, W, 3] of t frames each."""
        chat, parts, pictures = self.family.chat, list[str](), list[np.ndarray]()
        for part in prompt:
            if isinstance(part, str):
                parts.append(part)
                continue
            for caption, frames in self._moments(part) if isinstance(part, Video) else [("", part[None])]:
                parts += [*([caption] if caption else []), *chat.before, chat.image, *chat.after]
                pictures.append(frames)
        return parts, pictures

    def _moments(self, video: Video) -> Iterator[tuple[str, np.ndarray]]:
        """Pictures of a video and the mean time of their frames, missing last one included (qwen_vl_utils 0.0.14)."""
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
        """Inputs of the model of a batch of prompts, padded on the left."""
        length = max(len(prompt.ids) for prompt in tokens)
        ids = np.full((len(tokens), length), self._end[0], dtype=np.int64)
        mask, positions = np.zeros_like(ids), np.zeros((4, *ids.shape), dtype=np.int64)
        for row, prompt in enumerate(tokens):
            at = slice(length - len(prompt.ids), None)
            ids[row, at], mask[row, at], positions[:, row, at] = prompt.ids, 1, prompt.positions
        shown = [number for prompt in tokens for number in prompt.pictures]
        return self._tensors(ids, positions) | {
            "attention_mask": self._put(mask),
            "mm_encoder_outputs": {"image": self._shown(features, shown)},
        }

    def _tensors(self, ids: np.ndarray, positions: np.ndarray) -> dict[str, Tensor]:
        spatial = self.family.spatial_positions
        return {"input_ids": self._put(ids), "position_ids": self._put(positions if spatial else positions[0])}

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.model.device)

    @staticmethod
    def _shown(features: Any, pictures: Sequence[int]) -> Any:
        """Features of the pictures in the order in which tokens stand for them; each was encoded once."""
        shown = type(features)(pooler_output=[features.pooler_output[i] for i in pictures])
        if getattr(features, "deepstack_features", None) is not None:
            shown.deepstack_features = [[level[i] for i in pictures] for level in features.deepstack_features]
        return shown


@dataclass(frozen=True)
class Tree:
    """Prompts in one row, each from where it parts with the one before it.

    Attributes:
        ids, positions: int64 [N] and [4, N].
        sees: bool [N, N], whether a token attends to another.
        paths: for each prompt the places of its tokens in the row.
        pictures: number in the batch of each picture in the row.
    """

    ids: np.ndarray
    positions: np.ndarray
    sees: np.ndarray
    paths: list[np.ndarray]
    pictures: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Tokens]) -> Tree:
        """The tree of prompts whose neighbours have much in common."""
        paths, parted, pictures, total = list[np.ndarray](), list[int](), list[int](), 0
        for i, prompt in enumerate(prompts):
            shared = _common(prompts[i - 1].identity, prompt.identity) if i else 0
            new = np.arange(total, total + len(prompt.ids) - shared)
            paths.append(np.concatenate([paths[-1][:shared], new]) if i else new)
            parted.append(shared)
            seen = np.flatnonzero(np.diff(prompt.identity[:shared] < 0, prepend=False))[::2]
            pictures += prompt.pictures[len(seen) :]
            total += len(new)
        sees = np.zeros((total, total), dtype=bool)
        for path, shared in zip(paths, parted, strict=True):
            sees[np.ix_(path[shared:], path)] = np.tri(len(path) - shared, len(path), shared, dtype=bool)
        new_of = list(zip(prompts, parted, strict=True))
        return cls(
            np.concatenate([prompt.ids[shared:] for prompt, shared in new_of]),
            np.concatenate([prompt.positions[:, shared:] for prompt, shared in new_of], 1),
            sees,
            paths,
            pictures,
        )


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading elements agree."""
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

    One of `TINY` is a small random model. Attention is torch's own everywhere (its fused kernels are FlashAttention
    where no mask is needed), so that no optional package changes a number.

    Raises:
        CheckpointError: it cannot be found.
        ConfigError: it cannot be loaded, lacks weights, or is of no family that there is.
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
    own = {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **own)
        model, found = cast(Any, AutoModelForImageTextToText).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True, **own
        )
    except (OSError, ValueError) as error:  # what transformers raises for files and configurations alike
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"baseline.model={source!r} cannot be loaded ({reason}): give a folder or hub id of a vision-language "
            f"model in safetensors, or one of {', '.join(TINY)}"
        ) from error
    if found["missing_keys"]:
        raise ConfigError(f"baseline.model={source!r} lacks weights: {', '.join(sorted(found['missing_keys'])[:6])}")
    return cast(PreTrainedTokenizerBase, tokenizer), model
