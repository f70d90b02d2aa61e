"""A client of chat models with images: it asks many questions at once, retries, and keeps answers on disk."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime

import httpx
import numpy as np
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from robometer.baselines.config import BaselineConfig
from robometer.baselines.providers import PROVIDERS, Answer, Json, Question
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.runs.redaction import redacted
from robometer.scoring import MissingAnswer
from robometer.settings import ConfigError

ATTEMPTS = 6
"""Attempts at one request while the provider or the connection fails."""

BACKOFF_S = 1.0
"""The first pause between two attempts; each further one is twice as long."""

MAX_WAIT_S = 60.0
"""The longest pause, even if the provider asks for more."""

FORGET_S = 600.0
"""How long a failed request is not asked again. An evaluation halves a batch to find the clip that failed, and must not
wait for the same failure at each half."""


class ProviderError(RobometerError):
    """A provider cannot be reached, or refused a request; the message quotes it."""


class _TryAgain(Exception):
    """A failure that may pass; `wait_s` is the pause that the provider asks for, if any."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


@dataclass
class Usage:
    """What a client has asked and spent.

    Attributes:
        requests: requests to the provider, including retries.
        retries: requests that were not the first attempt.
        cache_hits: questions whose answer was on disk.
        failures: questions without an answer.
        input_tokens, output_tokens: as the provider counts them; answers from disk cost none.
        seconds: time between request and reply, summed over requests, of which several run at once.
    """

    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


