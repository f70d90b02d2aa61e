"""Group e_http: every request through `parity.upstream.protocol` and our model with upstream's weights."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import BytesParser
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from parity.recorded import EXACT, FLOAT32, Record, brief, compared, read, unless_wrong
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.tiny_model import load
from parity.upstream.protocol import (
    Asked,
    EveryFrame,
    ProtocolError,
    answer,
    client_frames,
    read_body,
    read_form,
    repeated_answer,
)
from robometer.models.robometer import Robometer
from robometer.scoring import Clip

Form = tuple[dict[str, str], dict[str, np.ndarray]]


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    model, processor = load(recorded_set.folder)
    judge = EveryFrame(model, processor)
    for case in read(recorded_set.folder / "e_http" / "cases.json"):
        if case["request"]["method"] == "GET":
            yield from _status(case, model)
        elif case["parts"] is None:
            yield _refused_by_upstream(case, judge, partial(read_body, _bodies(case, recorded_set.folder)))
        else:
            yield from _form_case(case, recorded_set.folder, judge)


def _name(case: Record) -> str:
    return f"e_http/{case['name']}"


def _arrays(case: Record, folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "e_http" / case["arrays"], allow_pickle=False) as file:
        return dict(file)


def _form_case(case: Record, folder: Path, judge: EveryFrame) -> Iterator[Row]:
    arrays = _arrays(case, folder)
    form = _parts(case, arrays)
    if case["status"] != 200:
        yield _refused_by_upstream(case, judge, partial(read_form, *form))
        return
    asked = read_form(*form)
    ours = repeated_answer(judge, asked)
    yield compared(_name(case), "response", ours, case["response"], FLOAT32)
    reason = "upstream answers a clip of one frame with a value for each frame that it was repeated to"
    single = asked.frame_steps and any(isinstance(sample, Clip) and len(sample) == 1 for sample in asked.samples)
    yield unless_wrong(_name(case), "our response", answer(judge, asked), case["response"], FLOAT32, single, reason)
    if case.get("client_return"):
        returned = [ours["outputs_progress"]["progress_pred"][0], ours["outputs_success"]["success_probs"][0]]
        yield compared(_name(case), "what the client returns", returned, case["client_return"], FLOAT32)
    body = folder / "e_http" / f"{case['name']}.body.bin"
    if body.is_file():
        sent = repeated_answer(judge, read_form(*_body(case, body.read_bytes())))
        yield compared(_name(case), "response to the raw body", sent, case["response"], FLOAT32)
    yield from _client(case, arrays)


def _parts(case: Record, arrays: dict[str, np.ndarray]) -> Form:
    """The parts of a request, whose arrays are recorded under names of their own."""
    fields = {part["name"]: part["text"] for part in case["parts"] if part["filename"] is None}
    files = {}
    for part in case["parts"]:
        if part["filename"] is not None:
            sample, _, kind = part["name"].removeprefix("sample_").removesuffix("_frames").partition("_")
            side = kind.removesuffix("trajectory").rstrip("_")
            names = [side] if side else ["frames", f"frames_{sample}", f"sent_{sample}", "progress"]
            array = next(arrays[name] for name in names if name in arrays)
            recorded = (part["npy_dtype"], part["npy_shape"])
            if (str(array.dtype), list(array.shape)) != recorded:
                raise ValueError(f"{case['name']}: {part['name']} is not the array that was sent")
            files[part["name"]] = array
    return fields, files


def _body(case: Record, body: bytes) -> Form:
    """The parts of a multipart body."""
    head = f"Content-Type: {case['request']['headers']['Content-Type']}\r\n\r\n".encode()
    fields: dict[str, str] = {}
    files: dict[str, np.ndarray] = {}
    for part in cast(list[Message], BytesParser().parsebytes(head + body).get_payload()):
        name = str(part.get_param("name", header="content-disposition"))
        content = cast(bytes, part.get_payload(decode=True))
        if part.get_filename() is None:
            fields[name] = content.decode()
        else:
            files[name] = np.load(io.BytesIO(content), allow_pickle=False)
    return fields, files


def _client(case: Record, arrays: dict[str, np.ndarray]) -> Iterator[Row]:
    """What a client made of its videos, where both were recorded."""
    for name, raw in arrays.items():
        if name.startswith("raw_"):
            sent = arrays[f"sent_{name.split('_')[1]}"]
            ours = client_frames(raw, len(sent))
            same = ours.shape == sent.shape and np.array_equal(ours, sent)
            yield Row(_name(case), f"frames of {name} that are sent", 0.0 if same else 1.0, EXACT)


def _refused_by_upstream(case: Record, judge: EveryFrame, request: Callable[[], Asked]) -> Row:
    try:
        ours = brief(answer(judge, request()))
    except ProtocolError as error:
        ours = f"refused: {error}"
    reason = f"upstream answers {case['status']} to: {case['note']}"
    return Row(_name(case), "response", math.nan, EXACT, reason, ours)


def _bodies(case: Record, folder: Path) -> Any:
    """A request of the JSON route, which is not recorded: made again from what the case's name and note say."""
    if case["arrays"]:
        frames = _arrays(case, folder)["frames"]
        trajectory = {"frames": frames.tolist(), "frames_shape": list(frames.shape), "task": "stack", "id": "0"}
        return json.loads(json.dumps({"samples": [{"sample_type": "progress", "trajectory": trajectory}]}))
    bodies: dict[str, Any] = {
        "json_no_samples_key": {"use_frame_steps": False},
        "bad_sample_type": {"samples": [{"sample_type": "similarity"}]},
        "empty": {"samples": []},
    }
    return bodies.get(case["name"])


def _status(case: Record, model: Robometer) -> Iterator[Row]:
    """Of the GET routes only the sizes of the model are numbers that we compute."""
    architecture = case["response"].get("model_architecture")
    if architecture is None:
        wrong = {
            "/health": "upstream calls itself healthy whatever its state",
            "/gpu_status": "upstream counts every request that succeeds twice",
        }
        path = case["request"]["path"]
        reason = wrong.get(path, f"{path} tells of upstream's own process")
        ours = "not a number of the model: see /health and /metrics of `robometer serve`"
        yield Row(_name(case), "status of the process", math.nan, EXACT, reason, ours)
        return
    sizes = {name: _size(module) for name, module in model.named_children()}
    theirs = {part["name"]: part["parameters"] for part in architecture["architecture_summary"]}
    yield compared(_name(case), "parameters by module", sizes, theirs, EXACT)
    yield compared(_name(case), "parameters", _size(model), architecture["total_parameters"], EXACT)


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
