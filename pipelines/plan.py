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
the other stages made, and the files that the line names. So what was made before is found again, and nothing else is
taken for it. A corpus grows in place: it counts by the hash of its content, and ingest runs again when raw files have
changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import yaml

from robometer import __version__
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.runs.paths import STORAGE_SCHEMES, absolute_path, check_storage
from robometer.runs.provenance import HOW_IT_RUNS
from robometer.runs.redaction import redacted
from robometer.settings import ConfigError, did_you_mean

HERE = "here"
RECORDS = "stages"
"""Folder of the records below the plan's output."""

INGEST = "ingest"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PLACE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)")
_MOVES = re.compile(r"(?:^|[=\[,'\"])(models:/[^/@]+@[^,\]]+|https?://[^,\]]+)")
"""What may mean another model tomorrow: an alias, an endpoint."""
_IN_STORE = re.compile(r"\b(?:models|runs):/")
"""What the tracking store decides about."""
_COMPUTE = ("ingest", "embed", "train", "sweep", "evaluate", "simulate", "report")
_HOW_RAY_RUNS = re.compile(r"\+*ray\.\w+=")
_HOW_IT_RUNS = re.compile(rf"\+*(ray\.\w+|tracking\.\w+|train\.({'|'.join(sorted(HOW_IT_RUNS))}))=")
SHORT = 12
"""Characters of a key in the name of a folder."""

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

    @property
    def may_be_named(self) -> bool:
        """Whether there is an output that others can name."""
        return self.has_output or bool(self.needs) or self.command == INGEST

    def may_vary(self, word: str) -> bool:
        """Whether a word says only how the stage runs. The tracking store counts where the stage reads or writes it."""
        in_store = self.command not in _COMPUTE or any(_IN_STORE.search(one) for one in self.words)
        return bool((_HOW_RAY_RUNS if in_store else _HOW_IT_RUNS).match(word))

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

    output: Storage
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
    """What became of a stage the last time that it ran for these inputs.

    Attributes:
        key: hash of all that its output follows from.
        line: without its secrets.
        commit: of the code that ran.
        status: exit status of the command; None while it runs, or where it was not seen to end.
        job: id of the Ray job, if it is one.
        process: pid and start of the process, if it is one of this machine.
    """

    key: str
    state: str
    line: list[str]
    started: str
    commit: str = ""
    ended: str = ""
    status: int | None = None
    tries: int = 1
    job: str = ""
    process: list[str] = field(default_factory=list)


