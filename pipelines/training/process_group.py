"""Ray Train's process group of torch, whose workers listen where the others reach them."""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch.config import TorchConfig, _TorchBackend


class Reachable(TorchConfig):
    """`TorchConfig` for workers on several nodes, also where a node's name means 127.0.0.1 to itself.

    Gloo listens on the address of the host's name, and many systems map that to the machine itself: workers of other
    nodes are then refused.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """As in Ray Train."""
        return _ReachableBackend


class _ReachableBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(listen_on_own_address)
        super().on_start(worker_group, backend_config)


def listen_on_own_address() -> None:
    """Let Gloo use the network interface with this node's address; a choice of the user's stays."""
    own = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
