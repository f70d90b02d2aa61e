"""A client of chat models with images, which asks many questions at once, patiently, and none of them twice."""

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

from robometer.baselines.providers import PROVIDERS, Answer, Json, Question
from robometer.configs.schema import BaselineConfig, ConfigError
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.runs.redaction import redacted
from robometer.scoring import MissingAnswer

ATTEMPTS = 6
"""Tries of one request while the provider is busy or broken, or the connection is."""

BACKOFF_S = 1.0
"""The first pause between two tries; the next ones double."""

MAX_WAIT_S = 60.0
"""The longest pause, whatever the provider asks for."""

FORGET_S = 600.0
"""How long a request that failed stays failed. An evaluation halves a batch to find what failed in it, and must not
wait for the same failure again at each half."""


class ApiError(RobometerError):
    """A provider that cannot be reached, or refused a request; the message holds its sentence."""


class _TryAgain(Exception):
    """A failure that may pass; `wait_s` is the pause that the provider asks for, if it does."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


@dataclass
class Usage:
    """What a client has asked and spent.

    Attributes:
        requests: sent to the provider, further tries included.
        retries: those of them that were not a first try.
        cache_hits: questions whose answer was on disk.
        failures: questions that got no answer.
        input_tokens, output_tokens: as the provider counts them; answers from disk cost none.
        seconds: between request and reply, summed over requests (several are in flight at a time).
    """

    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


class ApiClient:
    """Asks the model that a configuration names. Answers are kept in `baseline.cache`, a folder or any storage URI.

    Requests of all threads share one rate limit, evenly spread, and one bound on those in flight.

    Args:
        models: the model of each provider that is asked where the configuration names none.

    Raises:
        ConfigError: no key, a URL that is none, or a server of one's own without the name of its model.
    """

    def __init__(self, config: BaselineConfig, models: Mapping[str, str]) -> None:
        self._config, self._provider = config, PROVIDERS[config.provider]
        if config.base_url and not config.model:
            raise ConfigError("baseline.base_url needs baseline.model: the name by which that server knows its model")
        self.model = config.model or models[config.provider]
        self.usage = Usage()
        self._key = os.environ.get(self._provider.key_variable, "").strip()
        if not self._key and not config.base_url:
            raise ConfigError(f"baseline.provider={config.provider} needs its key in {self._provider.key_variable}")
        url = config.base_url or self._provider.base_url
        self._where = redacted(f"{self.model} at {url}")
        try:
            self._http = httpx.AsyncClient(
                base_url=url,
                headers={"content-type": "application/json"} | (self._provider.headers(self._key) if self._key else {}),
                timeout=None,  # one timeout around the whole request instead, which a trickle of bytes cannot outlast
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ConfigError(
                f"baseline.base_url={redacted(url)!r} or {self._provider.key_variable} is unusable"
            ) from error
        self._cache = Storage(config.cache)
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._next_s = 0.0  # monotonic time of the next free slot of the rate limit
        self._asked: dict[str, asyncio.Task[Answer | RobometerError]] = {}
        # A loop of its own: callers may have one that runs already, as the actors of Ray do.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="api-client", daemon=True).start()

    def ask(self, questions: Sequence[Question]) -> list[Answer | RobometerError]:
        """The answer to each question, or why there is none: `ApiError`, or `MissingAnswer` for one without text."""
        return asyncio.run_coroutine_threadsafe(self._ask(questions), self._loop).result()

    def texts(self, questions: Sequence[Question]) -> list[str]:
        """As `ask`, and the first error is raised once all have been asked, so that no answer is lost."""
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
        kept = await asyncio.to_thread(self._recall, key)
        if kept is not None:
            self.usage.cache_hits += 1
            return kept
        answer = await self._post(key, body)
        self.usage.input_tokens += answer.input_tokens
        self.usage.output_tokens += answer.output_tokens
        if not answer.text.strip():  # not kept: a model that was blocked or cut short may answer another day
            raise MissingAnswer(f"{self._where} gave no text ({_short(answer.finish)})")
        await asyncio.to_thread(self._cache.write_bytes, _file(key), json.dumps(asdict(answer)).encode())
        return answer

    def _recall(self, key: str) -> Answer | None:
        """The kept answer; None without one, or where what lies there is damaged."""
        try:
            answer = Answer(**json.loads(self._cache.read_bytes(_file(key))))
        except (OSError, ValueError, TypeError):
            return None
        return answer if isinstance(answer.text, str) else None

    async def _post(self, key: str, body: bytes) -> Answer:
        rng = np.random.default_rng([self._config.seed, int(key[:8], 16)])
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._try(body)
            except _TryAgain as failure:
                if attempt == ATTEMPTS:
                    raise ApiError(f"{self._where} failed {ATTEMPTS} times, at last so: {failure}") from failure
                # Jitter, lest all that failed together come back together.
                backoff_s = BACKOFF_S * 2.0 ** (attempt - 1) * rng.uniform(0.5, 1)
                self.usage.retries += 1
                await asyncio.sleep(min(backoff_s if failure.wait_s is None else failure.wait_s, MAX_WAIT_S))
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, body: bytes) -> Answer:
        async with self._in_flight:
            await self._slot()
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

    async def _slot(self) -> None:
        """Wait for this request's turn under the rate limit."""
        now_s = time.monotonic()
        turn_s = max(self._next_s, now_s)
        self._next_s = turn_s + 60 / self._config.requests_per_minute
        await asyncio.sleep(turn_s - now_s)

    def _read(self, response: httpx.Response) -> Answer:
        status = response.status_code
        if status == 429 or status >= 500:
            raise _TryAgain(f"it answered {status}: {self._sentence(response)}", _asked_wait_s(response))
        if not response.is_success:
            raise ApiError(f"{self._where} answered {status}: {self._sentence(response)}")
        try:
            return self._provider.answer(response.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ApiError(
                f"{self._where} answered with what is no {self._provider.name} reply, check baseline.base_url and "
                f"baseline.provider: {self._sentence(response)}"
            ) from error

    def _sentence(self, response: httpx.Response) -> str:
        """What a reply says went wrong; providers quote the key that they refuse, we do not."""
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


def _asked_wait_s(response: httpx.Response) -> float | None:
    """Seconds that a reply asks to wait, by Retry-After (a number or a date) or, at Gemini, in the body."""
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
