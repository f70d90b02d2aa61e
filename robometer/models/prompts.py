"""The conversation that the vision-language model reads: public weights depend on every byte of it.

The text is upstream's (its collator, and Qwen3-VL's chat template with `add_vision_id`): one user turn, no system
turn, no generation prompt, pictures numbered through the whole conversation, pieces joined without separators.
"""

from __future__ import annotations

SPLIT, PREFERENCE, PROGRESS = "<|split_token|>", "<|pref_token|>", "<|prog_token|>"

SPECIAL_TOKENS = (SPLIT, "<|reward_token|>", PREFERENCE, "<|sim_token|>", PROGRESS)
"""Added to the tokenizer in this order, which the embedding rows of checkpoints follow; reward and sim are unused."""

IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

CONTROL_TOKENS = frozenset((*SPECIAL_TOKENS, IMAGE, VISION_START, VISION_END, TURN_START, TURN_END))
"""Every token of a prompt that is one id; a part of a prompt that equals one of them stands for that id."""

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


def progress_prompt(task: str, num_frames: int) -> list[str]:
    """Parts of the prompt of one trajectory: control tokens (one `IMAGE` per frame), and the text between them.

    A text never equals a control token, not even where the task spells one, so a task cannot forge a read-out.
    """
    return _turn([_PROGRESS_TEXT.replace("{task}", task), *_frames(1, num_frames)])


def preference_prompt(task: str, num_frames_a: int, num_frames_b: int, ask_progress: bool = True) -> list[str]:
    """Parts of the prompt of a pair, as in `progress_prompt`.

    Args:
        ask_progress: with the sentence that asks for the progress of the first trajectory
            (upstream's `predict_pref_progress`, on in its public weights).
    """
    opening = _PREFERENCE_TEXT.replace("{task}", task) + (_PAIR_PROGRESS_TEXT if ask_progress else "")
    return _turn(
        [
            opening + "This is Trajectory A. ",
            *_frames(1, num_frames_a),
            SPLIT,
            "This is Trajectory B. ",
            *_frames(1 + num_frames_a, num_frames_b),
            _QUESTION,
            PREFERENCE,
        ]
    )


def _frames(first: int, count: int) -> list[str]:
    pictures = [
        (f"Picture {number}: ", VISION_START, IMAGE, VISION_END, PROGRESS) for number in range(first, first + count)
    ]
    return [part for picture in pictures for part in picture]


def _turn(content: list[str]) -> list[str]:
    """One user turn, with neighbouring texts merged: a tokenizer may join bytes across their border."""
    parts = [TURN_START, "user\n"]
    for part in (*content, TURN_END, "\n"):
        if part in CONTROL_TOKENS or parts[-1] in CONTROL_TOKENS:
            parts.append(part)
        else:
            parts[-1] += part
    return parts
