"""What becomes of secrets; their forms in text are tested with the configuration."""

from __future__ import annotations

import logging
import os

import pytest

from robometer.runs import redaction
from robometer.runs.redaction import HIDDEN, RedactingFormatter, redacted, without_secrets


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "DB_PASSWORD", "AWS_CREDENTIALS", "MY_SECRET"])
def test_values_of_secret_variables_are_hidden_wherever_they_stand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "abc123")
    assert redacted("got xabc123y, abc123") == "got x***y, ***"


@pytest.mark.parametrize(("name", "value"), [("HF_TOKEN", "abcde"), ("HF_TOKEN", ""), ("TOKENIZERS_DIR", "/data/abc")])
def test_short_values_and_other_variables_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of five letters may stand in any message; and hiding nothing must not hide everything."""
    monkeypatch.setenv(name, value)
    text = f"reads {value} of /data/abc"
    assert redacted(text) == text


def test_of_two_secrets_the_longer_one_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the end of the longer one would stay."""
    monkeypatch.setenv("A_TOKEN", "secret")
    monkeypatch.setenv("B_TOKEN", "secret-and-more")
    assert redacted("secret-and-more, secret") == "***, ***"
    assert redacted("it is s3, or s3cr3t!", "s3cr3t!", "s3") == "it is ***, or ***"
    assert redacted("nothing to hide", "") == "nothing to hide"


def test_variables_may_come_and_go_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow's do, which one of its threads sets and deletes."""
    monkeypatch.setenv("FIRST_API_KEY", "a secret of some length")
    monkeypatch.setenv("SECOND_TOKEN", "another secret")
    search = redaction.SECRET_VARIABLES.search

    class Deletes:
        def search(self, name: str) -> object:
            os.environ.pop("SECOND_TOKEN", None)
            os.environ[f"NEW_{len(os.environ)}"] = ""
            return search(name)

    monkeypatch.setattr(redaction, "SECRET_VARIABLES", Deletes())
    kept = dict(os.environ)
    try:
        assert (
            redacted("a secret of some length; another secret of some length")
            == f"{HIDDEN}; another secret of some length"
        )
    finally:
        for name in set(os.environ) - set(kept):
            del os.environ[name]


def test_nested_values_keep_their_form_and_lose_their_secrets() -> None:
    values = {
        "serve": {"token": "hidden", "port": 8000, "url": "http://me:pw@host/x"},
        "empty": {"token": ""},
        "list": ["password=abc", 1.5, None, ("a", True)],
        "tokens": "kept",
    }
    assert without_secrets(values) == {
        "serve": {"token": "***", "port": 8000, "url": "http://***@host/x"},
        "empty": {"token": ""},
        "list": ["password=***", 1.5, None, ["a", True]],
        "tokens": "kept",
    }


def test_log_lines_lose_secrets_with_their_arguments_and_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    try:
        raise RuntimeError("the hub refused hf_abcdef")
    except RuntimeError as error:
        info = (RuntimeError, error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "asked as %s", ("hf_abcdef",), info)
    lines = RedactingFormatter("%(levelname)s %(message)s").format(record).splitlines()
    assert lines[0] == "ERROR asked as ***" and lines[-1] == "RuntimeError: the hub refused ***"
    assert not [line for line in lines if "hf_abcdef\n" in line]
