"""A client of `RewardRelabelService` made from `relabel.proto`, and requests as policy learning sends them."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import grpc
import numpy as np
from grpc_tools import protoc

from pipelines.serving import wire

_FOLDER = mkdtemp()
protoc.main(
    [
        "protoc",
        f"-I{Path(wire.__file__).parent}",
        f"--python_out={_FOLDER}",
        f"--grpc_python_out={_FOLDER}",
        "relabel.proto",
    ]
)
sys.path.insert(0, _FOLDER)
pb: Any = import_module("relabel_pb2")


def stub(address: str | grpc.Channel) -> Any:
    """The client, of a channel or of one with the options that the public client gives it."""
    options = [
        ("grpc.max_send_message_length", 256 * 1024 * 1024),
        ("grpc.max_receive_message_length", 256 * 1024 * 1024),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    channel = grpc.insecure_channel(address, options=options) if isinstance(address, str) else address
    return import_module("relabel_pb2_grpc").RewardRelabelServiceStub(channel)


def array(values: Any) -> Any:
    file = io.BytesIO()
    np.save(file, np.asarray(values), allow_pickle=False)
    return pb.NDArray(data=file.getvalue())


def request(cameras: Mapping[str, np.ndarray], task: str = "open the drawer", **fields: Any) -> Any:
    """A trajectory of frames [T, H, W, 3] by camera, with all that the public client sends beside them."""
    steps = len(next(iter(cameras.values())))
    observations = [
        {"prompt": array(np.zeros(384, np.float32)), **{key: array(frames[t]) for key, frames in cameras.items()}}
        for t in range(steps)
    ]
    transitions = [
        pb.Transition(
            info=[pb.MetaEntry(key="robot_id", value=b"7")],
            obs=observations[t],
            action=array(np.zeros(7, np.float32)),
            reward_env=0.5,
            next_obs=observations[min(t + 1, steps - 1)],
            done=t == steps - 1,
            episode_id="12",
            step_in_episode=t,
            timestamp_ns=1_780_000_000_000_000_000 + t,
        )
        for t in range(steps)
    ]
    return pb.RelabelRewardsRequest(
        transitions=transitions,
        language_instructions=[task] * steps,
        episode_ids=["12"] * steps,
        step_in_episodes=range(steps),
        **fields,
    )


def values(response: Any, key: str) -> tuple[Sequence[float], Sequence[float]]:
    """Progress and success of one camera."""
    assert response.ok, response.message
    predictions = response.progress_predictions_by_key[key]
    return list(predictions.progress), list(predictions.success_probs)
