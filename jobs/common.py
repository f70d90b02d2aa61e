"""What the commands share: the edge of the process, and what they print."""

from __future__ import annotations

import json
import logging
import select
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

from robometer.configs import Config
from robometer.errors import RobometerError
from robometer.runs import paths
from robometer.runs.redaction import RedactingFormatter, redacted
from robometer.text import table

EXIT_STATUSES = "0: done; 1: a fault of ours, with a traceback; 2: a mistake of yours, in one line; 130: interrupted."


def guarded(body: Callable[[], None]) -> int:
    """Run a command, with logging; a mistake of the user's ends in one sentence on stderr.

    Returns:
        The exit status. Other exceptions are faults of ours, and pass through: Python prints them and exits with 1.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "httpx2", "alembic", "mlflow", "ray.data", "ray.tune", "ray.train", "ray.serve"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        body()
        sys.stdout.flush()
    except RobometerError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # of a disk or a connection
        if "\n" in str(error):  # Ray's, of a worker: whose traceback is needed
            raise
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
            raise  # Click ends quietly then
        print(f"error: {redacted(str(error))}. Fix the cause, then rerun the same command.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. Rerun the same command to continue.", file=sys.stderr)
        return 130
    return 0


def _nobody_reads(stream: TextIO) -> bool:
    """Whether the reader of a pipe has gone, as `head` does when it has its lines."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def frame_overrides(keys: Collection[str], config: Config) -> dict[str, int]:
    """The settings of frames (`ingest.max_frames`, ...) among the keys of a command line, which override a model's."""
    from robometer.frames import FrameSettings  # which loads a decoder

    settings = FrameSettings.of(config.ingest).as_dict()
    return {name: value for name, value in settings.items() if f"ingest.{name}" in keys}


def write_json(path: str, values: Any) -> None:
    """Write what `--json` asks for: into a file, or to the terminal for `-`; nothing without a path."""
    text = json.dumps(values, indent=2)
    if path == "-":
        print(text)
    elif path:
        Path(path).write_text(f"{text}\n")


def check_files(**files: str | None) -> None:
    """Check the options that name files to write, before any work.

    Raises:
        RobometerError: one cannot be written there.
    """
    for name, path in files.items():
        if path and path != "-":
            paths.absolute_path(f"--{name}", paths.check_local(f"--{name}", path))
            if not Path(path).absolute().parent.is_dir():
                raise RobometerError(f"--{name}={path} cannot be written: its folder does not exist.")
            if Path(path).is_dir():
                raise RobometerError(f"--{name}={path} is a folder. Give the file to write.")


def metrics_table(record: Mapping[str, Any]) -> str:
    """What `metrics.json` holds of an evaluation as text: value, interval and n of each metric, a column per split."""
    metrics, provenance = record["metrics"], record["provenance"]
    names = dict.fromkeys((evaluation, name) for of in metrics.values() for evaluation, ms in of.items() for name in ms)
    rows = [
        [f"{evaluation}/{name}", *(_cell(of.get(evaluation, {}).get(name)) for of in metrics.values())]
        for evaluation, name in names
    ]
    header = ["metric", *(f"{split}: value [95 % interval] n" for split in metrics)]
    return f"model {provenance['model']}, {provenance['mode']}\n{table(header, rows)}"


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    low, high = ("-" if metric[key] is None else f"{metric[key]:.3f}" for key in ("low", "high"))
    return f"{metric['value']:.3f} [{low}, {high}] {metric['n']} {metric['over']}"
