"""Every Scorer under several threads: each caller gets the answer for its own clip, whatever others ask meanwhile."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from robometer.baselines import BASELINES
from robometer.baselines.chat_model import load_chat_model
from robometer.baselines.config import BaselineConfig
from robometer.baselines.gvl import Gvl
from robometer.baselines.rl_vlm_f import RlVlmF
from robometer.baselines.robo_dopamine import RoboDopamine
from robometer.baselines.roboreward import RoboReward
from robometer.baselines.topreward import TopReward
from robometer.baselines.trivial import Clock, Constant, FrameDifference, Random
from robometer.baselines.vlac import Vlac, asking_critic
from robometer.client import RemoteScorer
from robometer.configs import load
from robometer.errors import RobometerError
from robometer.models.checkpoint import make_scorer
from robometer.models.encoders import image_encoder
from robometer.models.rewind import Rewind, RewindEnsemble
from robometer.models.robometer import build_robometer
from robometer.scoring import Clip, OneAtATime, Scorer, one_at_a_time
from tests.baselines.chat_server import ChatServer, Reply, Seen, openai
from tests.local_endpoint import endpoint

THREADS = 4
LENGTHS = (1, 6, 2, 9, 4, 3)


def clips() -> list[Clip]:
    """Clips of different lengths and sizes, each with its own task."""
    rng = np.random.default_rng(0)
    sizes = [(40 + 8 * i, 64) for i in range(len(LENGTHS))]
    return [
        Clip(rng.integers(0, 256, (length, *size, 3), dtype=np.uint8), f"put cup {length} into box {size[0]}")
        for length, size in zip(LENGTHS, sizes, strict=True)
    ]


def ensemble(*_: Any) -> Scorer:
    """The quickstart's kind of model with random weights, which encodes frames and tasks itself."""
    torch.manual_seed(0)
    config = load(["embed.image_encoder=efficientnet_lite0_grid", "sampling.max_frames=8"])
    members = [Rewind(4080, 384, 32, 1, 2, 8, 10, attention="state", dropout=0.0) for _ in range(2)]
    return make_scorer(RewindEnsemble(members), config, "ensemble")


def rewind(*_: Any) -> Scorer:
    """A single ReWiND, as upstream's."""
    torch.manual_seed(0)
    config = load(["embed.image_encoder=random_image", "sampling.max_frames=8"])
    return make_scorer(Rewind(64, 384, 32, 1, 2, 8, 10, dropout=0.0), config, "rewind")


def robometer(*_: Any) -> Scorer:
    """The tiny vision-language model."""
    torch.manual_seed(0)
    config = load(["model=robometer_4b", "model.base_model=tiny", "sampling.max_frames=8"])
    return make_scorer(build_robometer(config)[0], config, "robometer")


def chat(**settings: int) -> Any:
    """A tiny chat model. Its answers are unreadable, so `MissingAnswer` quotes them."""
    return load_chat_model(BaselineConfig(model="tiny", batch_size=4), "", **settings)


def remote(stack: ExitStack) -> Scorer:
    return stack.enter_context(RemoteScorer(stack.enter_context(endpoint(Random()))))


def asking(make: Callable[[BaselineConfig], Scorer], answer: Callable[[Seen], str]) -> Callable[[ExitStack], Scorer]:
    """A scorer that asks a provider, whose answer depends on the question."""

    def connected(stack: ExitStack) -> Scorer:
        server = stack.enter_context(ChatServer(lambda seen: Reply(openai(answer(seen)).body)))
        config = BaselineConfig(
            provider="openai",
            base_url=server.url,
            model="m",
            cache=stack.enter_context(TemporaryDirectory()),
            requests_per_minute=100_000,
        )
        return make(config)

    return connected


def spoken(seen: Seen) -> int:
    """A number that depends on the pictures of a question."""
    return zlib.crc32(b"".join(picture.tobytes() for picture in seen.pictures))


SCORERS: dict[str, Callable[[ExitStack], Any]] = {
    "clock": lambda _: Clock(),
    "constant": lambda _: Constant(),
    "random": lambda _: Random(),
    "frame_difference": lambda _: FrameDifference(),
    "gvl": asking(Gvl, lambda seen: str([(spoken(seen) + 7 * i) % 101 for i in range(20)])),
    "rl_vlm_f": asking(RlVlmF, lambda seen: str(spoken(seen) % 3 - 1)),
    "topreward": lambda _: TopReward(chat(), max_frames=3),
    "roboreward": lambda _: RoboReward(chat(max_new_tokens=4).ask, max_frames=4),
    "robo_dopamine": lambda _: RoboDopamine(chat(max_new_tokens=4).ask, max_frames=3),
    "vlac": lambda _: Vlac(asking_critic(chat(max_new_tokens=4).ask), max_frames=4),
    "rewind": rewind,
    "ensemble": ensemble,
    "robometer": robometer,
    "remote": remote,
}


