"""Group h_prompts: the text of every prompt, and its ids under the public tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.difference import exact, numbered, wrong_upstream
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from robometer.configs.schema import Config
from robometer.models.processing import RobometerProcessor
from robometer.models.prompts import QWEN3_CHAT, SPECIAL_TOKENS, SPLIT
from robometer.models.robometer import load_processor

GROUP = "h_prompts"
_IMAGE = str(QWEN3_CHAT.image)
_TASK = re.compile(r"(?:for the robot is|for the task) '(.*?)'(?:\. Given the trajectory|, evaluate which)", re.DOTALL)


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    recorded = read(recorded_set.folder / GROUP / "prompts.json")
    public = load_processor(Config(), recorded_set.shared("qwen3_vl_4b_instruct"))
    for token in map(str, SPECIAL_TOKENS):
        ours = public.tokenizer.convert_tokens_to_ids(token)
        theirs = recorded["special_token_ids_real_qwen3_vl"][token]
        yield exact(f"{GROUP}/{token}", "id of a special token", ours, theirs)
    for at, prompt in numbered(GROUP, "prompts", recorded["prompts"]):
        case, text, config = f"{at} {prompt['case']}", prompt["rendered"], prompt["config"]
        asks, tokens = config.get("prog_pref", True), config.get("per_frame", True)
        processor = RobometerProcessor(public.tokenizer, public.base, asks, tokens)
        parts = _parts(prompt, processor)
        if _IMAGE not in text:
            reason = "frames given as a video are read at the wrong tokens of Qwen3-VL (see d_rbm)"
            yield wrong_upstream(case, "text", reason, "one video", f"{''.join(parts).count(_IMAGE)} pictures")
            continue
        yield exact(case, "text", "".join(parts), text)
        features = np.ones((text.count(_IMAGE), 2), dtype=np.int64)  # recorded before a frame's token is repeated
        yield exact(case, "token ids", processor.tokenise(parts, features).ids.tolist(), prompt["qwen_bpe_ids"])


def _parts(prompt: dict[str, Any], processor: RobometerProcessor) -> list[str]:
    """Our prompt for the same task and numbers of frames, which only the text tells."""
    match = _TASK.search(prompt["rendered"])
    assert match, prompt["rendered"]
    counts = [side.count(_IMAGE) or prompt["T"] for side in prompt["rendered"].split(SPLIT)]
    return processor.prompt(match[1], *counts)
