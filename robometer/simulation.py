"""Scripted robot episodes in Meta-World, with labels that the simulator confirms.

Every episode is a pure function of its `EpisodeSpec`: the scene, the noise, the moment at which an expert stops and the
frames that are kept all follow from the spec's seed. So any number of processes can make a corpus in any order, and any
clip can be made again alone.

How each quality is simulated (`roll_out`):

* successful: Meta-World's scripted expert acts until the simulator's success flag rises, and a few steps longer.
* suboptimal: the same expert acts for 50-75 % of the time it needs in this scene, then it hovers, drifts or backs off.
* failure: the expert is told that the whole scene lies 12-20 cm elsewhere, or the arm wanders without a goal.

A roll-out is kept only if the simulator agrees, by its success flag and by how far the episode got (`_Trace.reached`):
a suboptimal clip gets further than any failure, but not as far as a success. The lengths of clips have the same
distribution for all qualities, because a model would learn a length that reveals the label before anything else.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import warnings
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from robometer.errors import RobometerError
from robometer.frames.video import thin_positions
from robometer.settings import not_a_choice
from robometer.trajectory import QUALITY_LABELS, SUBOPTIMAL, SUCCESSFUL

logger = logging.getLogger(__name__)


class SimulationError(RobometerError):
    """A simulation that is impossible. The message says why in one sentence."""


QUALITIES = QUALITY_LABELS[::-1]  # the seeds of episodes follow from this order
SOURCE = "metaworld"
VIEW = "corner2"

INSTRUCTIONS: dict[str, str] = {
    "assembly-v3": "put the ring onto the peg",
    "basketball-v3": "drop the basketball into the hoop",
    "bin-picking-v3": "move the cube into the other bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
    "button-press-v3": "push the button in from the front",
    "button-press-wall-v3": "reach past the wall and push the button in",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "hammer-v3": "hammer in the nail",
    "hand-insert-v3": "move the block into the hole with the gripper",
    "handle-press-side-v3": "press down the handle on the side",
    "handle-press-v3": "press down the handle",
    "handle-pull-side-v3": "pull up the handle on the side",
    "handle-pull-v3": "pull up the handle",
    "lever-pull-v3": "pull up the lever",
    "peg-insert-side-v3": "insert the peg into the hole of the box",
    "peg-unplug-side-v3": "pull the peg out of the box",
    "pick-out-of-hole-v3": "pick the puck out of the hole",
    "pick-place-v3": "pick up the puck and hold it at the marker",
    "pick-place-wall-v3": "lift the puck over the wall to the marker",
    "plate-slide-back-side-v3": "slide the plate sideways out of the cabinet",
    "plate-slide-back-v3": "slide the plate back out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back to the marker",
    "push-v3": "push the puck to the marker",
    "push-wall-v3": "push the puck around the wall to the marker",
    "reach-v3": "move the gripper to the marker",
    "reach-wall-v3": "reach past the wall to the marker",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pull the thermos with the stick",
    "stick-push-v3": "push the thermos with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}

# Never trained on: two opposite pairs that share a scene (window, plate-slide sideways), and tasks that are similar to
# training tasks: the same skill behind a wall, on another handle, or with another goal.
HELD_OUT_TASKS = (
    "button-press-topdown-wall-v3",
    "handle-pull-side-v3",
    "pick-place-wall-v3",
    "plate-slide-back-side-v3",
    "plate-slide-side-v3",
    "sweep-into-v3",
    "window-close-v3",
    "window-open-v3",
)

OPPOSITE_TASKS = (
    ("assembly-v3", "disassemble-v3"),
    ("coffee-pull-v3", "coffee-push-v3"),
    ("door-close-v3", "door-open-v3"),
    ("door-lock-v3", "door-unlock-v3"),
    ("drawer-close-v3", "drawer-open-v3"),
    ("faucet-close-v3", "faucet-open-v3"),
    ("handle-press-v3", "handle-pull-v3"),
    ("plate-slide-back-side-v3", "plate-slide-side-v3"),
    ("plate-slide-back-v3", "plate-slide-v3"),
    ("stick-pull-v3", "stick-push-v3"),
    ("window-close-v3", "window-open-v3"),
)

# Only in these tasks is the target nothing but Meta-World's coloured marker. In all others the marker is hidden: else
# opposite tasks in one scene would differ by the marker's place, not only by what the arm does.
MARKED_TASKS = frozenset(
    {
        "pick-place-v3",
        "pick-place-wall-v3",
        "push-back-v3",
        "push-v3",
        "push-wall-v3",
        "reach-v3",
        "reach-wall-v3",
    }
)

HORIZON_STEPS = 250  # experts need 30-190 steps of 12.5 ms
MAX_ATTEMPTS = 100
MIN_STEPS = 28  # if the expert needs fewer, the scene was almost solved at the start
CAMERA_POSITION = (0.75, 0.075, 0.7)  # corner2 as shipped films the whole room from afar
CAMERA_ZOOM = 0.85  # of its field of view: the objects are small, the table is wide
MIN_MOVE_M = 0.02
MAX_FAILURE_MOVE = 0.25  # of the object's way in a success
MAX_FAILURE_REACHED = 0.3  # of the expert's time, most of which it needs to get to the object
SUBOPTIMAL_REACHED = (0.45, 0.75)

_GL_HELP = "install libegl1 and libgl1-mesa-dri (Debian's names), or libosmesa6 and set MUJOCO_GL=osmesa"

Action = np.ndarray  # [4] float in [-1, 1]: dx, dy, dz, gripper
Controller = Callable[[np.ndarray, int], Action]  # (observation [39], step) -> action


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate. `episodes` turns it into specs. Equal settings always give equal clips."""

    tasks: tuple[str, ...] = tuple(INSTRUCTIONS)
    qualities: tuple[str, ...] = QUALITIES
    clips_per_quality: int = 17
    held_out_clips_per_quality: int = 6
    seen_clips_per_quality: int = 3  # the last clips of each training task, which are kept for evaluation
    image_size: int = 160  # pixels, width and height
    max_frames: int = 16
    fps: float = 10.0  # of the written video; the simulator itself runs at 80 steps a second
    crf: int = 36  # of H.264; larger is smaller and worse
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises SimulationError if no corpus can be made from the settings."""
        unknown = sorted(set(self.tasks) - set(INSTRUCTIONS))
        if unknown:
            raise SimulationError(not_a_choice("simulate.tasks", unknown[0], INSTRUCTIONS))
        wrong = sorted(set(self.qualities) - set(QUALITIES))
        if wrong:
            raise SimulationError(not_a_choice("qualities", wrong[0], QUALITIES))
        if self.image_size < 32 or self.image_size > 480 or self.image_size % 2:
            raise SimulationError(f"image_size must be an even number from 32 to 480, not {self.image_size}")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise SimulationError(f"{name} must be from {low} to {high}, not {value}")


_RANGES = (
    ("max_frames", 4, 1000),
    ("clips_per_quality", 0, 999),
    ("held_out_clips_per_quality", 0, 999),
    ("seen_clips_per_quality", 0, 999),
    ("crf", 0, 51),
    ("seed", 0, 2**63 - 1),
)
"""Smallest and largest values of settings. Clips are numbered with three digits."""


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to simulate. Everything random in it follows from `seed`."""

    task: str  # Meta-World's environment name
    quality: str
    index: int
    split: str
    seed: int
    image_size: int
    max_frames: int
    fps: float
    crf: int

    @property
    def key(self) -> str:
        """The episode key, e.g. `drawer-open-v3/successful/003`."""
        return f"{self.task}/{self.quality}/{self.index:03d}"

    @property
    def video(self) -> str:
        """Path of the clip relative to `trajectories.jsonl`."""
        return f"videos/{self.task}/{self.quality}-{self.index:03d}.mp4"


