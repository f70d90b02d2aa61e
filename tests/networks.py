"""A network for each node of a cluster on this machine, which can be cut: Linux's network namespaces, for root only."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.cluster_utils import Cluster

_BRIDGE, _PREFIX = "robometer", "10.213.77"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of setns(2)
HEAD = f"{_PREFIX}.1"


@contextmanager
def cluster(store: int, nodes: int, **of_head: Any) -> Iterator[Cluster]:
    """A head and nodes of one CPU with object stores of `store` bytes; only the head is in this machine's own network.

    Raises:
        RuntimeError: this process may make no networks.
    """
    try:
        _ip("link", "add", _BRIDGE, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError("no network could be made: that takes Linux, iproute2, and root") from error
    try:
        _ip("addr", "add", f"{HEAD}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        of_node = {"num_cpus": 1, "object_store_memory": store}
        head = of_node | {"include_dashboard": False, "node_ip_address": HEAD} | of_head
        started = Cluster(initialize_head=True, head_node_args=head)
        try:
            for number in range(2, 2 + nodes):
                with _inside(_network(number)):
                    started.add_node(wait=False, node_ip_address=f"{_PREFIX}.{number}", **of_node)
            started.wait_for_nodes()
            yield started
        finally:
            started.shutdown()
    finally:
        for number in range(2, 2 + nodes):  # a network lasts as long as a process is in it, but its cable can go
            for kind in ("link", "netns"):
                with suppress(subprocess.CalledProcessError):
                    _ip(kind, "del", f"{_BRIDGE}{number}")
        _ip("link", "del", _BRIDGE)


@contextmanager
def cut(node: Any) -> Iterator[None]:
    """Nothing passes between a node and all others for the duration of the block."""
    cable = f"{_BRIDGE}{node.node_ip_address.rpartition('.')[2]}"
    _ip("link", "set", cable, "down")
    try:
        yield
    finally:
        _ip("link", "set", cable, "up")


def _network(number: int) -> str:
    """The name of a new network, whose cable leads to the bridge and has the same name."""
    name = f"{_BRIDGE}{number}"
    _ip("netns", "add", name)
    _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", name, "master", _BRIDGE, "up")
    _ip("-n", name, "addr", "add", f"{_PREFIX}.{number}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", name, "link", "set", device, "up")
    _ip("-n", name, "route", "add", "default", "via", HEAD)
    return name


@contextmanager
def _inside(network: str) -> Iterator[None]:
    """What this thread starts is in that network."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{network}") as other:
        if libc.setns(other.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter the network {network}")
        try:
            yield
        finally:
            libc.setns(own.fileno(), _NEW_NETWORK)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
