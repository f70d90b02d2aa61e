"""Operation of the endpoint on a real Ray Serve: TLS and a token file, from the start to the drained end."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import ray

from pipelines.serve import end, start, stop
from pipelines.serving.tls import trust
from pipelines.serving.tokens import TokenLimits, add_token
from robometer.client import RemoteScorer
from robometer.configs import ConfigError
from tests.made_scorer import Made
from tests.pipelines.serving.test_tls import make_pair
from tests.pipelines.test_serve import config_with, frames_of, free_port, load_fussy, npy, post_frames

SCORES = ('route="/v1/score",', 'status="200"', 'token="few"', 'model="frame_difference@abc123"')


def exported_by_ray() -> str:
    """The metrics at Ray's own port, once they have all of ours; each replica exports every 10 s."""
    port, text = ray.nodes()[0]["MetricsExportPort"], ""
    for _ in range(80):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        if total(text, *SCORES) >= 2:
            break
        time.sleep(0.5)
    return text


def total(text: str, *labels: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith("ray_robometer_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels))


@pytest.mark.slow
def test_an_endpoint_with_tls_and_a_token_file(ray_local: None, tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "endpoint")
    tokens = tmp_path / "tokens.yaml"
    token = add_token(tokens, "few", TokenLimits(requests_per_minute=2))
    config = config_with(
        f"serve.port={free_port()}",
        f"serve.tls_certificate={certificate}",
        f"serve.tls_key={key}",
        f"serve.token_file={tokens}",
        "serve.replicas=2",
    )
    with pytest.raises(ConfigError, match="both"):
        start(config_with(f"serve.tls_certificate={certificate}"), Made(load_fussy))
    url = start(config, Made(load_fussy))
    try:
        assert url.startswith("https://127.0.0.1:")
        with RemoteScorer(url, token, ca_file=certificate) as remote:
            assert remote.name == "frame_difference@abc123"
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, verify=trust(certificate), timeout=60) as http:
            statuses = [post_frames(http, npy(frames_of(2))).status_code for _ in range(4)]
            assert statuses == [200, 200, 429, 429]  # in whichever of the two ingress replicas
            text = exported_by_ray()
            # The replica that answers this may have answered nothing else yet.
            assert "robometer_in_flight{replica=" in http.get("/metrics").text
        assert total(text, *SCORES) == total(text, 'token="few"', 'route="/v1/score"') == 2  # both replicas add up
        end(config)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, verify=trust(certificate))
    finally:
        stop()
