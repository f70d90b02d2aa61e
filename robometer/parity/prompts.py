"""Group h_prompts: the text of every prompt, and its ids under the public tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robometer.configs.schema import Config
from robometer.models.processing import RobometerProcessor
from robometer.models.prompts import IMAGE, PROGRESS, SPECIAL_TOKENS, preference_prompt, progress_prompt
from robometer.models.robometer import load_processor
from robometer.parity.difference import exact, load_json, numbered, wrong_upstream
from robometer.parity.shared_data import find
from robometer.parity.table import Row

GROUP = "h_prompts"
_TASK = re.compile(r"(?:for the robot is|for the task) '(.*?)'(?:\. Given the trajectory|, evaluate which)", re.DOTALL)


def rows(folder: Path) -> Iterator[Row]:
    """Every prompt of the group in the set at `folder`."""
    recorded = load_json(folder / GROUP / "prompts.json")
    processor = load_processor(Config(), find(folder, "qwen3_vl_4b_instruct"))
    theirs = recorded["special_token_ids_real_qwen3_vl"]
    for token in SPECIAL_TOKENS:
        ours = processor.tokenizer.convert_tokens_to_ids(token)
        yield exact(f"{GROUP}/{token}", "id of a special token", ours, theirs[token])
    for at, prompt in numbered(GROUP, "prompts", recorded["prompts"]):
        case = f"{at} {prompt['case']}"
        if IMAGE in prompt["rendered"]:
            yield from _prompt(case, prompt, processor)
        else:
            reason = "a frame's tokens are read from the wrong places when frames are given to Qwen3-VL as a video"
            yield wrong_upstream(case, "text", reason, "Video 1: ...", "".join(_parts(prompt))[-120:])


def _prompt(case: str, prompt: dict[str, Any], processor: RobometerProcessor) -> Iterator[Row]:
    parts, text = _parts(prompt), prompt["rendered"]
    yield exact(case, "text", "".join(parts), text)
    ids = processor.token_ids(parts, [1] * text.count(IMAGE))
    yield exact(case, "token ids", ids.tolist(), prompt["qwen_bpe_ids"])


def _parts(prompt: dict[str, Any]) -> list[str]:
    """Our prompt for the same task and numbers of frames, which only the text tells."""
    text, config = prompt["rendered"], prompt["config"]
    found = _TASK.search(text)
    assert found, text
    if prompt["kind"] == "progress":
        parts = progress_prompt(found[1], text.count(IMAGE) or prompt["T"])
    else:
        a, b = (side.count(IMAGE) or prompt["T"] for side in text.split("<|split_token|>"))
        parts = preference_prompt(found[1], a, b, config.get("prog_pref", True))
    if not config.get("per_frame", True):  # frames are pooled: no token asks for their progress
        parts = [part for part in parts if part != PROGRESS]
    return parts
