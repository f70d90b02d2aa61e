"""The Kubernetes manifests as Python values, built from a kustomization as `kubectl kustomize` builds it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
KUBERNETES = CLUSTER / "kubernetes"
FOLDERS = [KUBERNETES / name for name in ("base", "train", "overlays/production", "overlays/training")]
"""What a user may apply."""

Object = dict[str, Any]


def build(folder: Path, above: Sequence[Object] = ()) -> list[Object]:
    """The objects of a kustomization: no more of Kustomize than these files use, and an error where they use more.

    Args:
        folder: has a `kustomization.yaml`.
        above: of a component, the objects of the kustomization that uses it.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}
    assert kustomization.keys() <= known, f"{folder}: {kustomization.keys() - known}"
    objects = [*above]
    for name in kustomization.get("resources", []):
        path = folder / name
        objects += build(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    objects = json.loads(json.dumps(objects))  # no value twice, as YAML's anchors leave them
    for name in kustomization.get("components", []):
        objects = build(folder / name, objects)
    for patch in kustomization.get("patches", []):
        target = (patch["target"]["kind"], patch["target"]["name"])
        found = [one for one in objects if (one["kind"], one["metadata"]["name"]) == target]
        assert len(found) == 1, f"{folder}: {target} is {len(found)} objects"
        _merge(found[0], yaml.safe_load(patch["patch"]))
    tags = {image["name"]: image["newTag"] for image in kustomization.get("images", [])}
    for pod in (pod for one in objects for pod in pods(one)):
        name, _, tag = pod.container["image"].rpartition(":")
        pod.container["image"] = f"{name}:{tags.get(name, tag)}"
    for one in objects:
        if "namespace" in kustomization and one["kind"] != "PriorityClass":  # which belongs to the whole cluster
            one["metadata"]["namespace"] = kustomization["namespace"]
    return objects


def _merge(value: Object, patch: Object) -> None:
    """RFC 7386, which Kustomize uses for objects whose schema it doesn't know; lists are replaced."""
    for key, new in patch.items():
        if isinstance(new, dict) and isinstance(value.get(key), dict):
            _merge(value[key], new)
        else:
            value[key] = new


@dataclass
class Pod:
    """The template of a pod: head or worker of a Ray cluster."""

    cluster: Object
    """The specification of its Ray cluster."""
    group: Object
    """That of its group."""
    is_head: bool

    @property
    def spec(self) -> Object:
        return self.group["template"]["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.group["template"]["metadata"]["labels"]

    @property
    def container(self) -> Object:
        (container,) = self.spec["containers"]
        return container

    @property
    def name(self) -> str:
        return self.labels["app.kubernetes.io/component"]


def ray_cluster(one: Object) -> Object | None:
    """The specification of the Ray cluster that an object makes."""
    spec = one.get("spec", {})
    return {
        "RayCluster": spec,
        "RayJob": spec.get("rayClusterSpec"),
        "RayService": spec.get("rayClusterConfig"),
        "RayCronJob": spec.get("jobTemplate", {}).get("rayClusterSpec"),
    }.get(one["kind"])


def pods(one: Object) -> Iterator[Pod]:
    """Its pods."""
    if cluster := ray_cluster(one):
        yield Pod(cluster, cluster["headGroupSpec"], True)
        for group in cluster["workerGroupSpecs"]:
            yield Pod(cluster, group, False)