class Records:
    """The records of a plan, beside its outputs, and what follows from them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._keys = dict[str, str | None]()

    def read(self, stage: Stage) -> Record | None:
        """The record of a stage for its inputs of now; None where it has never run for them."""
        key = self.key(stage)
        return None if key is None else self._read(self._file(stage.name, key))

    def left_running(self, name: str) -> list[Record]:
        """The records of a stage that nobody has seen to end, whatever its inputs were."""
        files = [file for file in self.plan.output.list(RECORDS, ".json") if file.startswith(f"{RECORDS}/{name}-")]
        records = [self._read(file) for file in files]
        return [record for record in records if record is not None and record.state == RUNNING]

    def write(self, name: str, record: Record) -> None:
        """Replace the record of a stage for these inputs."""
        self.plan.output.write_bytes(self._file(name, record.key), json.dumps(asdict(record), indent=1).encode())
        for one in self.plan.dependents(name):
            self._keys.pop(one, None)

    def _file(self, name: str, key: str) -> str:
        return f"{RECORDS}/{name}-{key[:SHORT]}.json"

    def _read(self, file: str) -> Record | None:
        try:
            return Record(**json.loads(self.plan.output.read_bytes(file)))
        except FileNotFoundError:
            return None

    def key(self, stage: Stage) -> str | None:
        """Hash of all that the output of a stage follows from; None where a stage before it is not done.

        Files are listed once in the life of this object.
        """
        if stage.name not in self._keys:
            words = self._words(stage)
            inputs = None if words is None else [__version__, words, [*self._given(stage)]]
            self._keys[stage.name] = None if inputs is None else _hash(inputs)
        return self._keys[stage.name]

    def _words(self, stage: Stage) -> list[str] | None:
        """The line with what its places count as, without the settings that change no result."""
        needs = [self.plan.stages[need] for need in stage.needs]
        # An ingest into the corpus of another one changes what that corpus counts as.
        identities = [self.key(one) if stage.command == INGEST else self.identity(one) for one in needs]
        found = [identity for identity in identities if identity is not None]
        if len(found) < len(needs) or not all(self.is_done(one) for one in needs):
            return None
        words = stage.filled(dict(zip(stage.needs, found, strict=True)) | {HERE: HERE})
        return [word for word in words if not stage.may_vary(word)]

    def _given(self, stage: Stage) -> Iterator[object]:
        """What the files count as that the line names itself, and the variables of the environment in it."""
        raw = self._config(stage).ingest.input if stage.command == INGEST else ""
        if raw:
            yield [*_files(raw)]
        outputs = ("--output", "--corpus") if stage.command == INGEST else ("--output",)
        for before, word in pairwise(("", *stage.words)):
            if stage.may_vary(word):
                continue
            yield [os.environ.get(name) for name in _VARIABLE.findall(word)]
            key, _, value = word.rpartition("=")
            writes = before in outputs or key in outputs or key.endswith(".output")
            if writes or (stage.command == INGEST and key == "corpus.path") or value == raw or _PLACE.search(value):
                continue
            if Path(value).exists() or value.partition("://")[0] in STORAGE_SCHEMES:
                yield Corpus(value).content_hash if Storage(value).exists("corpus.json") else [*_files(value)]

    def identity(self, stage: Stage) -> str | None:
        """What an output counts as for the stages that name it; None where it is not there, or of other inputs."""
        if not self.is_done(stage):
            return None
        return Corpus(self.place(stage)).content_hash if stage.command == INGEST else self.key(stage)

    def is_done(self, stage: Stage) -> bool:
        """Whether its output is there, and follows from what the stage would be given now."""
        record = self.read(stage)
        return record is not None and record.state == SUCCEEDED and self.is_there(stage)

    def is_there(self, stage: Stage) -> bool:
        """Whether the output exists, where the stage has one of its own."""
        if stage.command == INGEST:
            try:
                return bool(len(Corpus(self.place(stage))))
            except CorpusError:
                return False
        return not stage.has_output or not Storage(self.place(stage)).is_empty()

    def place(self, stage: Stage) -> str:
        """Path or URI of the output of a stage whose needs are done; empty where it has none, and works on none."""
        if stage.command == INGEST:
            return self._config(stage).corpus.path
        if stage.has_output:
            return self._here(stage)
        return self.place(self.plan.stages[stage.needs[0]]) if stage.needs else ""

    def _here(self, stage: Stage) -> str:
        # The folder of a corpus stays when raw files come: it follows from the line.
        key = _hash(self._words(stage)) if stage.command == INGEST else self.key(stage) or ""
        return self.plan.output.at(f"{stage.name}-{key[:SHORT]}")

    def line(self, stage: Stage) -> list[str]:
        """The command line of a stage whose needs are done."""
        here = {HERE: self._here(stage)} if stage.has_output else {}
        return stage.filled({need: self.place(self.plan.stages[need]) for need in stage.needs} | here)

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
    if isinstance(values.get("retries"), bool) or values.get("retries", 0) < 0:
        raise ConfigError(f"{path}: retries must be a whole number, 0 or more.")
    settings = [_setting(path, key, value) for key, value in sorted(values.get("settings", {}).items())]
    stages = {name: _stage(path, name, line, settings) for name, line in values["stages"].items()}
    for stage in stages.values():
        if missing := next((need for need in stage.needs if need not in stages), None):
            near = did_you_mean(missing, list(stages))
            raise ConfigError(f"{path}: stage {stage.name} names {{{missing}}}, which is no stage.{near}")
        if empty := next((need for need in stage.needs if not stages[need].may_be_named), None):
            raise ConfigError(
                f"{path}: stage {stage.name} names {{{empty}}}, which has no output: write {{{HERE}}} where its "
                "command takes a folder."
            )
    try:
        order = list(TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except CycleError as error:
        raise ConfigError(f"{path}: these stages wait for one another: {' -> '.join(error.args[1])}.") from error
    for name in order:
        try:
            settings_of(stages[name].filled(dict.fromkeys([HERE, *stages[name].needs], "/output")))
        except RobometerError as error:
            raise ConfigError(f"{path}: stage {name}: {error}") from error
    output = absolute_path("output", check_storage("output", values["output"]))
    return Plan(Storage(output), {name: stages[name] for name in order}, settings_of, values.get("retries", 0))


class _OnceLoader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.load(Path(path).read_text(), _OnceLoader)  # noqa: S506  a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no plan: write output: and stages:.")
    return values


def _setting(path: str, key: object, value: object) -> str:
    """An override from an entry of `settings`."""
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, dict) or _PLACE.search(text):
        raise ConfigError(
            f"{path}: settings must be text, numbers or lists, without places: write {key} into the lines."
        )
    return f"{key}={text}"


def _stage(path: str, name: object, line: object, settings: Sequence[str]) -> Stage:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in (HERE, RECORDS):
        raise ConfigError(f"{path}: {name!r} cannot name a stage: use small letters, digits and _, but not {HERE}.")
    if not isinstance(line, str | list) or not line:
        raise ConfigError(f"{path}: stage {name} must be a command line, such as: train --corpus {{corpus}}")
    try:
        words = shlex.split(line) if isinstance(line, str) else [str(word) for word in line]
    except ValueError as error:
        raise ConfigError(f"{path}: stage {name} cannot be read ({error}): close its quotes.") from error
    words = words[1:] if words[:1] == ["robometer"] else words
    if not words:
        raise ConfigError(f"{path}: stage {name} has no command.")
    needs = dict.fromkeys(place for word in words for place in _PLACE.findall(word) if place != HERE)
    if name in needs:
        raise ConfigError(f"{path}: stage {name} names itself. Its own output is {{{HERE}}}.")
    scored = [word for word in words if not re.match(r"\+*(tracking|baseline)\.", word)]
    if moving := next((match[1] for word in scored if (match := _MOVES.search(word))), None):
        raise ConfigError(
            f"{path}: stage {name} names {redacted(moving)}, which may be another model tomorrow: name a version, "
            "such as models:/NAME/3, or a checkpoint folder."
        )
    if (
        any(before == "--output" and not _PLACE.search(word) for before, word in pairwise(words))
        and words[0] != "publish"
    ):
        raise ConfigError(f"{path}: stage {name} must write into its own output: write --output {{{HERE}}}.")
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