@dataclass(frozen=True)
class Rollout:
    """A filmed episode. All three arrays have one entry per kept frame."""

    frames: np.ndarray  # uint8 [T, H, W, 3] upright RGB
    env_reward: np.ndarray  # float64 [T], Meta-World's own dense reward, 0 to 10
    success: np.ndarray  # bool [T], the simulator's success flag
    attempt: int  # number of roll-outs that were rejected before this one


@dataclass
class _Trace:
    """The simulated steps of one episode, before rendering."""

    states: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)  # qpos, mocap pos and quat
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    objects: list[np.ndarray] = field(default_factory=list)  # [6] positions of up to two objects, metres

    def __len__(self) -> int:
        return len(self.rewards)

    def moved(self) -> float:
        """The largest distance of the objects from their start, in metres."""
        path = np.stack(self.objects)
        return float(np.linalg.norm(path - path[0], axis=1).max())

    def reached(self, expert: _Trace, at_rest: _Trace) -> float:
        """How far the episode got by its end, as the share of the `expert`'s time that the expert needed to get there.

        It is the larger share by the reward, or by the objects' distance to where the expert leaves them. Comparing
        with the expert's moments avoids two problems of Meta-World's rewards: each task has another scale, and the
        reward falls when the arm lets go. `at_rest` is the same scene without any action, in which a lid may drop into
        place and a door may swing by itself.
        """
        solved = expert.success.index(True)
        path = np.stack(expert.objects)
        distance = np.linalg.norm(path - path[solved], axis=1)
        left, untouched = (float(np.linalg.norm(t.objects[-1] - path[solved])) for t in (self, at_rest))
        by_reward = np.maximum.accumulate(expert.rewards[:solved]) < self.rewards[-1]
        by_objects = np.minimum.accumulate(distance[:solved]) > left
        moved = untouched > MIN_MOVE_M and left < (1 - MAX_FAILURE_MOVE) * untouched
        return float(max(by_reward.mean(), by_objects.mean() if moved else 0.0))


