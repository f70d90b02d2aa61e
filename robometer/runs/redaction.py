"""Removal of secrets from everything that is written: tracked parameters, files of a run, logs, error messages."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

SECRET_VARIABLES = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|_KEY|CREDENTIALS?)$")
"""Matches names of environment variables whose values are secrets."""

SHORTEST = 6
"""Length from which a variable's value is redacted: shorter ones occur in harmless words."""

_USER = re.compile(  # user:password@ or token@ in a URI; a slash in the password is a mistake, but still a secret
    r"(?<=://)(?:[^/?#\s'\"@:]*:(?!\d*(?:[/?#]|$))[^\s'\"]*|[^/?#\s'\"]*)(?=@)"
)
_WORD = re.compile(r"(?<![^\s'\"])[^\s'\"]+")
_NAMED = re.compile(  # a token without a letter before it: max_tokens and per_frame_progress_token are not secrets
    r"(?i)(?<![\w])((?:\w*(?:auth|bearer|access|refresh|session|tracking|api|robometer|hf)_?)?token"
    r"|\w*(?:password|passwd|pwd|secret|(?:secret|access|api|account|private)[_-]?key(?:_?id)?)|sas|sig|signature"
    r"|x-amz-(?:signature|credential|security-token))=(?!\*\*\*)('[^']*'|\"[^\"]*\"|[^\s&#'\",;)\]}]+)"
)
_HEADER = re.compile(r"(?i)(?<=authorization)(\W{1,4}(?:bearer|basic) )[^\s'\"]+")


def redacted(text: str, *secrets: str) -> str:
    """The text without secrets.

    These are users and passwords in URIs, values of `password=`, `token=` and the like, authorization headers, values
    of secret environment variables (HF_TOKEN, OPENAI_API_KEY, ...), and `secrets`.
    """
    names = [name for name in os.environ if SECRET_VARIABLES.search(name)]
    values = [value for name in names if len(value := os.environ.get(name, "")) >= SHORTEST]
    for value in sorted({*values, *filter(None, secrets)}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _WORD.sub(_without_user, text)
    text = _HEADER.sub(lambda match: f"{match[1]}{HIDDEN}", text)
    return _NAMED.sub(lambda match: f"{match[1]}={HIDDEN}", text)


def _without_user(word: re.Match[str]) -> str:
    """A word without users of URIs. Only the part before its last @ is searched, else each `://` starts a search."""
    before, at, after = word[0].rpartition("@")
    return f"{_USER.sub(HIDDEN, before + at)}{after}"


def without_secrets(values: Any) -> Any:
    """A nested value with every string `redacted`, and the values of `token` keys hidden."""
    if isinstance(values, Mapping):
        return {k: (HIDDEN if v else "") if k == "token" else without_secrets(v) for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_secrets(value) for value in values]
    return redacted(values) if isinstance(values, str) else values


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, including tracebacks, are `redacted`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return redacted(super().format(record))
