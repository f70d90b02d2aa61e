"""The Kubernetes manifests fit KubeRay's schemas, one another and our settings, and `kubectl` builds the same."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from benchmarks.rollout import make_checkpoint
from pipelines.deploy import app
from pipelines.serving.front import ENVIRONMENT
from robometer.configs import load
from robometer.configs.loading import override
from tests.cluster.manifests import CLUSTER, FOLDERS, KUBERNETES, Object, Pod, build, pods, ray_cluster
from tests.conftest import SHARED
from tests.docs.test_site import read

SCHEMAS = SHARED / "data/kuberay_crds"
"""Of KubeRay at feeaf72f (2026-08-19), between v1.7.0 and v1.7.1."""

PAGE = (CLUSTER.parent / "docs/deployment.md").read_text()
BUILT = {folder.relative_to(KUBERNETES).as_posix(): build(folder) for folder in FOLDERS}
COMPONENTS = {path.name: path for path in (KUBERNETES / "components").iterdir()}
OBJECTS = [
    pytest.param(one, id=f"{name}: {one['kind']} {one['metadata']['name']}")
    for name, objects in BUILT.items()
    for one in objects
]
PODS = [
    pytest.param(pod, id=f"{name}: {pod.name} {pod.group.get('groupName', '')}")
    for name, objects in BUILT.items()
    for one in objects
    for pod in pods(one)
]


def closed(schema: Any) -> Any:
    """A schema that refuses fields which it doesn't know; the API server drops them without a word."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    values = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        values.setdefault("additionalProperties", False)
    return values


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """KubeRay's, by kind."""
    if not SCHEMAS.exists():
        pytest.skip("../shared/data/kuberay_crds is absent: KubeRay's schemas are not part of the project")
    kinds = ("RayCluster", "RayJob", "RayService", "RayCronJob")
    return {kind: closed(json.loads((SCHEMAS / f"{kind.lower()}s.v1.schema.json").read_text())) for kind in kinds}


def faults(one: Object, schemas: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(schemas[one["kind"]])
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(one)]


def test_every_kuberay_object_fits_the_schema(schemas: dict[str, Any]) -> None:
    ours = [one for objects in BUILT.values() for one in objects if one["apiVersion"] == "ray.io/v1"]
    assert {one["kind"] for one in ours} == schemas.keys()
    assert {one["metadata"]["name"]: found for one in ours if (found := faults(one, schemas))} == {}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_can_be_used(name: str, schemas: dict[str, Any], tmp_path: Path) -> None:
    """On that of base and train which has its targets."""
    kind = "train" if name == "kueue" else "base"
    shutil.copytree(KUBERNETES, tmp_path / "k")
    (tmp_path / "k/one").mkdir()
    text = yaml.safe_dump({"resources": [f"../{kind}"], "components": [f"../components/{name}"]})
    (tmp_path / "k/one/kustomization.yaml").write_text(text)
    objects = build(tmp_path / "k/one")
    assert objects != BUILT[kind]
    assert [faults(one, schemas) for one in objects if one["apiVersion"] == "ray.io/v1" and faults(one, schemas)] == []
    compare_with_kubectl(tmp_path / "k/one", objects)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", "spec.headGroupSpec.rayStartParam", {}),
        ("RayCluster", "spec.autoscalerOptions.idleTimeoutSecond", 3),
        ("RayCluster", "spec.gcsFaultToleranceOptions", {"backend": "rocksdb", "storage": {"existingClaim": "x"}}),
        ("RayService", "spec.serveConfig", ""),
        ("RayService", "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.env.0.valeu", "x"),
        ("RayJob", "spec.submissionMode", 1),
        ("RayCronJob", "spec.jobTemplate.clusterSelecter", {}),
    ],
)
def test_a_planted_typo_is_refused(kind: str, path: str, value: Any, schemas: dict[str, Any]) -> None:
    (one,) = [copy.deepcopy(one) for one in (*BUILT["base"], *BUILT["train"]) if one["kind"] == kind]
    assert faults(one, schemas) == []
    at: Any = one
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    assert len(faults(one, schemas)) == 1


