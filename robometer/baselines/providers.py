"""The wire format of each provider of chat models with images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from robometer.baselines.config import BaselineConfig
from robometer.frames.video import encode_jpeg

JPEG_QUALITY = 95

Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One request: texts and images, in the order in which the model reads them.

    Attributes:
        parts: a text, or an RGB frame uint8 [H, W, 3].
        schema: JSON schema (type, properties, items, required) of the answer; not every provider enforces it, so the
            reader of the answer must not rely on it.
        detail: resolution at which OpenAI's models see images: low, high or auto.
    """

    parts: Sequence[str | np.ndarray]
    schema: Json | None = None
    detail: str = "auto"


@dataclass(frozen=True)
class Answer:
    """The model's answer.

    Attributes:
        text: the answer without the model's thinking; may be empty.
        finish: why the answer ended, in the provider's words.
        input_tokens, output_tokens: as the provider counts them, including thinking; 0 where unknown.
    """

    text: str
    finish: str
    input_tokens: int = 0
    output_tokens: int = 0


class Provider(Protocol):
    """Wire format of a provider."""

    name: str
    base_url: str
    key_variable: str  # environment variable that holds the key

    def headers(self, key: str) -> dict[str, str]:
        """Headers with the key, which must never be in a URL: URLs end up in logs."""
        ...

    def path(self, model: str) -> str:
        """Path of the endpoint, below the base URL."""
        ...

    def body(self, question: Question, model: str, config: BaselineConfig) -> Json:
        """Body of the request."""
        ...

    def answer(self, reply: Json) -> Answer:
        """The answer in a successful reply; raises LookupError, TypeError or AttributeError for any other format."""
        ...


class Gemini:
    """Google's `generateContent`, REST v1beta."""

    name = "gemini"
    base_url = "https://generativelanguage.googleapis.com/v1beta"
    key_variable = "GEMINI_API_KEY"

    def headers(self, key: str) -> dict[str, str]:
        """See `Provider`."""
        return {"x-goog-api-key": key}

    def path(self, model: str) -> str:
        """See `Provider`."""
        return f"models/{quote(model, safe='')}:generateContent"

    def body(self, question: Question, model: str, config: BaselineConfig) -> Json:
        """See `Provider`; the path names the model."""
        settings: Json = {"seed": config.seed, "maxOutputTokens": config.max_tokens}
        if config.temperature is not None:
            settings["temperature"] = config.temperature
        if question.schema and config.structured:
            settings |= {"responseMimeType": "application/json", "responseSchema": _upper_types(question.schema)}
        parts = [
            {"text": part} if isinstance(part, str) else {"inlineData": {"mimeType": "image/jpeg", "data": _jpeg(part)}}
            for part in question.parts
        ]
        return {"contents": [{"role": "user", "parts": parts}], "generationConfig": settings}

    def answer(self, reply: Json) -> Answer:
        """See `Provider`; a blocked prompt has no candidates."""
        blocked = reply.get("promptFeedback", {}).get("blockReason")
        candidate: Json = next(iter(reply.get("candidates", ())), {})
        parts = candidate.get("content", {}).get("parts", ())
        text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
        finish = blocked or candidate.get("finishReason") or "no candidates"
        usage = reply.get("usageMetadata", {})
        output_tokens = _count(usage, "candidatesTokenCount") + _count(usage, "thoughtsTokenCount")
        return Answer(text, finish, _count(usage, "promptTokenCount"), output_tokens)


class OpenAi:
    """Chat completions, of OpenAI or of any compatible server."""

    name = "openai"
    base_url = "https://api.openai.com/v1"
    key_variable = "OPENAI_API_KEY"

    def headers(self, key: str) -> dict[str, str]:
        """See `Provider`."""
        return {"Authorization": f"Bearer {key}"}

    def path(self, model: str) -> str:
        """See `Provider`; the body names the model."""
        return "chat/completions"

    def body(self, question: Question, model: str, config: BaselineConfig) -> Json:
        """See `Provider`."""
        body: Json = {"model": model, "seed": config.seed, "max_completion_tokens": config.max_tokens}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if question.schema and config.structured:
            schema = {"name": "answer", "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else self._image(part, question.detail)
            for part in question.parts
        ]
        return body | {"messages": [{"role": "user", "content": content}]}

    def answer(self, reply: Json) -> Answer:
        """See `Provider`; a refusal has its own field."""
        choice: Json = next(iter(reply["choices"]), {"message": {}, "finish_reason": "no choices"})
        message: Json = choice["message"]
        text = message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError("the content of a message must be text")
        finish = message.get("refusal") or choice.get("finish_reason") or "no reason given"
        usage = reply.get("usage") or {}
        return Answer(text, finish, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))

    def _image(self, frame: np.ndarray, detail: str) -> Json:
        return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(frame)}", "detail": detail}}


PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (Gemini(), OpenAi())}


def _jpeg(frame: np.ndarray) -> str:
    return base64.b64encode(encode_jpeg(frame, JPEG_QUALITY)).decode()


def _count(usage: Json, name: str) -> int:
    return int(usage.get(name) or 0)  # some servers leave it out or send null


def _upper_types(schema: Any) -> Any:
    """The schema with upper-case types, as Gemini's REST interface spells them."""
    if isinstance(schema, dict):
        return {k: v.upper() if k == "type" and isinstance(v, str) else _upper_types(v) for k, v in schema.items()}
    return schema
