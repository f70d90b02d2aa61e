"""The page, clicked through in a headless Chromium that is installed; without one these tests skip."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines.serving.choice import Choice
from robometer.configs import load
from robometer.corpus.encode import entries
from robometer.corpus.formats import list_units
from robometer.corpus.writer import Accepted
from robometer.evaluation.views import VIEWS
from robometer.frames.video import thin_positions
from robometer.scoring import Clip, ClipScore, ScorerInfo, Session
from robometer.sessions import WindowSession
from tests.frames.odd_files import written
from tests.local_endpoint import endpoint

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

DONE = (2, 5, 6, 7)
"""Frames of the clip that look done."""

TASK = "open the drawer"


class Colours:
    """Progress is how green a frame is, success how red; a task that closes has half the progress."""

    name = "colours@0123456789ab"
    info = ScorerInfo(max_frames=6)

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        return [
            ClipScore(self._mean(clip, 1) * (0.5 if "close" in clip.task else 1), self._mean(clip, 0)) for clip in clips
        ]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        return np.float32([0.8 if self._mean(a, 1)[-1] > self._mean(b, 1)[-1] else 0.3 for a, b in pairs])

    def open_session(self, task: str) -> Session:
        return WindowSession(self, task)

    def _mean(self, clip: Clip, channel: int) -> np.ndarray:
        return np.float32(clip.frames[..., channel].mean((1, 2)) / 255)


def coloured(greens: Sequence[int], reds: Sequence[int], step: int = 1) -> bytes:
    """A video of 10 frames a second."""
    frames = np.zeros((len(greens), 48, 64, 3), np.uint8)
    frames[..., 1] = np.array(greens)[:, None, None]
    frames[..., 0] = np.array(reds)[:, None, None]
    return written(frames, crf="10")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    reds = [200 if i in DONE else 20 for i in range(8)]
    (folder / "it's good.mp4").write_bytes(coloured([20 * i for i in range(8)], reds))
    (folder / "bad.mp4").write_bytes(coloured([60] * 5, [20] * 5))
    return folder


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with endpoint(Colours()) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait(page: Any, condition: str) -> None:
    """Until it holds in the page. Playwright's own way asks for `unsafe-eval`, which the page's policy forbids."""
    end_s = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < end_s, f"never {condition}; {page.inner_text('main')[:500]}"
        time.sleep(0.02)


class Visit:
    """A page in the browser, with all that it asked and all that went wrong in it."""

    def __init__(self, chromium: Any, url: str, **context: Any) -> None:
        self.context = chromium.new_context(**context)
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda line: self.wrong.append(line.text) if line.type == "error" else None)
        self.page.goto(url)
        wait(self.page, "document.querySelector('#model-name').textContent !== '…'")

    def choose(self, slot: str, path: Path) -> None:
        self.page.set_input_files(f"[data-slot={slot}] input", path)
        wait(self.page, f"document.querySelector('#notice').textContent.startsWith({json.dumps(path.name)})")

    def score(self, task: str, curves: int) -> None:
        self.page.fill("#task", task)
        self.page.click("#ask .main")
        self.wait_for_curves(curves)

    def wait_for_curves(self, count: int) -> None:
        wait(
            self.page,
            f"document.querySelectorAll('#runs li').length === {count}"
            " && /at the last of/.test(document.querySelector('#notice').textContent)",
        )

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def points(self) -> list[int]:
        """How many points each curve of progress has."""
        return self.page.eval_on_selector_all("#progress polyline", "lines => lines.map(l => +l.dataset.points)")

    def values(self, run: int, name: str = "progress") -> list[float]:
        """What the page shows of a curve at each moment."""
        script = """([run, cell]) => {
          const plot = document.querySelector("#progress");
          const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key }));
          press("Home");
          return Array.from({ length: Number(plot.ariaValueMax) }, () => {
            const value = document.querySelectorAll(`#runs li:nth-child(${run + 1}) b`)[cell].textContent;
            press("ArrowRight");
            return value === "–" ? NaN : Number(value);
          });
        }"""
        return list(self.page.evaluate(script, [run, ("progress", "success").index(name)]))


@pytest.fixture
def visit(chromium: Any, url: str) -> Iterator[Visit]:
    visit = Visit(chromium, url, viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield visit
    visit.context.close()
    assert [address for address in visit.asked if not address.startswith((url, "blob:"))] == []
    assert visit.wrong == []


def answer_of(url: str, path: Path, task: str, **fields: str) -> dict[str, Any]:
    files = {"video": (path.name, path.read_bytes())}
    return httpx.post(f"{url}/v1/score", files=files, data={"task": task} | fields).json()


def test_a_dropped_video_becomes_a_curve_and_another_instruction_a_second_one(
    visit: Visit, url: str, videos: Path
) -> None:
    path, page = videos / "it's good.mp4", visit.page
    assert (visit.text("#model-name"), visit.text("#model-revision")) == ("colours@0123456789ab", "0123456789ab")
    assert visit.text("#model-frames") == "at most 32 of a video, short edge 240 px; the model takes 6 at a time"
    page.evaluate(
        """async ([name, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name));
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        [path.name, list(path.read_bytes())],
    )
    visit.score(TASK, curves=1)
    visit.score("close the drawer", curves=2)
    assert visit.points() == [8, 8]
    expected = answer_of(url, path, TASK, mode="prefix")
    np.testing.assert_allclose(visit.values(0), expected["progress"], atol=6e-4)
    np.testing.assert_allclose(visit.values(0, "success"), expected["success"], atol=6e-4)
    np.testing.assert_allclose(visit.values(1), np.array(expected["progress"]) / 2, atol=6e-4)

    page.focus("#progress")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert visit.text("[data-slot=A] .readout") == "frame 4 of 8 · source frame 3, 0.30 s"
    assert "frame 4 of 8, source frame 3, 0.30 s" in page.get_attribute("#progress", "aria-valuetext")
    pixel = "document.querySelector('.screen').getContext('2d').getImageData(20, 20, 1, 1).data[1]"
    assert page.evaluate(pixel) == pytest.approx(60, abs=6)
    box = page.locator("#success").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 20)
    assert visit.text("[data-slot=A] .readout") == "frame 8 of 8 · source frame 7, 0.70 s"
    assert page.evaluate(pixel) == pytest.approx(140, abs=6)
    assert visit.text("#strip").split() == [str(i) for i in range(8)]
    assert unseen(visit) == [i for i in range(8) if i not in thin_positions(8, 6)]
    assert "took 6 of these 8" in visit.text("#seen")
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    assert unseen(visit) == [1, 2, 3, 4, 5, 6, 7]
    page.click("[data-show='1']")
    assert visit.points() == [8]
    page.click("[data-remove='1']")
    assert page.locator("#runs li").count() == 1


