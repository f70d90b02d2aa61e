"""The file for `serve deploy` and the builder that it names, without Ray; `benchmarks.rollout` deploys the file."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from benchmarks.rollout import make_checkpoint
from pipelines.deploy import app, fault_of
from pipelines.serving.front import ENVIRONMENT
from robometer.baselines.trivial import FrameDifference
from tests.local_endpoint import endpoint, serving
from tests.pipelines.serving.test_tls import make_pair

FILE = Path(__file__).resolve().parents[2] / "cluster/serve.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), 0)


def parts_of(application: serve.Application) -> tuple[serve.Deployment, serve.Deployment]:
    """The deployments of an application: ingress, model."""
    ingress = application._bound_deployment
    return ingress, ingress.init_args[0]._bound_deployment


def test_the_file_is_valid_and_its_builder_builds_it(checkpoint: str) -> None:
    content = yaml.safe_load(FILE.read_text())
    ServeDeploySchema.model_validate(content)
    assert content["http_options"]["host"] == "127.0.0.1"
    [application] = content["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == (app.__module__, app.__name__)
    args = application["args"] | {"serve.checkpoint": checkpoint, "serve.replicas": 3, "serve.num_cpus": "2"}
    ingress, model = parts_of(app(args))
    assert model.num_replicas == ingress.num_replicas == 3
    assert model.ray_actor_options["num_cpus"] == 2.0
    assert model._deployment_config.max_surge_percent == 100  # new replicas start before old ones end


def test_settings_of_frames_override_those_of_the_model(checkpoint: str) -> None:
    ingress, _ = parts_of(app({"serve.checkpoint": checkpoint, "ingest.max_frames": 5, "serve.max_jobs": 0}))
    limits = ingress.init_args[1]
    assert (limits.frames.max_frames, limits.frames.short_edge) == (5, 64)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"serve.repliacs": 2}, "There is no setting serve.repliacs. Did you mean serve.replicas?"),
        ({"serve.replicas": "many"}, "serve.replicas='many' must be a whole number."),
        ({"serve.port": 9000}, "serve.port has no place in the args of a Serve config file: set http_options.port"),
        ({"serve.token": "secret"}, "set ROBOMETER_TOKEN where Ray starts"),
        ({"serve.tls_key": "/data/key.pem"}, "set http_options.ssl_keyfile"),
        ({"serve.grpc_port": 9000}, "only `robometer serve` starts gRPC"),
        ({"serve.audit_log": "/nowhere/log"}, "/nowhere"),
        ({"serve.checkpoint": "/nowhere/best", "serve.jobs_folder": "jobs"}, "/nowhere/best"),
        ({"serve.replicas": 2}, "Each update would drop the jobs of clients: name a folder"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RayServeException) as caught:  # of which `serve status` shows no traceback
        app(args)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_nothing_is_deployed_on_a_ray_without_the_checks_of_uploads(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(name, value)] = ENVIRONMENT.items()
    monkeypatch.delenv(name)
    with pytest.raises(RayServeException, match=f"start it on every node with {name}={value}"):
        app({"serve.checkpoint": checkpoint})


class _Stranger(BaseHTTPRequestHandler):
    """Another program, which does not know the path either."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_proxy_that_nobody_can_reach_is_told(tmp_path: Path) -> None:
    good, old, other = (make_pair(tmp_path, name, days) for name, days in (("good", 2), ("old", -1), ("other", 2)))
    settings = [f"serve.tls_certificate={good[0]}", f"serve.tls_key={good[1]}"]
    with endpoint(FrameDifference(), settings) as secure, endpoint(FrameDifference()) as plain:

        def fault(url: str, certificate: str = "", key: str = "") -> str:
            port = int(url.rpartition(":")[2])
            http = HTTPOptions(port=port, ssl_keyfile=key or None, ssl_certfile=certificate or None)
            return fault_of(http, patience_s=0)

        assert fault(plain) == fault(secure, *good) == ""
        assert fault(secure, *other) == ""  # good.pem was renewed since
        assert "no client can use http_options.ssl_certfile=" in fault(secure, *old)
        assert "is not the key of http_options.ssl_certfile=" in fault(secure, good[0], other[1])
        assert "http_options.ssl_keyfile=" in fault(secure, good[0], f"{good[1]}.none")
        with serving(_Stranger) as stranger:
            for url, pair in ((stranger, ()), (plain, good), (secure, ())):
                assert "does not answer at 127.0.0.1:" in fault(url, *pair)
        with serving(_Stranger, other) as stranger:
            assert "does not answer at 127.0.0.1:" in fault(stranger, *good)
