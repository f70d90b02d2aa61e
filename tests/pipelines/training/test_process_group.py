"""Which network interface Gloo listens on."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest
import ray

from pipelines.training.process_group import listen_on_own_address


@pytest.mark.parametrize("chosen", ["", "eth7"])
def test_gloo_listens_on_the_address_that_ray_knows_unless_the_user_has_chosen(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"}
    found = {name: [SimpleNamespace(address=one)] for name, one in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.0.5")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)
    if not chosen:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    listen_on_own_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == (chosen or "ib0")