def test_a_curve_grows_frame_by_frame_in_a_session(visit: Visit, url: str, videos: Path) -> None:
    page, sent, answers = visit.page, [], []
    page.on(
        "websocket", lambda socket: socket.on("framesent", lambda data: sent.append(data))
    )  # without those of a Blob
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: answers.append(json.loads(data))))
    visit.choose("A", videos / "bad.mp4")
    page.evaluate(
        """() => {
          window.grown = [];
          const count = () => window.grown.push(Number(document.querySelector("#progress polyline").dataset.points));
          new MutationObserver(count).observe(document.querySelector("#progress svg"), { childList: true });
        }"""
    )
    visit.score(TASK, curves=1)
    assert visit.text("#notice").endswith("at the last of 5 frames.")
    assert [json.loads(text) for text in sent] == [{"task": TASK}, {"close": True}]
    assert answers[0]["max_frames"] == 6 and [answer["index"] for answer in answers[1:6]] == [[0], [1], [2], [3], [4]]
    assert set(page.evaluate("window.grown")) >= {1, 2, 3, 4, 5}
    page.click("#play")  # from the start, as the cursor is at the end
    wait(page, "document.querySelector('#progress').ariaValueNow === '1'")
    wait(page, "document.querySelector('#progress').ariaValueNow === '5'")
    wait(page, "document.querySelector('#play').innerText === 'Play'")
    expected = answer_of(url, videos / "bad.mp4", TASK, mode="prefix")
    np.testing.assert_allclose(visit.values(0), expected["progress"], atol=6e-4)


