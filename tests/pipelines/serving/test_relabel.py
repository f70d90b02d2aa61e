"""`RewardRelabelService` over a real gRPC channel: a generated client against the endpoint without Ray."""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from ray.serve._private import grpc_util
from ray.serve.config import gRPCOptions

from pipelines.cluster import free_port
from pipelines.serving import grpc_calls, grpc_server
from pipelines.serving import relabel as relabel_module
from pipelines.serving.backend import SessionLimits
from pipelines.serving.grpc_calls import Calls
from pipelines.serving.grpc_server import BoundedServer, GrpcSettings, check_grpc
from robometer.baselines.trivial import FrameDifference
from robometer.configs import ConfigError, load
from robometer.scoring import Clip, ClipScore, score_prefixes
from tests.local_endpoint import LocalBackend, front
from tests.pipelines.serving.test_tls import make_pair
from tests.relabel_client import array, pb, request, stub, values

MAX_BYTES = 2_000_000
LIMITS = SessionLimits.from_config(load([]).serve)


@contextmanager
def relabelling(
    backend: LocalBackend, *overrides: str, max_arriving: int = 4, tls: Sequence[str] = (), **guard: Any
) -> Iterator[str]:
    """Address of a gRPC server that answers until the block ends."""
    config = load([f"serve.max_upload_bytes={MAX_BYTES}", "serve.grpc_port=1", *overrides])
    app, address, stop = front(backend, config, **guard), queue.Queue[str](), threading.Event()

    async def serve() -> None:
        settings = GrpcSettings("127.0.0.1", MAX_BYTES, max_arriving, 60.0, tls)
        calls = Calls(max_arriving, 60.0)
        calls.app = app
        server = BoundedServer(settings, calls)
        port = server.add_insecure_port("[::]:0")
        await server.start()
        address.put(f"127.0.0.1:{port}")
        while not stop.is_set():
            await asyncio.sleep(0.01)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield address.get(timeout=10)
    finally:
        stop.set()
        thread.join()


class Telling(FrameDifference):
    """Its numbers tell all frames of a clip, their number, the task, and the last frame."""

    name = "telling@1"

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        return [
            ClipScore(
                np.full(len(clip), clip.frames.mean() / 1000 + len(clip) / 100 + len(clip.task) / 1000, np.float32),
                clip.frames.mean(axis=(1, 2, 3), dtype=np.float32) / 255,
            )
            for clip in clips
        ]


def frames_of(steps: int, seed: int = 0, height: int = 20, width: int = 24) -> np.ndarray:
    """Frames of one colour each."""
    colours = np.random.default_rng(seed).integers(0, 256, (steps, 1, 1, 3), dtype=np.uint8)
    return np.tile(colours, (1, height, width, 1))


def expected(frames: np.ndarray, task: str = "open the drawer") -> ClipScore:
    return score_prefixes(Telling(), [Clip(frames, task)])[0]


class Slow(LocalBackend):
    """Waits for `go` before it answers; `running` counts those who wait."""

    def __init__(self) -> None:
        super().__init__(Telling(), LIMITS)
        self.go, self.running = threading.Event(), 0

    async def run(self, request: Any) -> Any:
        self.running += 1
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.01)
            return await super().run(request)
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with relabelling(LocalBackend(Telling(), LIMITS), token="secret") as address:
        yield address


AUTH = (("authorization", "Bearer secret"),)


def relabel(address: str, message: Any, metadata: Any = AUTH) -> Any:
    return stub(address).RelabelRewards(message, metadata=metadata, timeout=30)


