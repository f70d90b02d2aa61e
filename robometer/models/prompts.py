"""The conversation that the vision-language model reads. The public weights depend on every byte of it.

The text is upstream's (its collator, and the base model's chat template with `add_vision_id`): one user turn without a
generation prompt, pictures numbered through the whole conversation if the family numbers them, and pieces joined
without separators. `Chat` holds what differs between families of backbones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Control(str):
    """A control token in a prompt. Text is never one, even if a task spells it, so that no task can forge a token."""

    __slots__ = ()


SPLIT, PREFERENCE, PROGRESS = Control("<|split_token|>"), Control("<|pref_token|>"), Control("<|prog_token|>")

SPECIAL_TOKENS = (SPLIT, Control("<|reward_token|>"), PREFERENCE, Control("<|sim_token|>"), PROGRESS)
"""Added to the tokenizer in this order, that of the embedding rows in checkpoints; reward and sim are unused."""


@dataclass(frozen=True)
class Chat:
    """How one family of models writes a user turn with pictures.

    Attributes:
        opening, closing: parts before and after the content of the turn.
        before, image, after: tokens around a picture, and the token that each of its features replaces.
        caption: text before each picture of a Robometer prompt, with `{number}`.
        answer: parts that open the model's own turn.
        moment: text before each moment of a video, with `{seconds}`.
    """

    opening: tuple[str, ...]
    closing: tuple[str, ...]
    before: tuple[Control, ...]
    image: Control
    after: tuple[Control, ...]
    caption: str = ""
    answer: tuple[str, ...] = ()
    moment: str = ""

    @property
    def controls(self) -> list[Control]:
        """Every control token that a prompt of this family can contain."""
        parts = (*self.opening, *self.closing, *self.before, self.image, *self.after)
        return sorted({*SPECIAL_TOKENS, *(part for part in parts if isinstance(part, Control))})


_TURN, _END = Control("<|im_start|>"), Control("<|im_end|>")
_QWEN_PICTURE = (Control("<|vision_start|>"),), Control("<|image_pad|>"), (Control("<|vision_end|>"),)
_QWEN_ANSWER = (_TURN, "assistant\n")

QWEN3_CHAT = Chat(
    (_TURN, "user\n"), (_END, "\n"), *_QWEN_PICTURE, "Picture {number}: ", _QWEN_ANSWER, "<{seconds:.1f} seconds>"
)
QWEN2_5_CHAT = Chat(
    (_TURN, "system\nYou are a helpful assistant.", _END, "\n", _TURN, "user\n"),
    (_END, "\n"),
    *_QWEN_PICTURE,
    "Picture {number}: ",
    _QWEN_ANSWER,
)
_FAKE = Control("<fake_token_around_image>")
SMOLVLM_CHAT = Chat(
    (_TURN, "User: "),
    (Control("<end_of_utterance>"), "\n"),
    (_FAKE, Control("<global-img>")),
    Control("<image>"),
    (_FAKE,),
    answer=("Assistant:",),
)

_SCALE = (
    ", how far along the robot is towards completing the task, a float between 0 and 1, where 0 is the starting state "
    "and 1 is when the task is completed. If the robot is not performing the same task, predict 0 progress."
)
_PROGRESS_TEXT = (
    "The task for the robot is '{task}'. Given the trajectory video, predict the task progress at each frame" + _SCALE
)
_PREFERENCE_TEXT = (
    "Given these two trajectories for the task '{task}', evaluate which one makes more progress towards the task. "
    "Return A for the first trajectory and B for the second trajectory."
)
_PAIR_PROGRESS_TEXT = " Also predict the task progress at each frame of the first trajectory" + _SCALE
_QUESTION = "Now predict the preference between the two trajectories."


def progress_prompt(task: str, num_frames: int, chat: Chat = QWEN3_CHAT, tokens: bool = True) -> list[str]:
    """Parts of the prompt of one trajectory: control tokens (one `chat.image` per frame) and the text between them.

    Args:
        tokens: whether a `PROGRESS` token follows each frame, at which progress and success are read.
    """
    return _turn([_PROGRESS_TEXT.replace("{task}", task), *_frames(1, num_frames, chat, tokens)], chat)


def preference_prompt(
    task: str,
    num_frames_a: int,
    num_frames_b: int,
    ask_progress: bool = True,
    chat: Chat = QWEN3_CHAT,
    tokens: bool = True,
) -> list[str]:
    """Parts of the prompt of a pair, as in `progress_prompt`.

    Args:
        ask_progress: whether the prompt also asks for the progress of the first trajectory (upstream's
            `predict_pref_progress`, which is on for its public weights).
    """
    opening = _PREFERENCE_TEXT.replace("{task}", task) + (_PAIR_PROGRESS_TEXT if ask_progress else "")
    content = [
        opening + "This is Trajectory A. ",
        *_frames(1, num_frames_a, chat, tokens),
        SPLIT,
        "This is Trajectory B. ",
        *_frames(1 + num_frames_a, num_frames_b, chat, tokens),
        _QUESTION,
        PREFERENCE,
    ]
    return _turn(content, chat)


def chat_prompt(content: Sequence[str], chat: Chat) -> list[str]:
    """Parts of a user turn with any content, up to the start of the model's answer."""
    return _merged([*chat.opening, *content, *chat.closing, *chat.answer])


def _frames(first: int, count: int, chat: Chat, tokens: bool) -> list[str]:
    parts: list[str] = []
    for number in range(first, first + count):
        caption = [chat.caption.format(number=number)] if chat.caption else []
        parts += [*caption, *chat.before, chat.image, *chat.after, *([PROGRESS] if tokens else [])]
    return parts


def _turn(content: Sequence[str], chat: Chat) -> list[str]:
    return _merged([*chat.opening, *content, *chat.closing])


def _merged(parts: Sequence[str]) -> list[str]:
    """The parts with adjacent texts joined: a tokenizer may merge bytes across their border."""
    merged: list[str] = []
    for part in parts:
        if not merged or isinstance(part, Control) or isinstance(merged[-1], Control):
            merged.append(part)
        else:
            merged[-1] += part
    return merged
