"""Sessions of the vision-language model: only the tokens of a new frame go through it.

The model is causal and a frame's tokens do not depend on later ones, so that keys and values of the frames in the
session's window are kept. They are computed again where the window drops frames (each time it has doubled its stride),
after `forget`, and in a session that was restored: the frames in the window are all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robometer.models.attention import KeyValues
from robometer.models.processing import RobometerProcessor
from robometer.scoring import Clip
from robometer.sessions import Answer, WindowSession


@dataclass(frozen=True)
class Step:
    """One push: frames that follow those whose keys and values are kept.

    Attributes:
        before: frames in `past`.
        frames: uint8 [H, W, 3], those of the window that are not in `past`, and the new one.
    """

    task: str
    past: KeyValues
    before: int
    frames: Sequence[np.ndarray]


class RobometerSession(WindowSession):
    """A session that keeps keys and values of the frames in its window."""

    _past: KeyValues | None = None

    def step(self, frame: np.ndarray) -> Step:
        """Make room for a frame, and say what the model must see."""
        if self.window.make_room():
            self._past = None
        kept = [clip.frames[0] for clip in self.window.items]
        if self._past is None:
            return Step(self.task, [], 0, [*kept, frame])
        return Step(self.task, self._past, len(kept), [frame])

    def kept(self, step: Step, layers: KeyValues, ends: Sequence[int]) -> tuple[Clip, KeyValues | None]:
        """A step's frame, and the keys and values of the frames in the window, as `finish` takes them.

        Args:
            layers: keys and values of all tokens up to the new frame.
            ends: for each frame of the step, the number of tokens up to its end.
        """
        [look] = self.look(step.frames[-1:])
        if self.window.keeps_next:
            return look, layers
        if len(ends) == 1:
            return look, self._past
        end = ends[-2]  # the last frame goes
        return look, [(keys[:, :, :end].clone(), values[:, :, :end].clone()) for keys, values in layers]

    def finish(self, look: Clip, past: KeyValues | None) -> None:
        """Count the frame."""
        self.last, self._past = look, past
        self.window.add(look)

    def push_look(self, look: Clip) -> Answer:
        """See `WindowSession.push_look`."""
        return self.push(look.frames[0])

    def restore(self, pushed: int, frames: Sequence[np.ndarray]) -> None:
        """See `WindowSession.restore`."""
        super().restore(pushed, frames)
        self._past = None

    def size_bytes(self) -> int:
        """Bytes of the frames, and of the keys and values."""
        return super().size_bytes() + sum(t.nbytes for layer in self._past or [] for t in layer)

    def added_bytes(self, frame: np.ndarray) -> int:
        """With the keys and values of the frame, if those of others are kept."""
        added, held = super().added_bytes(frame), self.size_bytes() - super().size_bytes()
        return added + (held // len(self.window.items) if added and held else 0)

    def forget(self) -> None:
        """Drop the keys and values."""
        self._past = None


def continued_inputs(processor: RobometerProcessor, steps: Sequence[Step]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Inputs of `Robometer.continued`, and for each step the number of tokens up to the end of each of its frames."""
    patches, grid = processor.cut([frame for step in steps for frame in step.frames])
    sizes = iter(processor.cutter.features(grid))
    ids, positions, tokens, starts, all_ends = [], [], [], [], []
    packed = 0
    for step in steps:
        features = [next(sizes) for _ in step.frames]
        shown = np.stack([features[0]] * step.before + features)  # frames of a session have one size
        prompted = processor.tokenise(processor.prompt(step.task, len(shown)), shown)
        ends = [int(at.max()) + 1 for at in prompted.frame_tokens]
        start = ends[step.before - 1] if step.before else 0
        place = np.arange(start, ends[-1])
        ids.append(prompted.ids[place])
        positions.append(np.concatenate([place[None], prompted.positions[:, place]]))
        tokens += [torch.from_numpy(at - start + packed) for at in prompted.frame_tokens[step.before :]]
        starts.append(start)
        all_ends.append(ends[step.before :])
        packed += len(place)
    inputs = {
        "input_ids": np.concatenate(ids),
        "position_ids": np.concatenate(positions, 1),
        "sequence_length": np.array([len(part) for part in ids]),
        "past_length": np.array(starts),
        "patches": patches,
        "grid": grid,
        "image": np.arange(len(grid)),
    }
    frame_tokens = pad_sequence(tokens, batch_first=True, padding_value=-1)
    return {name: torch.from_numpy(value) for name, value in inputs.items()} | {"frame_tokens": frame_tokens}, all_ends