def refused(call: Callable[[], Any], code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == code, error.value
    return str(error.value.details())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_every_step_gets_the_last_score_of_the_frames_up_to_it(address: str) -> None:
    frames = frames_of(9)
    response = relabel(address, request({"observation/image": frames}))
    progress, success = values(response, "observation/image")
    np.testing.assert_allclose(progress, expected(frames).progress, atol=1e-6)
    np.testing.assert_allclose(success, expected(frames).success, atol=1e-6)
    assert not response.rewards and not response.success_probs and response.message == "telling@1"


@pytest.mark.parametrize(
    ("fields", "positions"),
    [
        ({"batch_start_idx": 2, "batch_end_idx": 5}, [2, 3, 4]),
        ({"batch_start_idx": 5}, [5, 6, 7]),
        ({"batch_start_idx": -1, "batch_end_idx": -1}, range(8)),
        ({"batch_indices": [6, 1, 6], "batch_start_idx": 2, "batch_end_idx": 3}, [6, 1, 6]),
    ],
)
def test_the_steps_that_are_asked_for_are_answered_in_their_order(
    address: str, fields: dict[str, Any], positions: Sequence[int]
) -> None:
    frames = frames_of(8)
    progress, success = values(relabel(address, request({"image": frames}, **fields)), "image")
    np.testing.assert_allclose(progress, expected(frames).progress[list(positions)], atol=1e-6)
    np.testing.assert_allclose(success, expected(frames).success[list(positions)], atol=1e-6)


def test_frames_before_the_stage_are_not_shown(address: str) -> None:
    frames = frames_of(8)
    message = request({"image": frames}, trajectory_start_idx=3, batch_indices=[3, 7])
    progress, _ = values(relabel(address, message), "image")
    np.testing.assert_allclose(progress, expected(frames[3:]).progress[[0, 4]], atol=1e-6)


def test_each_camera_is_scored_for_itself_and_the_last_of_a_stack_is_shown(address: str) -> None:
    one, other = frames_of(4, seed=1), frames_of(4, seed=2)
    stacks = np.stack([np.zeros_like(other), other], axis=1)  # [T, 2, H, W, 3]
    response = relabel(address, request({"image": one, "observation/image": stacks, "wrist": one}))
    assert set(response.progress_predictions_by_key) == {"image", "observation/image"}
    np.testing.assert_allclose(values(response, "image")[0], expected(one).progress, atol=1e-6)
    np.testing.assert_allclose(values(response, "observation/image")[0], expected(other).progress, atol=1e-6)


def test_colours_are_read_alike_in_all_frames(address: str) -> None:
    frames = frames_of(4)
    frames[1] = 0  # black alone could be of any scale
    progress, _ = values(relabel(address, request({"image": frames / np.float32(255)})), "image")
    np.testing.assert_allclose(progress, expected(frames).progress, atol=1e-6)


def test_a_stream_answers_each_message_before_the_next_one_comes(address: str) -> None:
    messages = queue.Queue[Any]()
    stream = stub(address).StreamRelabelRewards(iter(messages.get, None), metadata=AUTH, timeout=30)
    for steps in (3, 5):
        messages.put(request({"image": frames_of(steps)}))
        assert next(stream) == relabel(address, request({"image": frames_of(steps)}))
    messages.put(request({"image": frames_of(3)}, batch_indices=[9]))
    assert not next(stream).ok
    messages.put(request({"image": frames_of(2)}))
    assert next(stream).ok
    messages.put(None)
    assert list(stream) == [] and stream.code() == grpc.StatusCode.OK


BAD = {
    "no transitions": (pb.RelabelRewardsRequest(language_instructions=["go"]), "holds no frames"),
    "no task": (request({"image": frames_of(2)}, task=" "), "'language_instructions' is missing"),
    "index after the end": (request({"image": frames_of(2)}, batch_indices=[2]), "0 to 1 can be shown"),
    "index below zero": (request({"image": frames_of(2)}, batch_indices=[-1]), "0 to 1 can be shown"),
    "index before the stage": (
        request({"image": frames_of(4)}, batch_indices=[1], trajectory_start_idx=2),
        "1 to 1 are asked for, and 2 to 3 can be shown",
    ),
    "stage after the end": (request({"image": frames_of(2)}, trajectory_start_idx=2), "'trajectory_start_idx' is 2"),
    "no steps": (request({"image": frames_of(2)}, batch_start_idx=1, batch_end_idx=1), "Ask for one at least"),
    "no camera": (request({"wrist": frames_of(2)}), "has none of observation/image, image"),
    "no picture": (request({"image": np.zeros((2, 7))}), "must be a picture"),
    "no colours": (request({"image": np.full((2, 4, 4, 3), np.nan)}), "must hold colours"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_message_that_is_not_ok(address: str, name: str) -> None:
    message, sentence = BAD[name]
    response = relabel(address, message)
    assert not response.ok and sentence in response.message and not response.progress_predictions_by_key


def test_a_camera_that_fails_in_one_step_is_named(address: str) -> None:
    for broken, sentence in [
        (pb.NDArray(data=b"\x93NUMPY nonsense"), "'transitions[1].obs['image']' is not a .npy file"),
        (pb.NDArray(), "'transitions[1].obs['image']' is empty"),
        (array(frames_of(1, height=8)[0]), "[8, 24, 3] and uint8 [20, 24, 3]"),
    ]:
        message = request({"image": frames_of(3)})
        message.transitions[1].obs["image"].CopyFrom(broken)
        assert sentence in relabel(address, message).message
    message = request({"image": frames_of(3)})
    del message.transitions[2].obs["image"]
    assert "'transitions[2].obs['image']' is missing" in relabel(address, message).message


def test_a_message_needs_the_token_before_it_is_read(address: str) -> None:
    message = request({"image": frames_of(2)})
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    assert "token is required" in refused(lambda: relabel(address, message, ()), unauthenticated)
    wrong = (("authorization", "Bearer other"),)
    assert "not the one" in refused(lambda: relabel(address, message, wrong), unauthenticated)
    silent = stub(address).StreamRelabelRewards(iter(queue.Queue[Any]().get, None), metadata=wrong, timeout=30)
    assert "not the one" in refused(lambda: next(silent), unauthenticated)


def bare(frames: np.ndarray) -> Any:
    """A request without what is not read."""
    transitions = [pb.Transition(obs={"image": array(frame)}) for frame in frames]
    return pb.RelabelRewardsRequest(transitions=transitions, language_instructions=["go"])


def test_the_limits_of_a_token_hold(tmp_path: Path) -> None:
    tokens = {"once": {"requests_per_minute": 1}, "bytes": {"bytes_per_minute": 1_000_000}}
    hashes = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **tokens[name]} for name in tokens]
    (tmp_path / "tokens.yaml").write_text(json.dumps(hashes))
    backend = LocalBackend(Telling(), LIMITS)
    with relabelling(backend, token_file=str(tmp_path / "tokens.yaml")) as address:
        message, once = request({"image": frames_of(2)}), (("authorization", "Bearer once"),)
        assert relabel(address, message, once).ok
        again = refused(lambda: relabel(address, message, once), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "1 requests per minute" in again
        of_bytes = (("authorization", "Bearer bytes"),)
        no_size = refused(lambda: relabel(address, message, of_bytes), grpc.StatusCode.FAILED_PRECONDITION)
        assert "use another token" in no_size


def test_too_much_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    large = request({"image": frames_of(4, height=600, width=600)})
    assert "larger than max" in refused(lambda: relabel(address, large), exhausted)
    many = pb.RelabelRewardsRequest(transitions=[pb.Transition()] * 10_001, language_instructions=["go"])
    assert "10001 frames; the limit is 10000" in refused(lambda: relabel(address, many), exhausted)
    long = bare(np.zeros((1001, 1, 1, 3), np.uint8))
    assert "1001 transitions are asked for" in refused(lambda: relabel(address, long), exhausted)
    long.batch_indices.append(1000)
    assert "with prefixes the limit is 1000" in refused(lambda: relabel(address, long), exhausted)
    grey = bare(np.zeros((2, 700, 700, 1), np.uint8))
    assert "take more than 2000000 bytes" in refused(lambda: relabel(address, grey), exhausted)
    monkeypatch.setattr(relabel_module, "MAX_FIELDS", 500)
    fields = pb.RelabelRewardsRequest(transitions=[pb.Transition(info=[pb.MetaEntry()] * 499)])
    fields.language_instructions.append("go")
    assert "more than 500 fields" in refused(lambda: relabel(address, fields), exhausted)


def raw(address: str, content: bytes, method: str = "RelabelRewards") -> bytes:
    call = grpc.insecure_channel(address).unary_unary(f"/distributed.RewardRelabelService/{method}")
    return bytes(call(content, metadata=AUTH, timeout=30))


def test_a_message_that_is_none_is_an_invalid_argument(address: str) -> None:
    inside = b"\x12\x02go\x0a\x02\x12\x01"
    for content in (b"\x0a\xff", b"\x0a", b"\x00\x01", b"\x0f", b"\x08\x01", b"\xff" * 11, inside):
        sentence = refused(lambda content=content: raw(address, content), grpc.StatusCode.INVALID_ARGUMENT)
        assert "malformed" in sentence
    assert "UTF-8" in refused(lambda: raw(address, b"\x12\x01\xff"), grpc.StatusCode.INVALID_ARGUMENT)
    refused(lambda: raw(address, b"", "Other"), grpc.StatusCode.UNIMPLEMENTED)


def test_numbers_are_read_packed_and_single(address: str) -> None:
    frames = frames_of(3)
    message = request({"image": frames}).SerializeToString() + b"\x50\x02\x50\x01"  # field 10, not packed
    response = pb.RelabelRewardsResponse.FromString(raw(address, message))
    np.testing.assert_allclose(values(response, "image")[0], expected(frames).progress[[2, 1]], atol=1e-6)


def test_what_a_client_gave_up_is_not_worked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_calls, "_GRACE_S", 0.05)  # only Ray looks whether a client has gone
    backend = Slow()
    with relabelling(backend, max_in_flight=1) as address:
        message = request({"image": frames_of(2)})
        refused(lambda: stub(address).RelabelRewards(message, timeout=0.5), grpc.StatusCode.DEADLINE_EXCEEDED)
        wait_until(lambda: backend.running == 0)
        stream = stub(address).StreamRelabelRewards(iter([message]), timeout=30)
        wait_until(lambda: backend.running == 1)
        busy = refused(lambda: stub(address).RelabelRewards(message, timeout=30), grpc.StatusCode.UNAVAILABLE)
        assert "already being served" in busy
        stream.cancel()
        wait_until(lambda: backend.running == 0)
        backend.go.set()
        wait_until(lambda: stub(address).RelabelRewards(message, timeout=30).ok)  # its place is free


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    backend = Slow()
    with relabelling(backend, timeout_s=0.2) as address:
        message = request({"image": frames_of(2)})
        sentence = refused(lambda: stub(address).RelabelRewards(message, timeout=30), grpc.StatusCode.UNAVAILABLE)
        assert "No answer within 0.2 s" in sentence and backend.running == 0


def test_streams_and_messages_on_their_way_are_bounded() -> None:
    with relabelling(LocalBackend(Telling(), LIMITS), max_arriving=1, body_timeout_s=0.3) as address:
        client, waiting = stub(address), queue.Queue[Any]()
        waiting.put(request({"image": frames_of(2)}))
        held = client.StreamRelabelRewards(iter(waiting.get, None), timeout=30)
        assert next(held).ok
        other = client.StreamRelabelRewards(iter([]), timeout=30)
        assert "1 streams are open already" in refused(lambda: next(other), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert client.RelabelRewards(request({"image": frames_of(2)}), timeout=30).ok
        waiting.put(None)
        assert list(held) == []
        late = client.StreamRelabelRewards(iter(waiting.get, None), timeout=30)
        assert "did not arrive within 0.3 s" in refused(lambda: next(late), grpc.StatusCode.DEADLINE_EXCEEDED)
        waiting.put(None)


def test_rays_proxy_starts_the_bounded_server_at_the_address_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    store, port = dict[bytes, bytes](), free_port()
    monkeypatch.setattr(grpc_server, "_internal_kv_put", lambda key, value, overwrite: store.update({key: value}))
    monkeypatch.setattr(grpc_server, "_internal_kv_get", store.get)
    monkeypatch.setattr(grpc_util, "gRPCGenericServer", grpc_util.gRPCGenericServer)
    serve = load([f"serve.grpc_port={port}"]).serve

    async def starts() -> None:
        options = gRPCOptions(**grpc_server.grpc_options(serve) or {})
        _, server = await grpc_util.start_grpc_server(Mock(), options, event_loop=asyncio.get_running_loop())
        try:
            await asyncio.to_thread(check_grpc, serve)
            with pytest.raises(ConnectionRefusedError):  # Ray's own server would listen at every address
                socket.create_connection(("127.0.0.2", port), timeout=5)
        finally:
            await server.stop(0)

    with pytest.raises(RuntimeError, match="without the limits"):
        grpc_server.add_service(Mock(), Mock())  # of a proxy that did not call `install`
    GrpcSettings.of(serve).publish()
    app = front(LocalBackend(Telling(), LIMITS), load([]))
    assert grpc_server.install()(app) is app
    asyncio.run(starts())


def test_with_a_certificate_everything_is_encrypted(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "endpoint")
    with relabelling(LocalBackend(Telling(), LIMITS), tls=pair) as address:
        trusted = grpc.ssl_channel_credentials(Path(pair[0]).read_bytes())
        frames = frames_of(2)
        with grpc.secure_channel(address, trusted) as channel:
            response = stub(channel).RelabelRewards(request({"image": frames}), timeout=30)
        np.testing.assert_allclose(values(response, "image")[0], expected(frames).progress, atol=1e-6)
        refused(
            lambda: stub(address).RelabelRewards(request({"image": frames}), timeout=5), grpc.StatusCode.UNAVAILABLE
        )
        port = f"serve.grpc_port={address.rpartition(':')[2]}"
        check_grpc(load([port, f"serve.tls_certificate={pair[0]}", f"serve.tls_key={pair[1]}"]).serve)
        other = make_pair(tmp_path, "other")
        with pytest.raises(ConfigError, match="no such gRPC server"):
            check_grpc(load([port, f"serve.tls_certificate={other[0]}", f"serve.tls_key={other[1]}"]).serve)


def test_the_model_that_metadata_name_is_asked_for(address: str) -> None:
    metadata = (*AUTH, ("x-robometer-model", "mine"))
    response = relabel(address, request({"image": frames_of(2)}), metadata)
    assert not response.ok and "has no model 'mine'" in response.message


def test_the_service_is_off_unless_it_has_a_port() -> None:
    with relabelling(LocalBackend(Telling(), LIMITS), "serve.grpc_port=0") as address:
        sentence = refused(lambda: relabel(address, request({"image": frames_of(2)})), grpc.StatusCode.NOT_FOUND)
        assert "no such route" in sentence
    with pytest.raises(ConfigError, match="must differ"):
        load(["serve.grpc_port=8000"])
