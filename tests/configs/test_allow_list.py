"""Which URLs an allow-list allows, and which entries it may have."""

from __future__ import annotations

import pytest

from robometer.configs import ConfigError, load
from robometer.configs.allow_list import AllowList, UrlError

ENTRIES = ("data.example.org", "files.example.org/clips/", "http://10.0.0.7:9000/a", "[2001:db8::1]", "x.org:8443")


@pytest.mark.parametrize(
    "url",
    [
        "https://data.example.org",
        "https://data.example.org/a/b.mp4?signature=x%2Fy",
        "https://DATA.example.org:443/clip.mp4",
        "https://files.example.org/clips/a.mp4",
        "http://10.0.0.7:9000/a",
        "http://10.0.0.7:9000/a/b%20c.npy",
        "https://[2001:db8::1]/x",
        "https://x.org:8443/x",
    ],
)
def test_what_an_entry_names_is_allowed(url: str) -> None:
    AllowList.of(ENTRIES).find(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://data.example.org/a", "not on the list"),
        ("https://data.example.org:8443/a", "not on the list"),
        ("https://data.example.org.evil.net/a", "not on the list"),
        ("https://evil-data.example.org/a", "not on the list"),
        ("https://sub.data.example.org/a", "not on the list"),
        ("https://files.example.org/clips-of-others/a", "not on the list"),
        ("https://files.example.org/", "not on the list"),
        ("http://10.0.0.7:9000/ab", "not on the list"),
        ("https://10.0.0.7:9000/a", "not on the list"),
        ("https://files.example.org/clips/../secret", "dot segments"),
        ("https://files.example.org/clips/%2e%2E/secret", "dot segments"),
        ("https://files.example.org/clips/..%2fsecret", "encoded slashes"),
        ("https://files.example.org/clips\\..\\secret", "no backslash"),
        ("https://user:secret@data.example.org/a", "user name or a password"),
        ("https://data.example.org@evil.net/a", "user name or a password"),
        ("https://data.example.org/a#b", "fragment"),
        ("https://data.example.org/a\r\nX: y", "plain characters"),
        ("https://data.example.org/ä", "plain characters"),
        ("https://dätä.example.org/", "plain characters"),
        ("https://data.example.org/" + "a" * 2000, "up to 2000 plain"),
        ("https://data.example.org:99999/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        ("https:///a", "neither a name"),
        ("ftp://data.example.org/a", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("data.example.org/a", "must begin with https://"),
        ("", "plain characters"),
    ],
)
def test_all_else_is_refused_with_a_reason_that_does_not_quote_it(url: str, words: str) -> None:
    with pytest.raises(UrlError, match=words) as refusal:
        AllowList.of(ENTRIES).find(url)
    assert "secret" not in str(refusal.value)


def test_nothing_is_allowed_if_nothing_is_said() -> None:
    with pytest.raises(UrlError, match="not on the list"):
        AllowList.of(load([]).serve.url_allow_list).find("https://data.example.org/")


@pytest.mark.parametrize("entry", ["*", "*.example.org", "ftp://x.org", "x.org?a=b", "user@x.org", "x.org/../y", ""])
def test_an_entry_that_names_no_host_ends_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.url_allow_list"):
        load([f"serve.url_allow_list=['{entry}']"])
