"""Which of an endpoint's models a request is for: the one that it names, else the canary for some, else the default.

The choice is made before a route runs, and belongs to the request as its task's context does: `chosen` tells it to what
depends on the model, the `Decoders` and the `Backend`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from pipelines.serving.errors import ApiError

MODEL_HEADER = "x-robometer-model"

DEFAULT, CANARY = "default", "canary"
"""Names of the models of `serve.checkpoint` and `serve.canary`."""

_chosen = ContextVar("chosen", default="")


def chosen() -> str:
    """The name of the model that the current request is for; empty for the default."""
    return _chosen.get()


@dataclass(frozen=True)
class Choice:
    """The models that a request may name.

    Attributes:
        checkpoints: by name, as the user named them; without the default.
        canary_share: part of the requests without a model's name that the canary answers.
    """

    checkpoints: Mapping[str, str] = field(default_factory=dict)
    canary_share: float = 0.0

    def names(self) -> list[str]:
        """All names, the default first."""
        return [DEFAULT, *self.checkpoints]

    def choose(self, header: str | None, query: bytes, key: str = "") -> None:
        """Choose the model of the current request.

        Args:
            header: value of `MODEL_HEADER`.
            query: the request's query string, which may hold `model`.
            key: what the split goes by, such as the request's id: equal keys get the same model; empty: no canary.

        Raises:
            ApiError: 422, the name is not among the models, or there are two.
        """
        named = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("model", [])
        if header is not None:
            named.append(header)
        if len(set(named)) > 1:
            raise ApiError(422, f"The request names two models. Give one, as 'model' or as {MODEL_HEADER}.")
        if named:
            self._choose(named[0])
        else:
            is_canary = key and CANARY in self.checkpoints and _position(key) < self.canary_share
            _chosen.set(CANARY if is_canary else "")

    def _choose(self, name: str) -> None:
        if name not in self.names():
            raise ApiError(422, f"The endpoint has no model {name[:64]!r}. It has {', '.join(self.names())}.")
        _chosen.set("" if name == DEFAULT else name)


def _position(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, evenly spread."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