def test_a_view_too_long_for_a_session_is_scored_in_one_request(visit: Visit, videos: Path) -> None:
    visit.choose("A", videos / "it's good.mp4")
    visit.score(TASK, curves=1)
    words = "Scored in one request instead of frame by frame: a session takes 6 frames, and this view has 8."
    assert visit.text("#notice").endswith(words)


def test_without_a_websocket_prefixes_are_scored_in_one_request(visit: Visit, videos: Path) -> None:
    visit.page.evaluate(
        "() => { window.WebSocket = class { constructor() { setTimeout(() => this.onerror()); } close() {} }; }"
    )
    visit.choose("A", videos / "bad.mp4")
    visit.score(TASK, curves=1)
    assert visit.text("#notice").endswith("Scored in one request instead of frame by frame: no session opened.")
    assert visit.points() == [5]


def unseen(visit: Visit) -> list[int]:
    items = "items => items.filter(i => i.className.includes('unseen')).map(i => +i.dataset.moment)"
    return list(visit.page.eval_on_selector_all("#strip li", items))


def test_edits_ask_with_the_frames_in_another_order(visit: Visit, url: str, videos: Path) -> None:
    path, page = videos / "it's good.mp4", visit.page
    visit.choose("A", path)
    page.check("[name=mode][value=whole]")
    visit.score(TASK, curves=1)
    forward = np.array(answer_of(url, path, TASK)["progress"])
    for view in ("reversed", "cycle", "frozen", "retry"):  # clicks in a row: each waits for the one before
        page.click(f"[data-view={view}]")
    wait(page, "document.querySelector('#notice').textContent.includes('retry')")
    orders = {**{name: VIEWS[name](8) for name in ("reversed", "cycle", "retry")}, "frozen": np.zeros(8, int)}
    for run, view in enumerate(("reversed", "cycle", "frozen", "retry"), start=1):
        shown = np.array(visit.values(run))
        np.testing.assert_allclose(shown[np.isfinite(shown)], forward[orders[view]], atol=6e-4)
    assert visit.text("#strip").split() == [str(i) for i in orders["retry"]]


def test_the_orders_and_the_thinning_are_those_of_the_product(visit: Visit) -> None:
    script = """async ([views, pairs]) => {
      const module = await import("/page/views.js");
      const orders = views.map((view) => Array.from({ length: 24 }, (_, n) => module.VIEWS[view](n + 1)));
      return [orders, pairs.map(([n, most]) => module.thinned(n, most))];
    }"""
    views = ["forward", "reversed", "cycle", "retry"]
    pairs = [(n, most) for n in range(1, 120) for most in (2, 3, 8, 16, 31)]
    orders, thinned = visit.page.evaluate(script, [views, pairs])
    for view, of_view in zip(views, orders, strict=True):
        assert of_view == [VIEWS[view](n).tolist() for n in range(1, 25)]
    assert thinned == [thin_positions(n, most).tolist() for n, most in pairs]


