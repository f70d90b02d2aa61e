"""What `/openapi.json` shows works when it is sent as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_many import npy
from tests.pipelines.serving.test_options import Seen, video

WITH_EXAMPLES = {"/v1/score", "/v1/scores", "/v1/rank", "/v1/compare", "/v1/frames", "/v1/sessions", "/evaluate_batch"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with endpoint(Seen(), jobs=tmp_path_factory.mktemp("jobs")) as url:
        yield url


@pytest.fixture(scope="module")
def bodies(url: str) -> dict[str, Any]:
    """The content of the body of each route, by route."""
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    return {
        path: route["post"]["requestBody"]["content"]
        for path, route in paths.items()
        if "requestBody" in route.get("post", {})
    }


def test_examples_of_json_are_answered(url: str, bodies: dict[str, Any]) -> None:
    examples = {
        path: content["application/json"].get("example", content["application/json"]["schema"].get("example"))
        for path, content in bodies.items()
        if "application/json" in content
    }
    examples = {path: example for path, example in examples.items() if example is not None}
    assert examples.keys() >= WITH_EXAMPLES
    for path, example in examples.items():
        answer = httpx.post(f"{url}{path}", json=example, timeout=60)
        assert answer.is_success, (path, answer.text)


def test_each_way_to_name_a_clip_fits_one_form_of_the_schema(url: str, bodies: dict[str, Any]) -> None:
    """As the schema says: exactly one of the kinds for each clip, or clips with numbers."""
    for path, good, bad in (
        ("/v1/score", ("video",), ("video", "url")),
        ("/v1/compare", ("video_a", "frames_b"), ("video_a",)),
        ("/v1/compare", ("video_0", "frames_1"), ()),
        ("/v1/rank", ("frames_0", "video_1"), ()),
    ):
        schema = bodies[path]["multipart/form-data"]["schema"]
        assert fits(schema, {"task", *good}) and not fits(schema, {"task", *bad})
        files = {name: video() if "video" in name else npy(1, 2) for name in good}
        assert httpx.post(f"{url}{path}", data={"task": "x"}, files=files, timeout=60).is_success
        wrong = {name: ("x", b"x") for name in bad} | {"task": (None, "x")}  # type: ignore[dict-item]
        assert httpx.post(f"{url}{path}", files=wrong, timeout=60).status_code == 422


PICTURE = [[[0, 128, 255]]]
"""A picture."""


@pytest.mark.parametrize(
    ("changes", "is_valid"),
    [
        ({}, True),
        ({"frames": [PICTURE], "task": None}, True),
        ({"frames": [[[7]]], "task": "", "other": 1}, True),
        ({"frames": None}, False),
        ({"frames": []}, False),
        ({"frames": PICTURE[0]}, False),
        ({"frames": [[PICTURE]]}, False),
        ({"frames": [[[0, 0, 0, 0]]]}, False),
        ({"frames": [[[256]]]}, False),
        ({"frames": [[[1.5]]]}, False),
        ({"frames": [[[True]]]}, False),
        ({"frames": {"__numpy_file__": "frames"}}, False),
        ({"task": 7}, False),
        ({"task": "x" * 2001}, False),
    ],
)
def test_samples_that_the_schema_forbids_are_refused(
    url: str, bodies: dict[str, Any], changes: dict[str, Any], is_valid: bool
) -> None:
    """What it allows may still be refused: no schema says that the lists of an array have one length."""
    jsonschema = pytest.importorskip("jsonschema")
    body = {"samples": [{"sample_type": "progress", "trajectory": {"frames": PICTURE, **changes}}]}
    schema = bodies["/evaluate_batch"]["application/json"]["schema"]
    assert jsonschema.Draft202012Validator(schema).is_valid(body) == is_valid
    assert httpx.post(f"{url}/evaluate_batch", json=body, timeout=60).is_success == is_valid


def fits(schema: dict[str, Any], names: set[str]) -> bool:
    """Whether an object with these keys has those that `schema` wants."""
    return (
        set(schema.get("required", ())) <= names
        and all(fits(part, names) for part in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(fits(part, names) for part in schema["anyOf"]))
        and ("oneOf" not in schema or sum(fits(part, names) for part in schema["oneOf"]) == 1)
    )