def require_simulator() -> Any:
    """The `mujoco` module, ready to render.

    Raises:
        SimulationError: Meta-World or a GL driver is missing; the message says what to install.
    """
    if importlib.util.find_spec("metaworld") is None or importlib.util.find_spec("mujoco") is None:
        raise SimulationError('simulation needs Meta-World: run `pip install "robometer[simulate]"`')
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except Exception as error:  # without EGL an AttributeError, ImportError or OSError
        raise SimulationError(f"MuJoCo cannot render with MUJOCO_GL={os.environ['MUJOCO_GL']}: {_GL_HELP}") from error
    return mujoco


def split_of(task: str, index: int, settings: SimulationSettings) -> str:
    """`held_out` for every clip of a held-out task, `seen` for the last clips of a training task, else `train`."""
    if task in HELD_OUT_TASKS:
        return "held_out"
    return "seen" if index >= settings.clips_per_quality - settings.seen_clips_per_quality else "train"


def episodes(settings: SimulationSettings) -> list[EpisodeSpec]:
    """All episodes of a corpus, in order. The other episodes affect only the split of a spec."""
    specs = []
    for task in settings.tasks:
        held_out = task in HELD_OUT_TASKS
        count = settings.held_out_clips_per_quality if held_out else settings.clips_per_quality
        for quality in settings.qualities:
            for index in range(count):
                # crc32, because Python's own hash of a text differs between processes
                entropy = [settings.seed, zlib.crc32(task.encode()), QUALITIES.index(quality), index]
                specs.append(
                    EpisodeSpec(
                        task=task,
                        quality=quality,
                        index=index,
                        split=split_of(task, index, settings),
                        seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
                        image_size=settings.image_size,
                        max_frames=settings.max_frames,
                        fps=settings.fps,
                        crf=settings.crf,
                    )
                )
    return specs