def test_threshold_and_hold_time_move_the_alarm(visit: Visit, videos: Path) -> None:
    page = visit.page
    visit.choose("A", videos / "it's good.mp4")
    visit.score(TASK, curves=1)  # done in frames 2, 5, 6 and 7 with about 0.78, else about 0.08

    def hold(frames: int) -> str:
        page.fill("#hold", str(frames))
        return visit.text("#alarm")

    assert hold(2).startswith("Alarm at frame 7 of 8 (source frame 6, 0.60 s): success at or above 0.50 for 2 frames")
    assert hold(1).startswith("Alarm at frame 3 of 8")
    assert hold(3).startswith("Alarm at frame 8 of 8")
    assert hold(4).startswith("No alarm")
    assert visit.text("#hold-text") == "4 frames, about 0.40 s"
    hold(2)
    page.focus("#threshold")
    page.keyboard.press("End")
    assert visit.text("#alarm").startswith("No alarm: never success at or above 1.00")
    handle, plot = page.locator("#threshold-line").bounding_box(), page.locator("#success").bounding_box()
    page.mouse.move(handle["x"] + 50, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(handle["x"] + 50, plot["y"] + plot["height"] * 0.98, steps=3)
    page.mouse.up()
    assert float(visit.text("#threshold-text")) == pytest.approx(0.02, abs=0.02)
    assert visit.text("#alarm").startswith("Alarm at frame 2 of 8")


def test_two_clips_are_compared_and_labels_are_ingested(visit: Visit, videos: Path, tmp_path: Path) -> None:
    page = visit.page
    visit.choose("A", videos / "it's good.mp4")
    visit.choose("B", videos / "bad.mp4")
    visit.score(TASK, curves=2)
    assert visit.points() == [8, 5]
    page.click("#compare")
    page.wait_for_selector("#preference:visible")
    assert visit.text("#preference").split("\n")[0].split() == "A better 80.0 %".split()
    assert visit.text("#notice") == "A did better, with probability 0.800."

    page.check("[data-follow='0']")
    page.focus("#progress")
    page.keyboard.press("b")
    assert "first whether it is a success" in visit.text("#error")
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("o")
    page.keyboard.press("b")
    assert visit.text("#error") == ""
    assert visit.text("#notice") == "it's good.mp4 is labelled successful, bad.mp4 suboptimal."
    page.check("[data-follow='1']")
    page.keyboard.press("f")
    page.focus("#task")
    page.keyboard.press("s")  # typed, not labelled
    page.uncheck("#keys")
    page.keyboard.press("s")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "trajectories.jsonl"
    for path in videos.iterdir():
        shutil.copy(path, tmp_path)
    download.value.save_as(tmp_path / "trajectories.jsonl")

    config = load([f"ingest.input={tmp_path}"]).ingest
    accepted = list(entries(list(list_units("mp4_jsonl", str(tmp_path))), config))
    assert all(isinstance(entry, Accepted) for entry in accepted), accepted
    rows = {entry.record["episode_key"]: entry.record for entry in accepted}  # type: ignore[union-attr]
    assert {key: (row["task"], row["quality_label"]) for key, row in rows.items()} == {
        "it's good.mp4": (TASK, "successful"),
        "bad.mp4": (TASK, "failure"),
    }
    assert rows["it's good.mp4"]["success"] == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_link_and_a_line_for_the_shell_reproduce_the_view(visit: Visit, url: str, videos: Path) -> None:
    page, path = visit.page, videos / "it's good.mp4"
    visit.choose("A", path)
    visit.score(TASK, curves=1)
    page.click("[data-view=retry]")
    visit.wait_for_curves(2)
    page.fill("#threshold", "0.3")
    page.focus("#progress")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    link, view, command = page.input_value("#link"), visit.text("#runs"), page.input_value("#curl")
    wait(page, f"location.href === {json.dumps(link)}")
    other = page.context.new_page()
    other.goto(link)
    wait(other, "document.querySelector('#notice').textContent.includes(\"it's good.mp4\")")
    assert other.input_value("#task") == TASK
    other.set_input_files("[data-slot=A] input", path)
    wait(other, f"document.querySelector('#runs').innerText === {json.dumps(view)}")
    wait(other, f"location.href === {json.dumps(link)}")
    assert other.input_value("#threshold") == "0.3"
    other.set_input_files("[data-slot=A] input", path)  # the link is used up: a file is only read
    wait(other, "document.querySelectorAll('#runs li').length === 0")
    other.goto("about:blank")
    other.goto(link)
    other.set_input_files("[data-slot=A] input", videos / "bad.mp4")
    wait(other, "document.querySelector('#notice').textContent.includes('not the file')")
    other.close()

    if shutil.which("curl") is None:
        return
    done = subprocess.run(command, shell=True, cwd=videos, capture_output=True, text=True, check=True)
    (videos / "frames.npy").unlink()
    (videos / "view.npy").unlink()
    retried = np.array(json.loads(done.stdout)["progress"])
    np.testing.assert_allclose(visit.values(1), retried, atol=6e-4)


def test_the_token_is_asked_for_and_stays_in_the_tab(chromium: Any, videos: Path) -> None:
    with endpoint(Colours(), token="geheim ü") as url:
        context = chromium.new_context()
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#error:has-text('bearer token is required. Type it into the field above.')")
        assert page.evaluate("document.activeElement.id") == "token"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#error:has-text('not the one')")
        page.fill("#token", "geheim ü")
        page.click("#token-form button")
        page.wait_for_selector("#notice:has-text('Connected to colours')")
        page.set_input_files("[data-slot=A] input", videos / "bad.mp4")
        page.fill("#task", TASK)
        page.click("#ask .main")
        page.wait_for_selector("#notice:has-text('at the last of 5 frames.')")
        assert "in one request" not in page.inner_text("#notice")  # the session had the token too
        assert "geheim" not in page.url and "$ROBOMETER_TOKEN" in page.input_value("#curl")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        page.wait_for_selector("#model-name:has-text('colours')")
        context.close()


class Green(Colours):
    """Another model: its progress is half as high."""

    name = "green@ba9876543210"

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        return [ClipScore(score.progress / 2, score.success) for score in super().score(clips)]


def test_another_model_is_asked_about_the_same_view(chromium: Any, videos: Path) -> None:
    path = videos / "bad.mp4"
    choice = Choice({"small": "outputs/small", "canary": "outputs/new"}, canary_share=1.0)
    others = {"small": Green(), "canary": Green()}
    with endpoint(Colours(), others=others, models=choice) as url:
        visit = Visit(chromium, url)
        visit.choose("A", path)
        visit.score(TASK, curves=1)
        assert "green" not in visit.text("#runs")  # the page names the default, so the canary does not answer
        [progress, *_] = visit.values(0)
        visit.page.select_option("#model-choice", "small")
        visit.page.wait_for_selector("#model-name:has-text('green@ba9876543210')")
        wait(visit.page, "document.querySelector('#notice').textContent.includes('Drop the same file')")
        visit.page.set_input_files("[data-slot=A] input", path)
        visit.wait_for_curves(1)
        assert visit.values(0)[0] == pytest.approx(progress / 2, abs=1e-3)
        assert "'" + url + "/v1/score?model=small'" in visit.page.input_value("#curl")
        assert visit.wrong == []
        visit.context.close()


def test_errors_are_shown_as_the_endpoint_says_them(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    visit.page.set_input_files("[data-slot=A] input", tmp_path / "text.mp4")
    visit.page.wait_for_selector("#error:has-text('cannot be decoded')")
    assert visit.text("#error").startswith("text.mp4: ") and visit.text("#notice") == ""  # nothing is being read
    visit.page.fill("#task", TASK)
    visit.page.click("#ask .main")
    visit.page.wait_for_selector("#error:has-text('Drop a video first')")
    visit.wrong = [line for line in visit.wrong if "415" not in line]  # Chromium's own line about the answer


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_text_stands_out(
    chromium: Any, url: str, videos: Path, scheme: str
) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    visit = Visit(chromium, url, color_scheme=scheme, **phone)
    visit.choose("A", videos / "it's good.mp4")
    visit.choose("B", videos / "bad.mp4")
    visit.score("put the very long name of the thing into the otherwise empty box", curves=2)
    visit.page.tap("[data-label=success]")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    colours = visit.page.evaluate(
        """() => [...document.querySelectorAll("p, dt, dd, label, button:enabled, .soft, li span, .tick")]
          .filter((node) => node.offsetParent && node.innerText.trim())
          .map((node) => {
            let behind = node;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [node.innerText, getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
          })"""
    )
    assert len(colours) > 30
    assert [text for text, front, back in colours if contrast(front, back) < 4.5] == []
    visit.context.close()


def contrast(front: str, back: str) -> float:
    """Contrast of two colours `rgb(r, g, b)`, as WCAG defines it."""
    light, dark = sorted((luminance(front), luminance(back)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_control_has_a_name_and_is_reached_by_tab(visit: Visit) -> None:
    names = visit.page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, [role=slider]")]
          .filter((node) => !(node.labels?.length || node.getAttribute("aria-label") || node.innerText))
          .map((node) => node.outerHTML)"""
    )
    assert names == []
    reached = set()
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        reached.add(
            visit.page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")
        )
    assert {"token", "task", "Video A", "Video B", "progress", "threshold", "hold", "keys", "link", "curl"} <= reached
