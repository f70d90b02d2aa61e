"""A plan: stages, each a command line that names the outputs of others. Knows what is done, and runs nothing.

```yaml
output: /data/drawer
stages:
  corpus: ingest /data/my_robot --corpus {here}
  model: train --corpus {corpus} --output {here} train.steps=500
  measured: evaluate {model}/best --corpus {corpus} --output {here}
```

`{here}` is the stage's own output, and `{corpus}` that of the stage `corpus`, which must be done before. An output is a
folder below `output` whose name has the hash of all that it follows from: the line, the version of Robometer, and what
the other stages made. So what was made before is found again, and nothing else is taken for it. A corpus grows in
place: it counts by the hash of its content, and ingest runs again when the raw files have changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import yaml

from robometer import __version__
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.files import write_atomically
from robometer.runs.paths import absolute_path, check_local
from robometer.runs.provenance import HOW_IT_RUNS
from robometer.settings import ConfigError, did_you_mean

HERE = "here"
RECORDS = "stages"
"""Folder of the records below the plan's output."""

INGEST = "ingest"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PLACE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
_HOW_IT_RUNS = re.compile(rf"\+*(ray\.\w+|tracking\.\w+|train\.({'|'.join(sorted(HOW_IT_RUNS))}))=")

SettingsOf = Callable[[Sequence[str]], Config]

RUNNING, SUCCEEDED, FAILED = "running", "succeeded", "failed"


@dataclass(frozen=True)
class Stage:
    """One command line.

    Attributes:
        words: the line after `robometer`, with places such as `{corpus}`.
        needs: the stages that it names, in order.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def command(self) -> str:
        """Such as `train`."""
        return self.words[0]

    @property
    def has_output(self) -> bool:
        """Whether the line names its own output; otherwise what it works on counts as its output."""
        return any(HERE in _PLACE.findall(word) for word in self.words)

    def filled(self, places: Mapping[str, str]) -> list[str]:
        """The line with these values in its places."""
        return [_PLACE.sub(lambda match: places[match[1]], word) for word in self.words]


@dataclass(frozen=True)
class Plan:
    """All stages in an order in which they can run.

    Attributes:
        settings_of: the settings of a command line, see `read_plan`.
        retries: how often a stage that failed is tried again.
    """

    output: Path
    stages: Mapping[str, Stage]
    settings_of: SettingsOf
    retries: int = 0

    def dependents(self, name: str) -> list[str]:
        """The stages that cannot run without this one."""
        found = {name}
        for stage in self.stages.values():  # in an order in which they can run
            if found & set(stage.needs):
                found.add(stage.name)
        return [one for one in self.stages if one in found - {name}]


@dataclass(frozen=True)
class Record:
    """What became of a stage the last time that it ran.

    Attributes:
        key: hash of all that its output follows from.
        status: exit status of the command; None while it runs, or where it was not seen to end.
        job: id of the Ray job, if it is one.
        process: pid and start of the process, if it is one of this machine.
    """

    key: str
    state: str
    line: list[str]
    started: str
    ended: str = ""
    status: int | None = None
    tries: int = 1
    job: str = ""
    process: list[str] = field(default_factory=list)


class Records:
    """The records of a plan, on disk, and what follows from them."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.folder = plan, plan.output / RECORDS
        self._keys = dict[str, str | None]()

    def read(self, name: str) -> Record | None:
        """The record of a stage; None where it has never run."""
        try:
            return Record(**json.loads((self.folder / f"{name}.json").read_text()))
        except FileNotFoundError:
            return None

    def write(self, name: str, record: Record) -> None:
        """Replace the record of a stage."""
        write_atomically(self.folder / f"{name}.json", json.dumps(asdict(record), indent=1))
        for one in self.plan.dependents(name):
            self._keys.pop(one, None)

    def key(self, stage: Stage) -> str | None:
        """Hash of all that the output of a stage follows from; None where a stage before it is not done.

        Raw files are listed once in the life of this object.
        """
        if stage.name not in self._keys:
            self._keys[stage.name] = self._key(stage)
        return self._keys[stage.name]

    def _key(self, stage: Stage) -> str | None:
        identities = {need: self.identity(self.plan.stages[need]) for need in stage.needs}
        places = {need: identity for need, identity in identities.items() if identity is not None}
        if len(places) < len(identities):
            return None
        words = [word for word in stage.filled(places | {HERE: HERE}) if not _HOW_IT_RUNS.match(word)]
        raw = self._config(stage).ingest.input if stage.command == INGEST else ""
        return _hash([__version__, words, [*_files(raw)] if raw else []])

    def identity(self, stage: Stage) -> str | None:
        """What an output counts as for the stages that name it; None where it is not there, or of other inputs."""
        if not self.is_done(stage):
            return None
        return Corpus(self.place(stage)).content_hash if stage.command == INGEST else self.key(stage)

    def is_done(self, stage: Stage) -> bool:
        """Whether its output is there, and follows from what the stage would be given now."""
        record, key = self.read(stage.name), self.key(stage)
        if record is None or key is None or (record.state, record.key) != (SUCCEEDED, key):
            return False
        return self.is_there(stage)

    def is_there(self, stage: Stage) -> bool:
        """Whether the output exists, where the stage has one of its own."""
        if stage.command == INGEST:
            try:
                return bool(len(Corpus(self.place(stage))))
            except CorpusError:
                return False
        return not stage.has_output or any(Path(self.place(stage)).glob("*"))

    def place(self, stage: Stage) -> str:
        """Path of the output of a stage whose needs are done.

        Raises:
            ConfigError: the stage has no output, and works on none.
        """
        if stage.command == INGEST:
            return self._config(stage).corpus.path
        if stage.has_output:
            return str(self.plan.output / f"{stage.name}-{(self.key(stage) or '')[:12]}")
        if not stage.needs:
            raise ConfigError(f"Stage {stage.name} has no output: write {{here}} where its command takes a folder.")
        return self.place(self.plan.stages[stage.needs[0]])

    def line(self, stage: Stage) -> list[str]:
        """The command line of a stage whose needs are done."""
        here = str(self.plan.output / stage.name) if stage.command == INGEST else ""
        if stage.has_output and not here:
            here = self.place(stage)
        return stage.filled({need: self.place(self.plan.stages[need]) for need in stage.needs} | {HERE: here})

    def _config(self, stage: Stage) -> Config:
        return self.plan.settings_of(self.line(stage))