class ApiClient:
    """Asks the model that a configuration names, and keeps its answers in `baseline.cache`, a folder or storage URI.

    Requests of all threads share one rate limit, evenly spread, and one limit on requests in flight.

    Args:
        models: the default model of each provider.

    Raises:
        ConfigError: the key is missing, the URL is invalid, or `baseline.base_url` is set without `baseline.model`.
    """

    def __init__(self, config: BaselineConfig, models: Mapping[str, str]) -> None:
        self._config, self._provider = config, PROVIDERS[config.provider]
        if config.base_url and not config.model:
            raise ConfigError("baseline.base_url needs baseline.model: the name of the model at that server")
        self.model = config.model or models[config.provider]
        self.usage = Usage()
        self._key = os.environ.get(self._provider.key_variable, "").strip()
        if not self._key and not config.base_url:
            raise ConfigError(f"baseline.provider={config.provider} needs its API key in {self._provider.key_variable}")
        url = config.base_url or self._provider.base_url
        self._where = redacted(f"{self.model} at {url}")
        try:
            self._http = httpx.AsyncClient(
                base_url=url,
                headers={"content-type": "application/json"} | (self._provider.headers(self._key) if self._key else {}),
                timeout=None,  # noqa: S113  instead, a timeout around the whole request, which a trickle of bytes cannot extend
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ConfigError(
                f"baseline.base_url={redacted(url)!r} or the key in {self._provider.key_variable} is invalid"
            ) from error
        self._cache = Storage(config.cache)
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._next_s = 0.0  # monotonic time of the next request that the rate limit allows
        self._asked: dict[str, asyncio.Task[Answer | RobometerError]] = {}
        # Its own event loop: callers may already run one, as Ray actors do.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="api-client", daemon=True).start()

    def ask(self, questions: Sequence[Question]) -> list[Answer | RobometerError]:
        """The answer to each question, or why there is none: `ProviderError`, or `MissingAnswer` if it is empty."""
        return asyncio.run_coroutine_threadsafe(self._ask(questions), self._loop).result()

    def texts(self, questions: Sequence[Question]) -> list[str]:
        """The texts of the answers; an error is raised after all questions were asked, so that no answer is lost."""
        texts = []
        for outcome in self.ask(questions):
            if isinstance(outcome, RobometerError):
                raise outcome
            texts.append(outcome.text)
        return texts

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _ask(self, questions: Sequence[Question]) -> list[Answer | RobometerError]:
        return await asyncio.gather(*(self._outcome(question) for question in questions))

    async def _outcome(self, question: Question) -> Answer | RobometerError:
        body = await asyncio.to_thread(self._body, question)
        named = f"{self._provider.name}\0{self.model}\0".encode()
        key = hashlib.sha256(named + body).hexdigest()
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._settle(key, body))
        return await self._asked[key]

    def _body(self, question: Question) -> bytes:
        return json.dumps(self._provider.body(question, self.model, self._config)).encode()

    async def _settle(self, key: str, body: bytes) -> Answer | RobometerError:
        forget_s = 0.0
        try:
            return await self._answer(key, body)
        except RobometerError as error:
            self.usage.failures += 1
            forget_s = FORGET_S
            return error
        finally:
            self._loop.call_later(forget_s, self._asked.pop, key)

    async def _answer(self, key: str, body: bytes) -> Answer:
        cached = await asyncio.to_thread(self._cached, key)
        if cached is not None:
            self.usage.cache_hits += 1
            return cached
        answer = await self._post(key, body)
        self.usage.input_tokens += answer.input_tokens
        self.usage.output_tokens += answer.output_tokens
        if not answer.text.strip():  # not cached: a model that was blocked or cut short may answer later
            raise MissingAnswer(f"{self._where} gave no text ({_short(answer.finish)})")
        await asyncio.to_thread(self._cache.write_bytes, _file(key), json.dumps(asdict(answer)).encode())
        return answer

    def _cached(self, key: str) -> Answer | None:
        """The answer on disk; None if there is none or it is damaged."""
        try:
            answer = Answer(**json.loads(self._cache.read_bytes(_file(key))))
        except (OSError, ValueError, TypeError):
            return None
        return answer if isinstance(answer.text, str) else None

    async def _post(self, key: str, body: bytes) -> Answer:
        rng = np.random.default_rng([self._config.seed, int(key[:8], 16)])

        def pause_s(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            if isinstance(failure, _TryAgain) and failure.wait_s is not None:
                return min(failure.wait_s, MAX_WAIT_S)
            # Jitter, so that requests that failed together do not return together.
            return min(BACKOFF_S * 2.0 ** (state.attempt_number - 1) * rng.uniform(0.5, 1), MAX_WAIT_S)

        def count(state: RetryCallState) -> None:
            self.usage.retries += 1

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            wait=pause_s,
            stop=stop_after_attempt(ATTEMPTS),
            before_sleep=count,
            reraise=True,
        )
        try:
            return await retrying(self._try, body)
        except _TryAgain as failure:
            raise ProviderError(f"{self._where} failed {ATTEMPTS} times; the last time: {failure}") from failure

    async def _try(self, body: bytes) -> Answer:
        async with self._in_flight:
            await self._wait_for_turn()
            self.usage.requests += 1
            started_s = time.monotonic()
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    response = await self._http.post(self._provider.path(self.model), content=body)
            except TimeoutError as error:
                raise _TryAgain(f"no answer within {self._config.timeout_s:g} s") from error
            except httpx.RequestError as error:
                raise _TryAgain(f"no connection ({type(error).__name__}: {_short(str(error))})") from error
            finally:
                self.usage.seconds += time.monotonic() - started_s
        return self._read(response)

    async def _wait_for_turn(self) -> None:
        """Wait for this request's turn under the rate limit."""
        now_s = time.monotonic()
        turn_s = max(self._next_s, now_s)
        self._next_s = turn_s + 60 / self._config.requests_per_minute
        await asyncio.sleep(turn_s - now_s)

    def _read(self, response: httpx.Response) -> Answer:
        status = response.status_code
        if status == 429 or status >= 500:
            raise _TryAgain(f"it answered {status}: {self._sentence(response)}", _requested_wait_s(response))
        if not response.is_success:
            raise ProviderError(f"{self._where} answered {status}: {self._sentence(response)}")
        try:
            return self._provider.answer(response.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ProviderError(
                f"{self._where} did not answer in the format of {self._provider.name}; check baseline.base_url and "
                f"baseline.provider. It said: {self._sentence(response)}"
            ) from error

    def _sentence(self, response: httpx.Response) -> str:
        """The error in a reply, without the key, which providers quote when they refuse it."""
        try:
            error: Json = response.json()["error"]
            text = str(error["message"])
        except (ValueError, LookupError, TypeError):
            text = response.text
        return _short(text.replace(self._key, "(key)") if self._key else text) or "nothing"


def _file(key: str) -> str:
    return f"{key[:2]}/{key}.json"


def _short(text: str) -> str:
    return " ".join(text.split())[:200]


def _requested_wait_s(response: httpx.Response) -> float | None:
    """Seconds that a reply asks to wait, in Retry-After (a number or a date) or, for Gemini, in the body."""
    header = response.headers.get("retry-after", "")
    in_body = re.search(r'"retryDelay":\s*"([\d.]+)s"', response.text)
    for text in (header, in_body[1] if in_body else ""):
        try:
            return max(0.0, float(text))
        except ValueError:
            pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - dt.datetime.now(dt.UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
