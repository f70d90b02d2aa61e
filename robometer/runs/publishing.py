"""Publish a checkpoint with its model card: to a folder, the MLflow registry, or the Hugging Face hub.

A publication is the checkpoint in the public layout, without settings of the machine that it was trained on, and a card
that says only what was recorded: a model without metrics is "not evaluated".
"""

from __future__ import annotations

import json
import posixpath
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from jinja2 import Environment, PackageLoader, StrictUndefined

from robometer.configs.loading import save
from robometer.configs.schema import Config
from robometer.corpus.storage import Storage, StorageError
from robometer.errors import RobometerError
from robometer.models.checkpoint import (
    PROVENANCE,
    backbone_folder,
    checkpoint_hash,
    filled_model,
    frames_of,
    load_provenance,
)
from robometer.models.layouts import BACKBONE, CONFIG, Checkpoint, open_checkpoint
from robometer.models.sources import HUB_ID, locate
from robometer.models.tiny import TINY
from robometer.models.weights import INDEX, WEIGHTS, iter_weights, save_weights, weight_files
from robometer.runs import tracking

CARD = "README.md"

BASE_LICENSES = {"Qwen/Qwen3-VL-4B-Instruct": "apache-2.0", "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "apache-2.0"}
"""Licences of base models, which also apply to models that are trained from them."""

_OF_THE_MACHINE = ("corpus", "ingest", "sweep", "evaluate", "serve", "simulate", "tracking", "ray")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
_SETTINGS = (
    "model.progress_loss",
    "sampling.progress_bins",
    "sampling.max_frames",
    "sampling.preference",
    "sampling.progress",
    "loss.progress_weight",
    "loss.success_weight",
    "loss.preference_weight",
    "train.steps",
    "train.batch_size",
    "train.learning_rate",
    "train.precision",
    "train.seed",
)


class PublishingError(RobometerError):
    """A checkpoint cannot be published, or not there. The message says why in one sentence."""


@dataclass(frozen=True)
class MetricRow:
    """One line of the card's table; `interval` and `n` are "-" if they were not recorded."""

    split: str
    metric: str
    value: float
    interval: str = "-"
    n: str = "-"


@dataclass(frozen=True)
class Publication:
    """A checkpoint that is about to be published.

    Attributes:
        revision: hash of its weights.
        provenance: recorded by its training.
        rows: its metrics.
        measured: what the metrics are over, in one sentence.
        license: an identifier of the hub.
        merge: whether to merge adapters into the weights that they adapt.
    """

    checkpoint: Checkpoint
    revision: str
    provenance: dict[str, Any]
    rows: list[MetricRow]
    measured: str
    license: str
    merge: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics as `split/metric`."""
        return {f"{row.split}/{row.metric}": row.value for row in self.rows}


def prepare(
    source: str, evaluation: str = "", license: str = "", tracking_uri: str = "", merge: bool = False
) -> Publication:
    """Read a checkpoint (see `locate`) and, if given, the folder or `metrics.json` of its evaluation.

    Raises:
        CheckpointError: there is no such checkpoint.
        PublishingError: the evaluation is of another model, the licence of the base model is unknown, or the base of
            the adapters is not public.
    """
    checkpoint = open_checkpoint(locate(source, tracking_uri))
    base = checkpoint.config.train.load_from_checkpoint
    if checkpoint.config.model.lora.rank and not merge and base and not HUB_ID.fullmatch(base):
        raise PublishingError(f"{source} holds adapters of {base}, which is not public: publish it with --merge")
    revision, provenance = checkpoint_hash(checkpoint.folder), load_provenance(checkpoint.folder)
    if evaluation:
        rows, measured = _evaluated(evaluation, f"{checkpoint.config.model.kind}@{revision}")
    else:
        rows, measured = _validated(provenance)
    return Publication(checkpoint, revision, provenance, rows, measured, license or _license(checkpoint.config), merge)


def _license(config: Config) -> str:
    base = config.model.base_model
    if config.model.kind == "rewind" or base in TINY:
        return "mit"
    if base not in BASE_LICENSES:
        raise PublishingError(f"the licence of {base} is unknown: give --license=ID, an identifier of the hub")
    return BASE_LICENSES[base]


def _evaluated(path: str, model: str) -> tuple[list[MetricRow], str]:
    folder, name = posixpath.split(path) if path.endswith(".json") else (path, "metrics.json")
    try:
        content = json.loads(Storage(folder).read_bytes(name))
        about, metrics = content["provenance"], content["metrics"]
    except (OSError, StorageError, ValueError, KeyError, TypeError) as error:
        raise PublishingError(f"{path} is not an evaluation: its metrics.json cannot be read ({error})") from error
    if about["model"] != model:
        raise PublishingError(f"{path} evaluated {about['model']}, but the checkpoint is {model}: evaluate it first")
    rows = [
        MetricRow(split, f"{evaluation}/{name}", value["value"], _interval(value), f"{value['n']} {value['over']}")
        for split, evaluations in metrics.items()
        for evaluation, values in evaluations.items()
        for name, value in values.items()
        if value["value"] is not None
    ]
    splits = "; ".join(f"{split}: {clips}" for split, clips in about["splits"].items())
    measured = (
        f"`robometer evaluate` on corpus `{about['corpus_hash']}` ({splits}). {about['mode']}; {about['intervals']}."
    )
    return rows, measured


def _interval(value: Mapping[str, Any]) -> str:
    return "-" if value["low"] is None or value["high"] is None else f"{value['low']:.4g} to {value['high']:.4g}"


def _validated(provenance: Mapping[str, Any]) -> tuple[list[MetricRow], str]:
    metrics = {name: value for name, value in (provenance.get("metrics") or {}).items() if name != "step"}
    rows = [MetricRow(*_split_of(name), float(value)) for name, value in metrics.items()]
    return rows, "Validation during training, which chose the checkpoint. There is no separate evaluation."


def _split_of(name: str) -> tuple[str, str]:
    split, slash, metric = name.partition("/")
    return (split, metric) if slash else ("-", name)


# --- the card -------------------------------------------------------------------------------------------------------


def card(what: Publication, title: str, source: str) -> str:
    """The model card: front matter as the hub reads it, and text.

    Args:
        what: the publication.
        title: of the card.
        source: the published checkpoint's name for commands.
    """
    config = what.checkpoint.config
    base = config.model.base_model
    public_base = base if config.model.kind == "robometer" and base not in TINY and HUB_ID.fullmatch(base) else None
    environment = Environment(  # noqa: S701  it writes Markdown
        loader=PackageLoader("robometer.runs"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template("model_card.md.jinja2").render(
        title=title,
        source=source,
        kind=config.model.kind,
        base=public_base or ("a random tiny backbone" if base in TINY else Path(base).name),
        encoders=f"{config.embed.image_encoder}, {config.embed.text_encoder}",
        revision=what.revision,
        rows=what.rows,
        measured=what.measured,
        settings=_settings(config),
        frames=str(frames_of(what.checkpoint) or ""),
        limits=_limits(what),
        **{key: what.provenance.get(key) for key in ("commit", "corpus", "trajectories", "sources")},
    )
    data = ModelCardData(
        license=what.license,
        base_model=public_base,
        library_name="robometer",
        pipeline_tag="robotics",
        tags=["robotics", "reward-model", config.model.kind],
        model_name=title,
        eval_results=_eval_results(what) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _settings(config: Config) -> dict[str, Any]:
    values = asdict(config)
    return {key: values[key.split(".")[0]][key.split(".")[1]] for key in _SETTINGS}


def _limits(what: Publication) -> list[str]:
    limits = ["Progress and success are estimates from pixels. If a mistake is costly, check them by other means."]
    if what.rows:
        limits.append("The numbers are for the splits above. They say nothing about other robots, views or tasks.")
    else:
        limits.append("Its quality is unknown.")
    sources = what.provenance.get("sources") or {}
    if sources and all("metaworld" in name for name in sources):
        limits.append("It was trained on simulated arms only and does not transfer to real video.")
    if what.checkpoint.config.model.base_model in TINY and what.checkpoint.config.model.kind == "robometer":
        limits.append("Its backbone is tiny and started from random weights: it only shows that the system works.")
    return limits


def _eval_results(what: Publication) -> list[EvalResult]:
    corpus = str(what.provenance.get("corpus", "unknown"))
    return [
        EvalResult(
            task_type="robotics",
            task_name="reward prediction",
            dataset_type="robometer-corpus",
            dataset_name=f"corpus {corpus}, split {row.split}",
            dataset_split=row.split,
            metric_type=row.metric,
            metric_name=row.metric,
            metric_value=row.value,
        )
        for row in what.rows
    ]


# --- where to -------------------------------------------------------------------------------------------------------


def write(what: Publication, folder: Path, title: str, source: str) -> None:
    """Write a publication into a new folder."""
    folder.mkdir(parents=True)
    origin, config = what.checkpoint.folder, _published(what)
    if what.checkpoint.config.model.lora.rank and what.merge:
        _write_merged(what, folder)
    elif what.checkpoint.layout == "robometer":
        index = [origin / INDEX] if (origin / INDEX).is_file() else []
        for file in [*weight_files(origin), *index]:
            shutil.copy(file, folder)
    else:
        save_weights(folder, dict(iter_weights(origin)))
    with backbone_folder(what.checkpoint) as backbone:
        for pattern in (BACKBONE, *_TOKENIZER) if backbone else ():
            for file in backbone.glob(pattern) if backbone else ():
                shutil.copy(file, folder)
    save(config, folder / CONFIG)
    added: dict[str, Any] = {"published": {"title": title, "revision": what.revision, "metrics": what.metrics}}
    if frames := frames_of(what.checkpoint):  # also for public weights, since a publication has our layout
        added["frames"] = frames.as_dict()
    (folder / PROVENANCE).write_text(json.dumps(what.provenance | added, indent=2))
    (folder / CARD).write_text(card(what, title, source))


def _write_merged(what: Publication, folder: Path) -> None:
    from robometer.models.lora import merge
    from robometer.models.robometer import Robometer

    model = filled_model(what.checkpoint)
    assert isinstance(model, Robometer)
    merge(model)
    save_weights(folder, model.state_dict())


def _published(what: Publication) -> Config:
    """The configuration without paths of this machine, and without adapters if they are merged."""
    plain, own = Config(), what.checkpoint.config
    config = replace(own, **{name: getattr(plain, name) for name in _OF_THE_MACHINE})
    adapters = bool(own.model.lora.rank) and not what.merge
    start = own.train.load_from_checkpoint if adapters else ""
    lora = own.model.lora if adapters else replace(own.model.lora, rank=0)
    train = replace(config.train, output=plain.train.output, load_from_checkpoint=start)
    return replace(config, model=replace(config.model, lora=lora), train=train)


def to_folder(what: Publication, folder: str) -> str:
    """Publish into a folder or its URI, which must be new, empty, or an earlier publication of the same model.

    Returns:
        The absolute path, or the URI.

    Raises:
        PublishingError: the folder holds something else.
    """
    target = Storage(folder.rstrip("/"))
    if not target.is_local and "/" not in target.root:
        raise PublishingError(f"{folder} is a whole bucket: name a folder in it")
    _check_free(what, target)
    above, name = posixpath.split(target.path)
    with Storage(above).write_folder(name, last=(WEIGHTS, INDEX)) as staging:
        write(what, staging, name, folder)
    return target.path


def _check_free(what: Publication, target: Storage) -> None:
    if not Path(target.path).is_file() and target.is_empty():
        return
    earlier = json.loads(target.read_bytes(PROVENANCE)) if target.exists(PROVENANCE) else {}
    run, published = earlier.get("run_id"), earlier.get("published") or {}
    same = published.get("revision") == what.revision or (run and run == what.provenance.get("run_id"))
    if not published or not same:
        raise PublishingError(f"{target.path} is not an earlier publication of this model: choose another folder")


def to_mlflow(what: Publication, config: Config, name: str) -> str:
    """Publish as a new version of a registered model, and return its `models:/NAME/VERSION`.

    Raises:
        PublishingError: tracking is off.
    """
    if tracking.is_off(config):
        raise PublishingError("tracking is off: give the registry's store, tracking.uri=...")
    with tempfile.TemporaryDirectory() as place, tracking.start(config, "publish") as run:
        write(what, Path(place, "model"), name, f"models:/{name}/VERSION")
        run.artifact(Path(place, "model"))
        run.metrics(what.metrics)
        version = run.register_model("model", what.metrics, name)
    return f"models:/{name}/{version}"


def to_hub(what: Publication, repo: str, private: bool = False) -> str:
    """Publish to the hub as one commit, and return the repository's address.

    Raises:
        PublishingError: there is no token, the name is not `org/name`, or the hub refused.
    """
    if get_token() is None:
        raise PublishingError("publishing to the hub needs a token with write access: set HF_TOKEN")
    if not HUB_ID.fullmatch(repo) or "@" in repo:
        raise PublishingError(f"{repo!r} is not the name of a repository: give --hub ORG/NAME")
    api = HfApi()
    with tempfile.TemporaryDirectory() as place:
        write(what, Path(place, "model"), repo.partition("/")[2], repo)
        try:
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=Path(place, "model"), commit_message=f"weights {what.revision}")
        except (OSError, ValueError, HTTPError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PublishingError(
                f"the hub refused {repo} ({reason}): check HF_TOKEN, its rights and the name"
            ) from error
    return str(url)