def compare_with_kubectl(folder: Path, objects: list[Object]) -> None:
    """Where it is installed, `kubectl kustomize` makes the same objects."""
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

        def sort(values: list[Object]) -> list[str]:
            return sorted(json.dumps(one, sort_keys=True) for one in values)

        assert sort(list(yaml.safe_load_all(done.stdout))) == sort(objects)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_builds_the_same_objects(folder: Path) -> None:
    compare_with_kubectl(folder, build(folder))


def test_a_patch_without_a_target_is_told(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "k")
    file = tmp_path / "k/components/kueue/kustomization.yaml"
    file.write_text(file.read_text().replace("name: robometer-train}\n    patch", "name: robometer-trian}\n    patch"))
    with pytest.raises(AssertionError, match="robometer-trian"):
        build(tmp_path / "k/overlays/training")


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_confined_and_mounts_what_it_declares(pod: Pod) -> None:
    security, container = pod.spec["securityContext"], pod.container
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 1000)  # the user of the image
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod.spec["volumes"]}
    claims = {one["metadata"]["name"] for one in BUILT["base"] if one["kind"] == "PersistentVolumeClaim"}
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod.spec["volumes"]} == claims
    priorities = {one["metadata"]["name"] for one in BUILT["base"] if one["kind"] == "PriorityClass"}
    assert pod.spec["priorityClassName"] in priorities
    assert pod.labels["app.kubernetes.io/part-of"] == "robometer"


@pytest.mark.parametrize("pod", PODS)
def test_what_a_pod_asks_for_is_what_ray_is_told(pod: Pod) -> None:
    """KubeRay tells Ray the limits, except where rayStartParams says otherwise: the head takes no tasks."""
    asked, limits = (pod.container["resources"][key] for key in ("requests", "limits"))
    assert limits.items() <= asked.items()
    assert asked.keys() - limits.keys() == {"ephemeral-storage"}  # what Ray spills, and logs
    start = pod.group["rayStartParams"]
    assert start == ({"num-cpus": "0"} if pod.is_head else {})
    assert limits["cpu"].isdigit() and ("nvidia.com/gpu" in limits) == (
        pod.group.get("groupName") in ("train", "serve")
    )
    if not pod.is_head:
        assert pod.group["minReplicas"] <= pod.group["replicas"] <= pod.group["maxReplicas"]


@pytest.mark.parametrize("pod", PODS)
def test_only_workers_that_can_be_lost_are_on_spot_nodes(pod: Pod) -> None:
    rules = pod.spec["affinity"]["nodeAffinity"]
    wanted = json.dumps(rules.get("preferredDuringSchedulingIgnoredDuringExecution", []))
    refused = json.dumps(rules.get("requiredDuringSchedulingIgnoredDuringExecution", {}))
    tolerated = {one["key"] for one in pod.spec.get("tolerations", [])}
    marks = ("cloud.google.com/gke-spot", "eks.amazonaws.com/capacityType", "karpenter.sh/", "kubernetes.azure.com/")
    may_be_lost = pod.name in ("cluster-worker", "train-worker")
    for mark in marks:
        assert (mark in wanted, mark in refused) == (may_be_lost, not may_be_lost)
    assert ("cloud.google.com/gke-spot" in tolerated) == may_be_lost
    if not pod.is_head:
        assert "nvidia.com/gpu" in tolerated or "nvidia.com/gpu" not in pod.container["resources"]["limits"]