def roll_out(spec: EpisodeSpec) -> Rollout | None:
    """Simulate one episode and film it.

    Returns:
        The episode; None if none of `MAX_ATTEMPTS` roll-outs agreed with the label.

    Raises:
        SimulationError: Meta-World is not installed.
    """
    stage = _stage(spec.task, spec.image_size)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([spec.seed, attempt])
        noise = 0.0 if attempt % 3 == 2 else rng.uniform(0.0, 0.15)  # some experts only work undisturbed
        trace = _act(stage, spec.quality, rng, noise)
        if trace is None:
            continue
        steps = _filmed_steps(len(trace), spec.max_frames, rng)
        return Rollout(
            frames=stage.film([trace.states[step] for step in steps]),
            env_reward=np.array([trace.rewards[step] for step in steps]),
            success=np.array([trace.success[step] for step in steps], dtype=bool),
            attempt=attempt,
        )
    logger.info("%s: no roll-out agreed with its label in %d attempts", spec.key, MAX_ATTEMPTS)
    return None


def row(spec: EpisodeSpec, rollout: Rollout) -> dict[str, Any]:
    """The line of `trajectories.jsonl` for a filmed episode."""
    return {
        "video": spec.video,
        "task": INSTRUCTIONS[spec.task],
        "quality_label": spec.quality,
        "source": SOURCE,
        "episode_key": spec.key,
        "view": VIEW,
        "is_robot": True,
        "partial_success": None,
        "fps": spec.fps,
        "split": spec.split,
        "env_reward": [round(float(value), 3) for value in rollout.env_reward],
        "success": [int(flag) for flag in rollout.success],
    }


