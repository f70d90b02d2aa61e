"""What every job does around its one call: read overrides, log, show errors as one sentence."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robometer.configs import Config, ConfigError, load
from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.runs.redaction import RedactingFormatter, redacted
from robometer.text import table


def main(
    text: str,
    sections: Sequence[str],
    body: Callable[[Config], None],
    argv: Sequence[str] | None = None,
    recipe: str = "",
) -> int:
    """Run `body` under the configuration that `argv` (default: the command line) describes, on top of `recipe`.

    Returns:
        The exit status: 0 done, 2 the user's mistake (printed as one sentence), 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    base = [f"recipe={recipe}"] if recipe else []
    if {"-h", "--help"} & set(arguments):
        print(f"{text.strip()}\n\n{describe(sections, load(base))}")
        return 0
    return guarded(lambda: body(load([*base, *_overrides(arguments)])))


def guarded(body: Callable[[], None]) -> int:
    """Run `body`; the user's mistakes end in one sentence on stderr and status 2."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "httpx2", "alembic", "mlflow", "ray.data", "ray.tune", "ray.train", "ray.serve"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        body()
    except RobometerError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # of a disk or a connection
        if "\n" in str(error):  # Ray's, of a worker: whose traceback is needed
            raise
        print(f"error: the system refused ({redacted(str(error))}): mend that and run the same again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def given_frames(arguments: Sequence[str], config: Config) -> dict[str, int]:
    """Those settings of frames (`ingest.max_frames`, ...) that the command line itself gives, to override a model's."""
    keys = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    return {name: v for name, v in FrameSettings.of(config.ingest).as_dict().items() if f"ingest.{name}" in keys}


def _overrides(arguments: list[str]) -> list[str]:
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            raise ConfigError(f"{argument!r} is not an override such as train.steps=500; --help shows what there is")
    return arguments


def describe(sections: Sequence[str], config: Config) -> str:
    """The keys of some sections of the configuration, with their defaults in `config`."""
    lines = ["Settings (any KEY=VALUE of the configuration can be given; these matter here):"]
    for section in sections:
        node = getattr(config, section)
        lines.append(f"\n  {section}: {(type(node).__doc__ or '').strip().splitlines()[0]}")
        for field in dataclasses.fields(node):
            lines.append(f"    {section}.{field.name}={_shown(getattr(node, field.name))}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return " ".join(f".{key}={entry}" for key, entry in dataclasses.asdict(value).items())
    return str(value)


def metrics_table(found: Mapping[str, Any]) -> str:
    """The metrics of an evaluation (what `metrics.json` holds) as text: value, interval and n, a column per split."""
    splits = list(found["metrics"])
    names = dict.fromkeys((e, m) for split in splits for e, ms in found["metrics"][split].items() for m in ms)
    rows = [
        [f"{evaluation}/{metric}", *(_cell(found["metrics"][s].get(evaluation, {}).get(metric)) for s in splits)]
        for evaluation, metric in names
    ]
    header = ["metric", *(f"{split}: value [95 % interval] n" for split in splits)]
    return f"model {found['provenance']['model']}, {found['provenance']['mode']}\n{table(header, rows)}"


def _cell(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    low, high = ("-" if metric[key] is None else f"{metric[key]:.3f}" for key in ("low", "high"))
    return f"{metric['value']:.3f} [{low}, {high}] {metric['n']} {metric['over']}"