def test_every_scorer_is_tried() -> None:
    assert set(BASELINES) | {"rewind", "ensemble", "robometer", "remote"} == set(SCORERS)


@pytest.fixture(params=SCORERS)
def scorer(request: pytest.FixtureRequest) -> Iterator[Scorer]:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        yield SCORERS[request.param](stack)


def answer(scorer: Scorer, batch: list[Clip]) -> list[np.ndarray | str]:
    """A scorer's answers for clips: numbers, or the error message."""
    try:
        answers: list[np.ndarray | str] = []
        if not scorer.info.compares_only:
            answers += [part for score in scorer.score(batch) for part in (score.progress, score.success)]
        return [*answers, scorer.compare([(batch[0], batch[-1])])]
    except RobometerError as error:
        return [str(error)]


def same(one: list[np.ndarray | str], other: list[np.ndarray | str]) -> bool:
    """Whether messages are equal, and numbers equal up to the rounding of another batch."""
    return len(one) == len(other) and all(
        a == b if isinstance(a, str) or isinstance(b, str) else a.shape == b.shape and np.allclose(a, b, atol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


def wrong_answers(scorer: Scorer, seconds: float) -> tuple[int, int]:
    """How many answers to several threads differ from those to one thread, and the number of answers."""
    all_clips = clips()
    batches = [[clip] for clip in all_clips[:4]] + [all_clips[4:]]
    end, gate = time.monotonic() + seconds, threading.Barrier(THREADS)

    def ask(number: int) -> list[tuple[int, list[np.ndarray | str]]]:
        order, answers = np.random.default_rng(number), []
        gate.wait()
        while time.monotonic() < end or not answers:
            answers += [(int(i), answer(scorer, batches[i])) for i in order.permutation(len(batches))[:2]]
        return answers

    with ThreadPoolExecutor(THREADS) as pool:  # first, so that several threads load what loads on first use
        answers = [one for of_thread in pool.map(ask, range(THREADS)) for one in of_thread]
    expected = [answer(scorer, batch) for batch in batches]
    assert not same(expected[0], expected[1]) or isinstance(scorer, Constant)
    return sum(not same(one, expected[i]) for i, one in answers), len(answers)


def test_answers_to_several_threads_are_those_to_one(scorer: Scorer) -> None:
    assert wrong_answers(scorer, 0.3)[0] == 0


@pytest.mark.slow
def test_answers_to_several_threads_are_those_to_one_for_long(scorer: Scorer) -> None:
    wrong, total = wrong_answers(scorer, 20)
    print(f"{wrong} of {total} answers were wrong")
    assert wrong == 0


@pytest.mark.parametrize("name", ["efficientnet_lite0_grid", "efficientnet_lite0", "random_image"])
def test_an_image_encoder_keeps_nothing_between_its_callers(name: str) -> None:
    torch.set_num_threads(1)
    encoder, all_clips = image_encoder(name), clips()
    expected = [encoder.encode(clip.frames) for clip in all_clips]
    with ThreadPoolExecutor(THREADS) as pool:
        for vectors, expected_vectors in zip(
            pool.map(lambda clip: encoder.encode(clip.frames), all_clips), expected, strict=True
        ):
            np.testing.assert_allclose(vectors, expected_vectors, atol=1e-5)


MODELS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "rewind": (rewind, ["score", "compare"]),
    "robometer": (robometer, ["score", "score_prefixes", "compare"]),
    "chat": (chat, ["ask", "log_prob"]),
}


class Watched:
    """Replaces a model's lock and counts how often it is taken."""

    times_taken = 0

    def __enter__(self) -> None:
        self.times_taken += 1

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("kind", "method"), [(kind, name) for kind, (_, names) in MODELS.items() for name in names])
def test_a_model_is_asked_by_one_thread_at_a_time(kind: str, method: str) -> None:
    model, clip = MODELS[kind][0](), clips()[2]
    of_pictures = [["is it done?", clip.frames[0]]]
    arguments = {"compare": [[(clip, clip)]], "ask": [of_pictures], "log_prob": [of_pictures, "True"]}
    model.busy = Watched()
    assert len(getattr(model, method)(*arguments.get(method, [[clip]]))) == 1
    assert model.busy.times_taken == 1


def test_marked_methods_of_one_object_run_one_at_a_time_and_may_call_each_other() -> None:
    class Counted(OneAtATime):
        inside = most = 0

        @one_at_a_time
        def outer(self) -> int:
            return self.inner()

        @one_at_a_time
        def inner(self) -> int:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.01)
            self.inside -= 1
            return self.most

    counted = Counted()
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(lambda i: counted.outer() if i % 2 else counted.inner(), range(8))) == [1] * 8