@pytest.mark.parametrize("pod", [pod for pod in PODS if not pod.values[0].is_head])
def test_a_worker_that_ends_tells_ray_in_time(pod: Pod) -> None:
    (*_, command) = pod.container["lifecycle"]["preStop"]["exec"]["command"]
    words = shlex.split(command)
    drain, sleep = words[: words.index("&&")], words[words.index("&&") + 1 :]
    from ray.scripts.scripts import drain_node

    values = drain_node.make_context("drain-node", drain[2:]).params
    assert drain[:2] == ["ray", "drain-node"] and values["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert sleep == ["sleep", str(values["deadline_remaining_seconds"])]
    assert values["deadline_remaining_seconds"] < pod.spec["terminationGracePeriodSeconds"] < 120  # AWS's notice


@pytest.mark.parametrize("one", OBJECTS)
def test_a_ray_cluster_has_our_ray_and_asks_for_a_token(one: Object) -> None:
    if cluster := ray_cluster(one):
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token", "secretName": "robometer-ray"}
        assert "create secret generic robometer-ray --from-literal=auth_token=" in PAGE.replace(" \\\n ", "")


def test_one_image_everywhere() -> None:
    images = {pod.container["image"] for objects in BUILT.values() for one in objects for pod in pods(one)}
    images |= {yaml.safe_load(file.read_text())["docker"]["image"] for file in (CLUSTER / "ray").iterdir()}
    assert images == {"registry.example.com/robometer:TAG"}
    assert "docker build -f cluster/Dockerfile -t registry.example.com/robometer:TAG" in PAGE


def everything(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from everything(one)


def test_no_secret_stands_in_a_file() -> None:
    needed = {"robometer-ray": {"auth_token"}}  # that of authOptions
    for file in KUBERNETES.rglob("*.yaml"):
        documents = list(yaml.safe_load_all(file.read_text()))
        documents += [yaml.safe_load(patch["patch"]) for one in documents for patch in one.get("patches", [])]
        for value in everything(documents):
            assert value.get("kind") != "Secret", file
            for key in value:
                if re.search("password|token|secret(?!Name|KeyRef)", key, re.IGNORECASE):
                    assert isinstance(value[key], dict) and value[key].keys() == {"valueFrom"}, (file, key)
            if re.search("TOKEN|PASSWORD|SECRET|KEY", str(value.get("name", ""))):
                assert value.keys() == {"name", "valueFrom"}, (file, value["name"])
            if "secretKeyRef" in value:
                needed.setdefault(value["secretKeyRef"]["name"], set()).add(value["secretKeyRef"]["key"])
    made = dict(re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", PAGE.replace("\\\n", "")))
    assert {name: {key} for name, key in made.items()} == needed


def test_the_endpoint_is_that_of_serve_yaml(tmp_path: Path) -> None:
    (service,) = [one for one in BUILT["base"] if one["kind"] == "RayService"]
    here = yaml.safe_load(service["spec"]["serveConfigV2"])
    there = yaml.safe_load((CLUSTER / "serve.yaml").read_text())
    ServeDeploySchema.model_validate(here)
    assert here["http_options"] == {**there["http_options"], "host": "0.0.0.0"}
    (ours,), (theirs,) = here.pop("applications"), there.pop("applications")
    del here["http_options"], there["http_options"]
    assert here == there and here["proxy_location"] == "HeadOnly"
    args, other = ours.pop("args"), theirs.pop("args")
    assert ours == theirs and args.keys() - {"serve.max_replicas"} == other.keys()
    override(load(), args)  # known settings, with values that they can have
    app({**args, "serve.checkpoint": make_checkpoint(tmp_path, 0), "serve.jobs_folder": str(tmp_path)})
    for pod in pods(service):
        variables = {one["name"]: one.get("value") for one in pod.container["env"]}
        assert ENVIRONMENT.items() <= variables.items() and "ROBOMETER_TOKEN" in variables
        if pod.is_head:
            assert {"name": "serve", "containerPort": here.get("port", 8000)} in pod.container["ports"]
        else:
            room = {key: int(value) for key, value in pod.container["resources"]["limits"].items() if value.isdigit()}
            assert args["serve.num_gpus"] == room["nvidia.com/gpu"] and args["serve.num_cpus"] < room["cpu"]
            assert args["serve.max_replicas"] == pod.group["maxReplicas"]  # one replica of the model on each
    folders = {value.split("/")[1] for key, value in args.items() if key in ("serve.checkpoint", "serve.jobs_folder")}
    assert folders == {"data"}  # where the volume is mounted


def entrypoints() -> Iterator[tuple[str, Object]]:
    for one in (one for objects in BUILT.values() for one in objects):
        spec = one.get("spec", {})
        if "entrypoint" in (job := spec.get("jobTemplate", spec)):
            yield job["entrypoint"], one


def test_jobs_fit_the_grammar_and_their_cluster() -> None:
    found = list(entrypoints())
    assert {one["kind"] for _, one in found} == {"RayJob", "RayCronJob"}
    clusters = {one["metadata"]["name"] for one in BUILT["base"] if one["kind"] == "RayCluster"}
    for entrypoint, one in found:
        python, flag, module, *words = shlex.split(entrypoint)
        assert (python, flag) == ("python", "-m")
        read([module.removeprefix("jobs."), *words])
        if selector := one["spec"].get("jobTemplate", {}).get("clusterSelector"):
            assert selector["ray.io/cluster"] in clusters
        assert all(word.startswith("/data/") for word in words if word.startswith("/"))


def test_the_training_fits_its_pods_and_leaves_cpus_for_the_samples() -> None:
    (job,) = BUILT["train"]
    settings = [word for word in shlex.split(job["spec"]["entrypoint"]) if "=" in word]
    train = load(settings).train
    (_, workers) = pods(job)
    gpus, cpus = (int(workers.container["resources"]["limits"][key]) for key in ("nvidia.com/gpu", "cpu"))
    count = workers.group["replicas"]
    assert workers.group["minReplicas"] == count == workers.group["maxReplicas"]  # Kueue admits all or nothing
    assert train.use_gpu and train.num_workers == count * gpus
    assert train.num_workers * train.cpus_per_worker <= count * cpus / 2
    assert job["spec"]["shutdownAfterJobFinishes"] and "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]


def selectors(value: Any) -> Iterator[dict[str, str]]:
    for one in everything(value):
        for key in ("podSelector", "selector"):
            if isinstance(one.get(key), dict) and "matchLabels" in one[key]:
                yield one[key]["matchLabels"]


def test_every_selector_matches_a_pod_and_every_port_is_one_of_a_pod() -> None:
    objects = BUILT["overlays/production"]
    ours = [pod for one in (*objects, *BUILT["train"]) for pod in pods(one)]
    guards = [one for one in objects if one["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor")]
    assert len(guards) == 5
    wanted = [labels for one in guards for labels in selectors(one["spec"])]
    assert len(wanted) == 6
    for labels in wanted:
        assert any(labels.items() <= pod.labels.items() for pod in ours), labels
    ports = {port["containerPort"] for pod in ours for port in pod.container["ports"]}
    asked = {one["port"] for guard in guards for one in everything(guard["spec"]) if "port" in one}
    assert asked - {"metrics"} == {8000, 8080, 8265} <= ports
    for pod in ours:
        assert {"name": "metrics", "containerPort": 8080} in pod.container["ports"]


def test_heads_are_protected_one_by_one() -> None:
    """A budget of one for two heads would let one of them be evicted."""
    heads = [pod for one in BUILT["base"] for pod in pods(one) if pod.is_head]
    for one in (one for one in BUILT["base"] if one["kind"] == "PodDisruptionBudget"):
        labels = one["spec"]["selector"]["matchLabels"]
        assert one["spec"]["minAvailable"] == 1
        assert len([pod for pod in heads if labels.items() <= pod.labels.items()]) == 1


@pytest.mark.parametrize("objects", BUILT.values(), ids=BUILT)
def test_names_are_unique_and_short_enough_for_kuberay(objects: list[Object]) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    services = [f"{name}-head-svc" for kind, name in names if kind in ("RayCluster", "RayService")]
    assert len(set(services)) == len(services)  # KubeRay names them so
    assert max(len(name) for _, name in names) <= 40


def test_every_file_is_used_and_explained() -> None:
    used = {path.resolve() for path in KUBERNETES.rglob("kustomization.yaml")}
    for kustomization in list(used):
        names = yaml.safe_load(kustomization.read_text()).get("resources", [])
        used |= {(kustomization.parent / name).resolve() for name in names}
    assert {path.resolve() for path in KUBERNETES.rglob("*") if path.is_file()} <= used
    explained = {CLUSTER.parent / name for name in re.findall(r"`(cluster/[\w./-]+)`", PAGE)} - {CLUSTER}
    files = [path for path in CLUSTER.rglob("*") if path.is_file()]
    assert [file for file in files if not explained & {file, *file.parents}] == []
