"""The files for `ray up` fit the installed Ray, and say what its defaults get wrong."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.exceptions import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.serving.front import ENVIRONMENT
from tests.cluster.manifests import CLUSTER

FILES = sorted((CLUSTER / "ray").iterdir())
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def loaded(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


@each
def test_ray_accepts_the_file_with_its_defaults(file: Path) -> None:
    config = loaded(file)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[key] == []  # Ray's defaults install a nightly build of Ray
    with pytest.raises(ValidationError):
        validate_config({**prepared, "initialisation_commands": []})


@each
def test_a_node_asks_for_a_token_opens_many_files_and_sees_the_storage(file: Path) -> None:
    config = loaded(file)
    options = config["docker"]["run_options"]
    variables = ["RAY_AUTH_MODE=token", *("=".join(item) for item in ENVIRONMENT.items())]
    assert {f"--env {variable}" for variable in variables} | {"--volume /data:/data"} <= set(options)
    assert any(re.fullmatch(r"--ulimit nofile=65536:65536", option) for option in options)
    assert list(config["file_mounts"]) == ["~/.ray/auth_token"]
    assert re.search(r"mountpoint -q /data \|\| sudo mount -t nfs", config["initialization_commands"][-1])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, start = config[key]
        assert stop == "ray stop" and start.startswith("ulimit -n 65536; ray start --")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def node_types() -> list[Any]:
    return [
        pytest.param(file.stem, name, node, id=f"{file.stem}: {name}")
        for file in FILES
        for name, node in loaded(file).get("available_node_types", {}).items()
    ]


@pytest.mark.parametrize(("cloud", "name", "node"), node_types())
def test_a_node_has_an_image_a_disk_and_workers_are_spot(cloud: str, name: str, node: dict[str, Any]) -> None:
    config = node["node_config"]
    if cloud == "aws":
        assert config["ImageId"].startswith("ami-")  # else Ray takes one whose glibc is older than torch's wheels
        disk = config["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
        is_spot = config.get("InstanceMarketOptions") == {"MarketType": "spot"}
    else:
        disk = config["disks"][0]["initializeParams"]["diskSizeGb"]
        assert "ubuntu-2404" in config["disks"][0]["initializeParams"]["sourceImage"]
        is_spot = config.get("scheduling", {}).get("provisioningModel") == "SPOT"
    assert disk >= 200 and is_spot == (name != "head")
    assert (node["resources"].get("GPU", 0) > 0) == (name == "gpu_worker")
    assert node["resources"]["CPU"] == 0 or name != "head"


@each
def test_what_must_be_replaced_is_on_the_page(file: Path) -> None:
    page = (CLUSTER.parent / "docs/deployment.md").read_text()
    text = file.read_text()
    placeholders = set(re.findall(r"registry\.example\.com/\w+:TAG|ami-\w+|fs-\d\w+|\b10\.0\.0\.\d+|\bPROJECT\b", text))
    assert placeholders and [name for name in placeholders if name not in page] == []