def read_plan(path: str, settings_of: SettingsOf) -> Plan:
    """Read a plan from a YAML file.

    Args:
        settings_of: the settings of a command line; raises for a line that its command would refuse.

    Raises:
        ConfigError: the file is no plan: the sentence names the stage and the mistake.
        PathError: its output cannot be used.
    """
    values = _yaml(path)
    known = ("output", "stages", "settings", "retries")
    if unknown := next((key for key in values if key not in known), None):
        raise ConfigError(f"{path}: {unknown!r} is none of {', '.join(known)}.{did_you_mean(str(unknown), known)}")
    for key, kind, what in (
        ("output", str, "a folder"),
        ("stages", dict, "names with their command lines"),
        ("settings", dict, "settings with their values"),
        ("retries", int, "a whole number"),
    ):
        if not isinstance(values.get(key, kind()), kind) or (key in known[:2] and not values.get(key)):
            raise ConfigError(f"{path}: {key} must be {what}.")
    settings = [f"{key}={_setting(value)}" for key, value in values.get("settings", {}).items()]
    stages = {name: _stage(path, name, line, settings) for name, line in values["stages"].items()}
    for stage in stages.values():
        if missing := next((need for need in stage.needs if need not in stages), None):
            near = did_you_mean(missing, list(stages))
            raise ConfigError(f"{path}: stage {stage.name} names {{{missing}}}, which is no stage.{near}")
    try:
        order = list(TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except CycleError as error:
        raise ConfigError(f"{path}: these stages wait for one another: {' -> '.join(error.args[1])}.") from error
    for name in order:
        try:
            settings_of(stages[name].filled(dict.fromkeys([HERE, *stages[name].needs], "/output")))
        except RobometerError as error:
            raise ConfigError(f"{path}: stage {name}: {error}") from error
    output = Path(absolute_path("output", check_local("output", values["output"])))
    return Plan(output, {name: stages[name] for name in order}, settings_of, values.get("retries", 0))


def _yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no plan: write output: and stages:.")
    return values


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _stage(path: str, name: object, line: object, settings: Sequence[str]) -> Stage:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (HERE, RECORDS):
        raise ConfigError(f"{path}: {name!r} cannot name a stage: use small letters, digits and _, but not {HERE}.")
    if not isinstance(line, str | list) or not line:
        raise ConfigError(f"{path}: stage {name} must be a command line, such as: train --corpus {{corpus}}")
    try:
        words = shlex.split(line) if isinstance(line, str) else [_setting(word) for word in line]
    except ValueError as error:
        raise ConfigError(f"{path}: stage {name} cannot be read ({error}): close its quotes.") from error
    words = words[1:] if words[:1] == ["robometer"] else words
    if not words:
        raise ConfigError(f"{path}: stage {name} has no command.")
    needs = dict.fromkeys(place for word in words for place in _PLACE.findall(word) if place != HERE)
    if name in needs:
        raise ConfigError(f"{path}: stage {name} names itself. Its own output is {{{HERE}}}.")
    own = {word.partition("=")[0].lstrip("+") for word in words}
    return Stage(name, (*words, *(one for one in settings if one.partition("=")[0] not in own)), tuple(needs))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _files(path: str) -> Iterator[tuple[str, int, float]]:
    """Names, sizes and times of the files in a folder, or of one file."""
    storage = Storage(path)
    info = storage.fs.get_file_info(storage.root)
    if info.type == pafs.FileType.File:
        infos = [info]
    else:
        infos = storage.fs.get_file_info(pafs.FileSelector(storage.root, allow_not_found=True, recursive=True))
    for one in sorted(infos, key=lambda info: info.path):
        if one.type == pafs.FileType.File:
            yield one.path.removeprefix(storage.root), one.size, one.mtime.timestamp() if one.mtime else 0.0
