"""Publishing: the card states only what is recorded; folders are replaced atomically; the registry returns a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import ModelCard

from jobs import checkpoint as checkpoint_job
from jobs import publish as job
from robometer.configs.loading import save as save_checkpoint_config
from robometer.configs.schema import Config
from robometer.corpus.config import CorpusConfig
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.models.checkpoint import (
    build_model,
    checkpoint_hash,
    load_config,
    load_model,
    load_provenance,
    save_checkpoint,
)
from robometer.models.config import LoraSettings, ModelConfig
from robometer.models.lora import trained_names
from robometer.models.rewind import Rewind
from robometer.models.robometer import build_robometer, load_processor
from robometer.models.weights import CheckpointError
from robometer.runs import publishing
from robometer.runs.config import TrackingConfig
from robometer.runs.provenance import provenance_of
from robometer.runs.publishing import PublishingError, prepare, to_folder, to_hub, to_mlflow
from robometer.sampling.config import SamplingConfig
from tests.local_hub import local_hub
from tests.models.images import noise_clip

PROVENANCE = {
    "corpus": "c0ffee",
    "trajectories": 2283,
    "sources": {"metaworld": 2283},
    "commit": "f" * 40,
    "run_id": "run-1",
    "step": 40,
    "metrics": {"step": 40, "seen/preference_accuracy": 0.75, "seen/voc": -0.25},
}


def _config() -> Config:
    return Config(
        model=ModelConfig(kind="rewind", hidden_dim=16, num_layers=1, num_heads=2, max_len=16),
        corpus=CorpusConfig(path="/secret/place"),
        tracking=TrackingConfig(uri="http://user:password@host"),
    )


def _checkpoint(folder: Path, seed: int = 0, **provenance: Any) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(folder, Rewind(6, 5, 16, 1, 2, 16, 10).state_dict(), _config(), PROVENANCE | provenance)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return _checkpoint(tmp_path / "best")


def _evaluation(folder: Path, model: str) -> Path:
    metric = {"value": 0.5, "low": 0.4, "high": None, "n": 12, "over": "pairs"}
    interval = metric | {"value": 0.625, "high": 0.75}
    content = {
        "provenance": {
            "model": model,
            "corpus_hash": "beef",
            "splits": {"held_out": "12 of 12 clips, 3 tasks"},
            "mode": "whole clip",
            "intervals": "95% percentile bootstrap",
        },
        "metrics": {
            "held_out": {"preference": {"accuracy": interval, "swapped": metric, "empty": metric | {"value": None}}}
        },
    }
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_a_publication_loads_and_says_what_was_recorded(tmp_path: Path, checkpoint: Path) -> None:
    place = Path(to_folder(prepare(str(checkpoint)), str(tmp_path / "published")))
    assert checkpoint_hash(place) == checkpoint_hash(checkpoint)
    a, b = load_model(place)[0].state_dict(), load_model(checkpoint)[0].state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    card = ModelCard.load(place / "README.md")
    assert (card.data.license, card.data.library_name, card.data.base_model) == ("mit", "robometer", None)
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results or []}
    assert results == {("seen", "preference_accuracy"): 0.75, ("seen", "voc"): -0.25}
    for part in ("| seen | voc | -0.25 |", "Corpus `c0ffee`", "| metaworld | 2,283 |", "f" * 40, "simulated arms only"):
        assert part in card.text
    assert f"--scorer {tmp_path / 'published'}" in card.text
    assert "Not evaluated" not in card.text


def test_nothing_of_the_machine_is_published(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "notes.txt").write_text("mine")
    place = Path(to_folder(prepare(str(checkpoint)), str(tmp_path / "published")))
    names = {path.name for path in place.iterdir()}
    assert names == {"README.md", "config.yaml", "model.safetensors", "provenance.json"}
    texts = "".join((place / name).read_text() for name in names - {"model.safetensors"})
    assert "/secret/place" not in texts and "password" not in texts
    assert load_config(place).model == load_config(checkpoint).model


def test_an_evaluation_replaces_the_numbers_of_the_training_run(tmp_path: Path, checkpoint: Path, bucket: str) -> None:
    evaluation = _evaluation(tmp_path / "evaluation", f"rewind@{checkpoint_hash(checkpoint)}")
    Storage(bucket).write_bytes("evaluation/metrics.json", (evaluation / "metrics.json").read_bytes())
    what = prepare(str(checkpoint), str(evaluation))
    for place in (f"{evaluation}/metrics.json", f"{bucket}/evaluation", f"{bucket}/evaluation/metrics.json"):
        assert prepare(str(checkpoint), place) == what
    assert what.metrics == {"held_out/preference/accuracy": 0.625, "held_out/preference/swapped": 0.5}
    text = publishing.card(what, "title", "org/name")
    assert "| held_out | preference/accuracy | 0.625 | 0.4 to 0.75 | 12 pairs |" in text
    assert "| held_out | preference/swapped | 0.5 | - | 12 pairs |" in text
    assert "12 of 12 clips, 3 tasks" in text and "beef" in text and "seen" not in text.split("## Training")[0]


def test_an_evaluation_of_another_model_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    evaluation = _evaluation(tmp_path / "evaluation", "rewind@000000000000")
    with pytest.raises(PublishingError, match="evaluated rewind@000000000000, but the checkpoint is rewind@"):
        prepare(str(checkpoint), str(evaluation))
    with pytest.raises(PublishingError, match="is not an evaluation"):
        prepare(str(checkpoint), str(tmp_path))


def test_a_model_without_numbers_or_history_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "bare", Rewind(6, 5, 16, 1, 2, 16, 10).state_dict(), _config(), {})
    text = publishing.card(prepare(str(tmp_path / "bare")), "bare", "org/bare")
    assert "Not evaluated." in text and "model-index" not in text
    assert "Its quality is unknown" in text and "commit of the code was not recorded" in text
    assert "How the frames of a video were chosen in training was not recorded" in text
    assert "frames" not in load_provenance(to_folder(prepare(str(tmp_path / "bare")), str(tmp_path / "published")))
    assert "Not recorded." in text.split("## Data")[1]


@pytest.mark.parametrize("where", ["tmp_path", "bucket"])
def test_only_an_earlier_publication_of_the_same_model_is_replaced(
    tmp_path: Path, checkpoint: Path, request: pytest.FixtureRequest, where: str
) -> None:
    models = Storage(f"{request.getfixturevalue(where)}/models")
    target = models.at("published")

    def published() -> str:
        with models.local_copy("published") as copy:
            return checkpoint_hash(copy)

    first = to_folder(prepare(str(checkpoint)), target)
    assert first == target and published() == checkpoint_hash(checkpoint)
    later = _checkpoint(tmp_path / "later", seed=1, step=80)  # from the same run
    to_folder(prepare(str(later)), f"{target}/")
    assert published() == checkpoint_hash(later)
    other = prepare(str(_checkpoint(tmp_path / "other", seed=2, run_id="run-2")))
    with pytest.raises(PublishingError, match="is not an earlier publication"):
        to_folder(other, target)
    with pytest.raises(PublishingError, match="is not an earlier publication"):
        to_folder(other, str(checkpoint))
    assert published() == checkpoint_hash(later)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_bucket_as_a_whole_is_no_place_to_publish_to(checkpoint: Path, bucket: str) -> None:
    with pytest.raises(PublishingError, match="is a whole bucket: name a folder in it"):
        to_folder(prepare(str(checkpoint)), f"{bucket}/")


def test_a_publication_that_fails_leaves_the_old_one(tmp_path: Path, checkpoint: Path) -> None:
    target = to_folder(prepare(str(checkpoint)), str(tmp_path / "published"))
    what = prepare(str(_checkpoint(tmp_path / "later", seed=1)))
    (tmp_path / "later" / "model.safetensors").unlink()  # the disk it is read from disappears
    with pytest.raises(CheckpointError):
        to_folder(what, str(target))
    assert checkpoint_hash(target) == checkpoint_hash(checkpoint)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_registry_gives_back_what_was_published(tmp_path: Path, checkpoint: Path) -> None:
    from mlflow import MlflowClient

    config = Config(tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    what = prepare(str(checkpoint))
    assert [to_mlflow(what, config, "drawer") for _ in range(2)] == ["models:/drawer/1", "models:/drawer/2"]
    client = MlflowClient(tracking_uri=config.tracking.uri)
    version = client.get_model_version("drawer", "1")
    assert version.tags == {"seen/preference_accuracy": "0.75", "seen/voc": "-0.25"}
    assert client.get_run(version.run_id).data.metrics == {"seen/preference_accuracy": 0.75, "seen/voc": -0.25}
    client.set_registered_model_alias("drawer", "best", "1")
    for source in ("models:/drawer/1", "models:/drawer@best", f"runs:/{version.run_id}/model"):
        model, loaded = load_model(source, config.tracking.uri)
        ours = load_model(checkpoint)[0].state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
        assert loaded.model == _config().model
    with pytest.raises(CheckpointError, match="models:/drawer/9 cannot be fetched"):
        load_model("models:/drawer/9", config.tracking.uri)
    with pytest.raises(CheckpointError, match="names no version"):
        load_model("models:/drawer", config.tracking.uri)
    with pytest.raises(CheckpointError, match="no tracking store"):
        load_model("models:/drawer/1", f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(PublishingError, match="tracking is off"):
        to_mlflow(what, Config(tracking=TrackingConfig(uri="none")), "drawer")


def test_the_hub_needs_a_token_a_name_and_an_answer(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = prepare(str(checkpoint))
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    with pytest.raises(PublishingError, match="set HF_TOKEN"):
        to_hub(what, "org/name")
    monkeypatch.setattr(publishing, "get_token", lambda: "hf_none")
    with pytest.raises(PublishingError, match="give --hub ORG/NAME"):
        to_hub(what, "name")


ROUND_TRIP = """
import sys
from jobs import checkpoint, publish
assert publish.main([sys.argv[1], "--hub", "lab/drawer", "--private"]) == 0
assert checkpoint.main(["lab/drawer@main"]) == 0
assert publish.main(["lab/drawer", "--output", sys.argv[2]]) == 0
"""


def test_a_hub_takes_it_and_gives_it_back(tmp_path: Path, checkpoint: Path) -> None:
    with local_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "hf")}
        requests = subprocess.run(  # the hub's client reads its environment when it is imported
            [sys.executable, "-c", ROUND_TRIP, str(checkpoint), str(tmp_path / "again")],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
    assert requests.returncode == 0, requests.stderr[-2000:]
    assert (hub.repo, hub.private, hub.tokens) == ("lab/drawer", True, {"Bearer hf_secret"})
    assert sorted(hub.files) == ["README.md", "config.yaml", "model.safetensors", "provenance.json"]
    assert "robometer serve lab/drawer" in hub.files["README.md"].decode()
    assert checkpoint_hash(tmp_path / "again") == checkpoint_hash(checkpoint)


def test_the_vision_language_model_is_published_from_any_layout(tmp_path: Path) -> None:
    config = Config(model=ModelConfig(kind="robometer", base_model="tiny"), sampling=SamplingConfig(max_frames=4))
    model = build_robometer(config)[0]
    save_checkpoint(tmp_path / "ours", model.state_dict(), config, {}, max_shard_size=300_000)
    upstream = tmp_path / "upstream"
    save_checkpoint(upstream, model.state_dict(), config, {})
    settings = {"base_model_id": "tiny", "torch_dtype": "float32", "progress_loss_type": "discrete"}
    (upstream / "config.yaml").write_text(json.dumps({"model": settings, "data": {"max_frames": 4}}))
    for name in ("tokenizer.json", "tokenizer_config.json", "provenance.json"):
        (upstream / name).unlink()
    for source in ("ours", "upstream"):
        place = Path(to_folder(prepare(str(tmp_path / source)), str(tmp_path / f"published-{source}")))
        assert {"config.json", "tokenizer.json", "README.md", "provenance.json"} <= {p.name for p in place.iterdir()}
        again, loaded = load_model(place)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in again.state_dict().items())
        assert loaded.sampling.max_frames == 4
    assert len(list((tmp_path / "published-ours").glob("model-*.safetensors"))) > 1


def test_adapters_are_merged_into_a_model_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(
        model=ModelConfig(kind="robometer", base_model="tiny", dropout=0.0, lora=LoraSettings(rank=2)),
        sampling=SamplingConfig(max_frames=4),
    )
    model = build_model(config, cast(Any, None)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)  # as if trained: adapters are initialised to zero
    state = {name: tensor for name, tensor in model.state_dict().items() if name in trained_names(model)}
    save_checkpoint(tmp_path / "adapted", state, config, {})
    assert checkpoint_job.main([str(tmp_path / "adapted")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-3:] == ["0", "0", "0"]
    place = Path(to_folder(prepare(str(tmp_path / "adapted"), merge=True), str(tmp_path / "merged")))
    merged, loaded = load_model(place)
    assert loaded.model.lora.rank == 0 and not any("lora" in name for name in merged.state_dict())
    batch = load_processor(config).collate_clips([noise_clip(1, 3)])
    with torch.no_grad():
        a, b = model(batch), merged.eval()(batch)
    assert torch.allclose(a.progress_logits, b.progress_logits, atol=1e-5)
    local = replace(config, train=replace(config.train, load_from_checkpoint="/my/base"))
    save_checkpoint_config(local, tmp_path / "adapted" / "config.yaml")
    with pytest.raises(PublishingError, match="adapters of /my/base, which is not public: publish it with --merge"):
        prepare(str(tmp_path / "adapted"))


def test_a_base_model_of_unknown_licence_needs_one(checkpoint: Path) -> None:
    base = "some-lab/unheard-of"
    with pytest.raises(PublishingError, match=f"licence of {base} is unknown"):
        publishing._license(Config(model=ModelConfig(kind="robometer", base_model=base)))
    assert prepare(str(checkpoint), license="cc-by-4.0").license == "cc-by-4.0"


def test_the_command_publishes_and_says_where(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "published")
    assert job.main([str(checkpoint), "--output", target]) == 0
    assert capsys.readouterr().out == f"rewind@{checkpoint_hash(checkpoint)}, 2 metrics: {target}\n"
    assert job.main([str(checkpoint)]) == 2
    assert "Say where to publish" in capsys.readouterr().err
    assert job.main([str(tmp_path / "none"), "--output", target]) == 2
    assert "is neither a folder nor a hub id" in capsys.readouterr().err


def test_provenance_counts_the_corpus(tiny_corpus: str) -> None:
    provenance = provenance_of(Corpus(tiny_corpus))
    assert provenance["trajectories"] == sum(provenance["sources"].values()) == sum(provenance["splits"].values()) == 66
    assert provenance["corpus"] == Corpus(tiny_corpus).content_hash and provenance["commit"]
