"""Where each worker of a run is, for the moment at which workers wait for one another in vain.

A collective operation that times out says who waited, not for whom. So a worker that stays at one place writes down
where it is, and the driver puts these notes together when the run fails. Workers that do not stay write nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from robometer.corpus.storage import Storage, StorageError

FOLDER = "waiting"
"""Folder of the notes in the output of a run."""
AFTER_S = 20.0
"""Seconds at one place after which a worker writes a note."""


class Whereabouts:
    """Where this worker is; a thread writes it down if that lasts."""

    def __init__(self, output: Storage, rank: int, world_size: int, after_s: float = AFTER_S) -> None:
        self._output, self._rank, self._size, self._after_s = output, rank, world_size, after_s
        self._place, self._written = (0, "", time.time()), 0.0
        self._end = threading.Event()
        with suppress(OSError, StorageError):
            for one in range(rank, max(_noted(output), default=0) + 1, world_size):  # of an earlier attempt
                output.remove(_file(one))
        self._thread = threading.Thread(target=self._watch, name="whereabouts", daemon=True)
        self._thread.start()

    def at(self, step: int, doing: str) -> None:
        """The worker begins something, such as `waits for its batch`."""
        self._place = (step, doing, time.time())

    def close(self) -> None:
        """End the thread. A note of where this worker still is stays: it failed there."""
        self._end.set()
        self._thread.join()
        self._write()

    def _watch(self) -> None:
        while not self._end.wait(self._after_s / 4):
            self._write()

    def _write(self) -> None:
        """Write a note, or remove that of a place where this worker is no more."""
        step, doing, since = self._place
        with suppress(OSError, StorageError):  # storage may come back
            if self._written and since != self._written:
                self._output.remove(_file(self._rank))
                self._written = 0.0
            if doing and not self._written and time.time() - since >= self._after_s:
                note = {"step": step, "doing": doing, "since": since, "world_size": self._size}
                note |= {"host": socket.gethostname(), "pid": os.getpid()}
                self._output.write_bytes(_file(self._rank), json.dumps(note).encode())
                self._written = since


def _file(rank: int) -> str:
    return f"{FOLDER}/{rank}.json"


def _noted(output: Storage) -> list[int]:
    """The ranks that have written a note."""
    return [int(name[len(FOLDER) + 1 : -len(".json")]) for name in output.list(FOLDER, ".json")]


def explain(output: Storage) -> str:
    """Who of the workers of a run waited where, in a sentence each; empty where none did."""
    notes: dict[int, dict[str, Any]] = {}
    for rank in _noted(output):
        with suppress(OSError, StorageError, ValueError):
            notes[rank] = json.loads(output.read_bytes(_file(rank)))
    if not notes:
        return ""
    places: dict[tuple[int, str], list[int]] = defaultdict(list)
    for rank, note in notes.items():
        places[note["step"], note["doing"]].append(rank)
    silent = sorted(set(range(max(note["world_size"] for note in notes.values()))) - set(notes))
    gone = "its process is" if len(silent) == 1 else "their processes are"
    said = [f"{_ranks(silent)}: no word, so {gone} frozen or gone"] if silent else []
    for (step, doing), ranks in sorted(places.items(), key=lambda item: len(item[1])):
        first = min(ranks, key=lambda rank: notes[rank]["since"])
        since, note = datetime.fromtimestamp(notes[first]["since"]), notes[first]
        who = f"on {note['host']}, process {note['pid']}" if len(ranks) == 1 else f"the first on {note['host']}"
        said.append(f"{_ranks(ranks)} ({who}): step {step}, {doing}, since {since:%H:%M:%S}")
    return "Where the workers were: " + "; ".join(said) + "."


def _ranks(ranks: Sequence[int]) -> str:
    """Such as `ranks 0, 2-7`."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    return f"rank{'s' if len(ranks) > 1 else ''} " + ", ".join("-".join(map(str, part)) for part in parts)
