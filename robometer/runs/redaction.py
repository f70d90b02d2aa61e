"""Secrets taken out of whatever is written down: tracked parameters, files of a run, logs, sentences of errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

SECRET_VARIABLES = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|_KEY|CREDENTIALS?)$")
"""Names of environment variables whose values are secrets."""

SHORTEST = 6
"""Characters of a variable's value from which on it is looked for: shorter ones would be found in innocent words."""

_USER = re.compile(  # user:password@ or token@ of a URI; a slash in the password is a mistake, and still a secret
    r"(?<=://)(?:[^/?#\s'\"@:]*:(?!\d*(?:[/?#]|$))[^\s'\"]*|[^/?#\s'\"]*)(?=@)"
)
_WORD = re.compile(r"(?<![^\s'\"])[^\s'\"]+")
_NAMED = re.compile(  # a token with no letter before it: max_tokens and per_frame_progress_token are no secrets
    r"(?i)(?<![\w])((?:\w*(?:auth|bearer|access|refresh|session|tracking|api|robometer|hf)_?)?token"
    r"|\w*(?:password|passwd|pwd|secret|(?:secret|access|api|account|private)[_-]?key(?:_?id)?)|sas|sig|signature"
    r"|x-amz-(?:signature|credential|security-token))=(?!\*\*\*)('[^']*'|\"[^\"]*\"|[^\s&#'\",;)\]}]+)"
)
_HEADER = re.compile(r"(?i)(?<=authorization)(\W{1,4}(?:bearer|basic) )[^\s'\"]+")


def redacted(text: str, *secrets: str) -> str:
    """The text without user and password of URIs, values of `password=`, `token=` and the like, headers that authorise,
    the values of secret environment variables (HF_TOKEN, OPENAI_API_KEY, ...), and `secrets`."""
    known = [value for name, value in os.environ.items() if SECRET_VARIABLES.search(name) and len(value) >= SHORTEST]
    for value in sorted({*known, *filter(None, secrets)}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _WORD.sub(_without_user, text)
    text = _HEADER.sub(lambda match: f"{match[1]}{HIDDEN}", text)
    return _NAMED.sub(lambda match: f"{match[1]}={HIDDEN}", text)


def _without_user(word: re.Match[str]) -> str:
    """Only what stands before its last @, or the search for one begins anew at every `://`."""
    before, at, after = word[0].rpartition("@")
    return f"{_USER.sub(HIDDEN, before + at)}{after}"


def without_secrets(values: Any) -> Any:
    """A nested value with every string `redacted`, and nothing left of what a key `token` holds."""
    if isinstance(values, Mapping):
        return {k: (HIDDEN if v else "") if k == "token" else without_secrets(v) for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [without_secrets(value) for value in values]
    return redacted(values) if isinstance(values, str) else values


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, are `redacted`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return redacted(super().format(record))
