"""Which network interface Gloo listens on."""

from __future__ import annotations

import os

import psutil
import pytest
import ray

from pipelines.training.process_group import listen_on_own_address


@pytest.mark.parametrize("chosen", ["", "eth7"])
def test_gloo_listens_on_the_address_that_ray_knows_unless_the_user_has_chosen(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [loopback] = [name for name, its in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in its)]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)
    if not chosen:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    listen_on_own_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == (chosen or loopback)
