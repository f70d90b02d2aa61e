"""Pages of other origins: closed by default, and open for those that the setting names, also where a request fails."""

from __future__ import annotations

import httpx
import pytest

from pipelines.serving.cors import cors_headers
from robometer.baselines.trivial import FrameDifference
from robometer.configs import ConfigError, load
from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_http import FORM, MULTIPART

PAGE = "https://lab.example"
ASK = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def cors_of(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def test_no_other_origin_is_let_in_by_default() -> None:
    with endpoint(FrameDifference()) as url:
        asked = httpx.options(f"{url}/v1/score", headers=ASK)
        assert asked.status_code == 405 and not cors_of(asked)
        assert not cors_of(httpx.get(f"{url}/health", headers={"Origin": PAGE}))


def test_a_named_origin_is_let_in_without_cookies_and_reads_every_refusal() -> None:
    with endpoint(FrameDifference(), token="t", cors_origins=(PAGE,), max_upload_bytes=len(FORM)) as url:
        asked = httpx.options(f"{url}/v1/score", headers=ASK)  # a browser asks without the token
        assert asked.status_code == 200 and cors_of(asked)["access-control-allow-origin"] == PAGE
        assert "authorization" in cors_of(asked)["access-control-allow-headers"].lower()
        assert not cors_of(httpx.options(f"{url}/v1/score", headers={**ASK, "Origin": "https://evil.example"})).get(
            "access-control-allow-origin"
        )
        headers = {"Origin": PAGE, "Authorization": "Bearer t", "Content-Type": MULTIPART}
        for token, body, status in (
            ("t", FORM, 200),
            ("wrong", FORM, 401),  # of the replica
            ("t", iter([FORM, b" "]), 413),  # of the proxy, while the body comes
        ):
            answer = httpx.post(f"{url}/v1/score", content=body, headers=headers | {"Authorization": f"Bearer {token}"})
            assert answer.status_code == status and cors_of(answer)["access-control-allow-origin"] == PAGE
            assert "x-request-id" in cors_of(answer)["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in cors_of(answer)
        assert httpx.get(f"{url}/v1/model", headers={"Origin": PAGE}).status_code == 401


def test_any_origin_never_comes_with_credentials() -> None:
    with endpoint(FrameDifference(), cors_origins=("*",)) as url:
        answer = httpx.get(f"{url}/health", headers={"Origin": PAGE, "Cookie": "a=b"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
    assert cors_headers([(b"Vary", b"Origin"), (b"content-type", b"x")]) == [(b"Vary", b"Origin")]


@pytest.mark.parametrize("origin", ["lab.example", "https://lab.example/", "https://*.example", "null", "https://a b"])
def test_what_is_no_origin_is_one_sentence(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not '\\*' or an origin such as"):
        load([f"serve.cors_origins=['{origin}']"])
    assert load(["serve.cors_origins=['https://lab.example:8443','http://[::1]:3000','*']"]).serve.cors_origins