def encode_mp4(frames: np.ndarray, fps: float, crf: int) -> bytes:
    """The bytes of an H.264 mp4 with these frames (uint8 [T, H, W, 3] RGB, even H and W)."""
    import av
    from av.bitstream import BitStreamFilterContext

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # For the same bytes in every run: x264 splits its work by the number of threads, and its macroblock tree
        # differs between runs (and lowers the quality of the last frame, which shows an episode's outcome).
        options = {"crf": str(crf), "preset": "veryslow", "threads": "1", "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        without_settings = BitStreamFilterContext("filter_units=remove_types=6", stream)  # x264's, 0.7 KB per clip
        pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
        packets = [packet for picture in [*pictures, None] for packet in stream.encode(picture)]
        for packet in [*packets, None]:
            container.mux(without_settings.filter(packet))
    return buffer.getvalue()


def _act(stage: _Stage, quality: str, rng: np.random.Generator, noise: float) -> _Trace | None:
    """One attempt at an episode of this quality; None if the simulator disagrees with the label."""
    scene_seed = int(rng.integers(2**31))
    noise_seed = int(rng.integers(2**31))
    hold_steps = int(rng.integers(3, 10))
    expert = _with_noise(stage.expert(), noise, noise_seed)
    success = stage.play(scene_seed, expert, HORIZON_STEPS, hold_steps)
    if not success.success[-1] or success.success[0] or len(success) < MIN_STEPS:
        return None
    if quality == SUCCESSFUL:
        return success
    steps = max(MIN_STEPS, round(len(success) * rng.uniform(0.8, 1.2)))
    if quality == SUBOPTIMAL:
        turn = round((len(success) - hold_steps) * rng.uniform(0.5, 0.75))
        controller = _with_noise(_lose_interest(stage.expert(), turn, rng), noise, noise_seed)
    elif rng.random() < 0.8:
        controller = _with_noise(_misled(stage.expert(), rng), noise, noise_seed)
    else:
        controller = _wander(rng)
    trace = stage.play(scene_seed, controller, steps, hold_steps=0)
    if any(trace.success) or len(trace) < steps:
        return None
    at_rest = stage.play(scene_seed, _idle, MIN_STEPS, hold_steps=0)
    reached = trace.reached(success, at_rest)
    if quality == SUBOPTIMAL:
        agreed = SUBOPTIMAL_REACHED[0] <= reached <= SUBOPTIMAL_REACHED[1]
    else:
        may_move = at_rest.moved() + max(MIN_MOVE_M, MAX_FAILURE_MOVE * success.moved())
        agreed = reached <= MAX_FAILURE_REACHED and trace.moved() <= may_move
    return trace if agreed else None


def _filmed_steps(num_steps: int, max_frames: int, rng: np.random.Generator) -> list[int]:
    """The steps to film: evenly spread, with the first and the last. Their number does not depend on the label."""
    count = int(rng.integers(math.ceil(0.75 * max_frames), max_frames + 1))
    return [int(step) for step in thin_positions(num_steps, count)]


def _with_noise(controller: Controller, sigma: float, seed: int) -> Controller:
    """Add smooth motor noise (standard deviation `sigma` of full speed), so that no two clips are alike."""
    rng = np.random.default_rng(seed)
    state = np.zeros(3)

    def act(observation: np.ndarray, step: int) -> Action:
        action = controller(observation, step).copy()
        state[:] = 0.9 * state + math.sqrt(1 - 0.9**2) * rng.normal(0.0, sigma, 3)
        action[:3] += state
        return action

    return act


def _lose_interest(expert: Controller, turn_step: int, rng: np.random.Generator) -> Controller:
    """The expert up to `turn_step`. Then the arm hovers, drifts off slowly or backs off; the gripper does not move."""
    mode = rng.choice(["hover", "drift", "back off"])
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    if mode == "back off":
        direction = np.array([rng.uniform(-0.3, 0.3), -0.7, 0.6])  # towards the robot and up
    speed = {"hover": 0.0, "drift": 0.15, "back off": 0.25}[str(mode)] * rng.uniform(0.7, 1.3)
    phase = rng.uniform(0, 2 * math.pi, 3)
    gripper = [-1.0]

    def act(observation: np.ndarray, step: int) -> Action:
        if step < turn_step:
            action = expert(observation, step)
            gripper[0] = float(action[3])
            return action
        sway = 0.15 * np.sin(step / 6.0 + phase)
        return np.array([*(speed * direction + sway), gripper[0]])

    return act


def _misled(expert: Controller, rng: np.random.Generator) -> Controller:
    """The expert, for which every object and goal is shifted by 12-20 cm: to a side, nearer, further, or higher."""
    angle = rng.uniform(0, 2 * math.pi)
    offset = np.array([math.cos(angle), math.sin(angle), 0.0])
    if rng.random() < 0.35:  # too high
        offset = np.array([0.5 * offset[0], 0.5 * offset[1], math.sqrt(0.75)])
    offset *= rng.uniform(0.12, 0.20)

    def act(observation: np.ndarray, step: int) -> Action:
        shifted = observation.copy()
        # Current and previous positions of two objects at most, and the goal.
        for start in (4, 11, 22, 29, 36):
            if np.any(shifted[start : start + 3]):
                shifted[start : start + 3] += offset
        return expert(shifted, step)

    return act


def _idle(observation: np.ndarray, step: int) -> Action:
    return np.array([0.0, 0.0, 0.0, -1.0])


def _wander(rng: np.random.Generator) -> Controller:
    """An arm without a goal: it moves to points high above the table, one after the other."""
    points = np.column_stack([rng.uniform(-0.25, 0.25, 8), rng.uniform(0.45, 0.7, 8), rng.uniform(0.2, 0.4, 8)])
    stay_steps = int(rng.integers(15, 35))
    speed = rng.uniform(0.3, 0.8)
    gripper = float(rng.choice([-1.0, 1.0]))

    def act(observation: np.ndarray, step: int) -> Action:
        point = points[(step // stay_steps) % len(points)]
        return np.array([*np.clip(10 * (point - observation[:3]), -speed, speed), gripper])

    return act


class _Stage:
    """One task's simulator and camera. Each `play` starts with a full reset, so earlier episodes have no effect."""

    def __init__(self, task: str, image_size: int) -> None:
        mujoco = require_simulator()
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        self._mujoco = mujoco
        self._policy: Any = ENV_POLICY_MAP[task]
        self._env = ALL_V3_ENVIRONMENTS[task]()
        # Meta-World's benchmark classes do this through 50 trial resets: the goal becomes part of the observation
        # (whose cached bounds would otherwise clip it to zero), and each reset draws the scene from the seed.
        self._env._partially_observable = False
        self._env.__dict__.pop("sawyer_observation_space", None)
        self._env._set_task_called = True
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._show_marker = task in MARKED_TASKS
        self._image_size = image_size
        self._renderer: Any = None

    def expert(self) -> Controller:
        """Meta-World's scripted policy for this task."""
        policy = self._policy()

        def act(observation: np.ndarray, step: int) -> Action:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns at each step that its gains saturate, as intended
                return np.asarray(policy.get_action(observation), dtype=np.float64)

        return act

    def play(self, scene_seed: int, controller: Controller, max_steps: int, hold_steps: int) -> _Trace:
        """Simulate up to `max_steps`, or until `hold_steps` after the first success if `hold_steps` is positive."""
        env = self._env
        env.seed(scene_seed)
        observation, _ = env.reset()
        trace = _Trace()
        first_success: int | None = None
        for step in range(max_steps):
            action = np.clip(controller(observation, step), -1.0, 1.0).astype(np.float32)
            observation, reward, _, _, info = env.step(action)
            data = env.data
            trace.states.append((data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy()))
            trace.rewards.append(float(reward))
            trace.success.append(bool(info["success"]))
            trace.objects.append(np.concatenate([observation[4:7], observation[11:14]]))
            if first_success is None and trace.success[-1]:
                first_success = step
            if hold_steps and first_success is not None and step >= first_success + hold_steps:
                break
        return trace

    def film(self, states: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
        """Render states of the last scene that was played: uint8 [T, H, W, 3]."""
        renderer, data = self._camera(), self._env.data
        frames = []
        for qpos, mocap_pos, mocap_quat in states:
            data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = qpos, mocap_pos, mocap_quat
            self._mujoco.mj_forward(self._env.model, data)
            for site in self._env._target_site_config:
                self._env._set_pos_site(*site)
            renderer.update_scene(data, camera=VIEW)
            frames.append(renderer.render()[::-1, ::-1])  # corner2 hangs upside down
        return np.ascontiguousarray(np.stack(frames))

    def _camera(self) -> Any:
        """The renderer, which is created on first use (half a second), and the markers hidden or shown."""
        mujoco, model = self._mujoco, self._env.model
        if self._renderer is None:
            model.vis.quality.offsamples = 0  # without multisampling, software rendering is 5 times faster
            camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, VIEW)
            model.cam_pos[camera] = CAMERA_POSITION
            model.cam_fovy[camera] *= CAMERA_ZOOM
            try:
                self._renderer = mujoco.Renderer(model, self._image_size, self._image_size)
            except Exception as error:  # each GL library fails in its own way
                raise SimulationError(f"MuJoCo cannot open a GL context ({error}): {_GL_HELP}") from error
            # Also at exit, before Python unloads the GL module.
            weakref.finalize(self, self._renderer.close)
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        targets = {name for name, _ in self._env._target_site_config}
        for site in range(model.nsite):
            if not (self._show_marker and model.site(site).name in targets):
                model.site_rgba[site, 3] = 0.0
        return self._renderer


@lru_cache(maxsize=1)
def _stage(task: str, image_size: int) -> _Stage:
    """The stage of the current task; only one at a time, as each holds a GL context."""
    return _Stage(task, image_size)
