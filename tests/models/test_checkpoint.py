"""Checkpoints: sharded, in the public layouts, or from a hub's cache; and what must not load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from robometer.configs.schema import Config
from robometer.frames import FrameSettings, overridden
from robometer.models.checkpoint import (
    CheckpointError,
    checkpoint_hash,
    empty_model,
    load_config,
    load_model,
    save_checkpoint,
)
from robometer.models.config import ModelConfig
from robometer.models.inventory import summary
from robometer.models.layouts import open_checkpoint
from robometer.models.rewind import Rewind
from robometer.models.robometer import Robometer, build_robometer, load_processor
from robometer.models.sources import for_workers, locate
from robometer.models.tiny import TINY
from robometer.models.weights import INDEX, WEIGHTS, iter_weights, match, our_name, save_weights
from robometer.sampling.config import SamplingConfig
from robometer.scorers import load_scorer, resolve
from robometer.training.config import TrainConfig
from tests.models.images import noise_clip

BINS = 7  # not the default, so that it must come from the weights


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _config(**train: Any) -> Config:
    model = ModelConfig(kind="robometer", base_model="tiny", dropout=0.0)
    return Config(model=model, sampling=SamplingConfig(max_frames=8, progress_bins=BINS), train=TrainConfig(**train))


@pytest.fixture(scope="module")
def model() -> Robometer:
    torch.manual_seed(3)
    return build_robometer(_config())[0].eval()


def _equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def _progress(source: str | Path) -> list[float]:
    return [float(value) for value in load_scorer(source).score([noise_clip(5, 3)])[0].progress]


def _backbone(model: Robometer) -> dict[str, Any]:
    """The backbone's configuration after the embedding was resized, as in a public checkpoint."""
    values: dict[str, Any] = json.loads(model.model.config.to_json_string(use_diff=False))
    return values


UPSTREAM: dict[str, Any] = {
    "mode": "train",
    "trainer_cls": "rbm_heads",
    "model": {
        "base_model_id": "tiny",
        "torch_dtype": "float32",
        "trust_remote_code": True,
        "use_multi_image": "${data.use_multi_image}",
        "use_per_frame_progress_token": True,
        "use_peft": False,
        "use_unsloth": True,
        "progress_loss_type": "${loss.progress_loss_type}",
        "progress_discrete_bins": BINS,
        "rewind": None,
    },
    "data": {"max_frames": 6, "use_multi_image": True, "progress_pred_type": "absolute_wrt_total_frames"},
    "training": {"predict_pref_progress": True, "learning_rate": "2e-5"},
    "loss": {"progress_loss_type": "discrete", "progress_discrete_bins": BINS},
}


def _upstream(folder: Path, model: Robometer, /, **changes: dict[str, Any]) -> Path:
    """The layout of `robometer/Robometer-4B`: shards, experiment settings, backbone settings, no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, model.state_dict(), max_shard_size=200_000)
    settings = {
        key: (value | changes.get(key, {})) if isinstance(value, dict) else value for key, value in UPSTREAM.items()
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "config.json").write_text(json.dumps(_backbone(model) | {"architectures": ["RFM"]}))
    return folder


class _LeRobot(nn.Module):
    """LeRobot's export: the class with a language-model head, which shares the embedding's weight, and our heads."""

    def __init__(self, model: Robometer) -> None:
        super().__init__()
        self.model = Qwen3VLForConditionalGeneration(model.model.config)
        self.model.model.load_state_dict(model.model.state_dict())
        self.model.tie_weights()
        for name in ("progress_head", "preference_head", "success_head", "frame_pool_attn"):
            setattr(self, name, getattr(model, name))


def _lerobot(folder: Path, model: Robometer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_model(_LeRobot(model), str(folder / WEIGHTS))
    settings = {
        "type": "robometer",
        "base_model_id": "tiny",
        "torch_dtype": "float32",
        "max_frames": 8,
        "use_multi_image": True,
        "use_per_frame_progress_token": True,
        "progress_loss_type": "discrete",
        "progress_discrete_bins": BINS,
        "vlm_config": _backbone(model),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


# --- ours -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [200_000, "5GB"])
def test_weights_come_back_equal_whole_or_in_shards(tmp_path: Path, model: Robometer, limit: int | str) -> None:
    save_checkpoint(tmp_path, model.state_dict(), _config(), {"step": 3}, max_shard_size=limit)
    assert (tmp_path / INDEX).is_file() is (limit == 200_000)
    assert (tmp_path / WEIGHTS).is_file() is (limit == "5GB")
    again, config = load_model(tmp_path)
    assert _equal(model, again) and config == _config()
    assert {p.device.type for p in again.parameters()} == {b.device.type for b in again.buffers()} == {"cpu"}


@pytest.mark.parametrize("base", TINY)
def test_a_loaded_model_answers_as_the_built_one(tmp_path: Path, base: str) -> None:
    """A model built without memory also has the rotary frequencies, which no checkpoint holds."""
    config = Config(model=ModelConfig(kind="robometer", base_model=base, dropout=0.0))
    built = build_robometer(config)[0].eval()
    save_checkpoint(tmp_path, built.state_dict(), config, {})
    again = load_model(tmp_path)[0].eval()
    batch = load_processor(config).collate_pairs([(noise_clip(1, 3), noise_clip(2, 2))])
    with torch.no_grad():
        a, b = built(batch), again(batch)
    assert torch.equal(a.progress_logits, b.progress_logits) and torch.equal(a.preference_logits, b.preference_logits)
    frozen = {name for name, p in again.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in built.named_parameters() if not p.requires_grad}


def test_frequencies_stay_float32_when_the_weights_are_bf16(tmp_path: Path, model: Robometer) -> None:
    save_checkpoint(tmp_path, model.state_dict(), _config(precision="bf16"), {})
    again = load_model(tmp_path)[0]
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert {b.dtype for name, b in again.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_the_number_type_of_the_state_is_kept_on_disk(tmp_path: Path, model: Robometer) -> None:
    save_checkpoint(tmp_path, {k: v.bfloat16() for k, v in model.state_dict().items()}, _config(), {})
    assert {tensor.dtype for _, tensor in iter_weights(tmp_path)} == {torch.bfloat16}


def test_who_may_read_the_folder_may_read_the_weights(tmp_path: Path, model: Robometer) -> None:
    (tmp_path / "open").mkdir(0o755)
    save_checkpoint(tmp_path / "open", model.state_dict(), _config(), {})
    assert (tmp_path / "open" / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_the_hash_is_of_all_shards(tmp_path: Path, model: Robometer) -> None:
    save_checkpoint(tmp_path, model.state_dict(), _config(), {}, max_shard_size=200_000)
    files, before = sorted(tmp_path.glob("*.safetensors")), checkpoint_hash(tmp_path)
    assert len(files) > 2
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoint_hash(tmp_path) != before
        file.write_bytes(content)
    assert checkpoint_hash(tmp_path) == before


def test_saving_again_leaves_no_shard_of_before(tmp_path: Path, model: Robometer) -> None:
    save_checkpoint(tmp_path, model.state_dict(), _config(), {}, max_shard_size=200_000)
    save_checkpoint(tmp_path, model.state_dict(), _config(), {})
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [WEIGHTS]


# --- public layouts -------------------------------------------------------------------------------------------------


def test_upstreams_layout_loads_as_it_is(tmp_path: Path, model: Robometer) -> None:
    folder = _upstream(tmp_path / "up", model)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    again, config = load_model(folder)
    assert _equal(model, again)
    assert (config.model.kind, config.model.base_model, config.model.progress_loss) == ("robometer", "tiny", "discrete")
    assert (config.sampling.max_frames, config.sampling.progress_target) == (6, "absolute_wrt_total_frames")
    assert config.sampling.progress_bins == BINS
    save_checkpoint(tmp_path / "ours", model.state_dict(), config, {})
    assert _progress(folder) == _progress(tmp_path / "ours")
    # Upstream trains on frames without JPEG, and does not record it.
    assert resolve(folder).frames() == FrameSettings(32, 240, 0)
    save_checkpoint(tmp_path / "ours", model.state_dict(), config, {"frames": {"max_frames": 9, "short_edge": 64}})
    assert resolve(tmp_path / "ours").frames() == FrameSettings(9, 64, 90)
    assert "at most 9 frames, short edge 64 px" in summary(open_checkpoint(tmp_path / "ours"))
    save_checkpoint(tmp_path / "ours", model.state_dict(), config, {"frames": {"max_frames": -9}})
    with pytest.raises(CheckpointError, match="not valid frame settings"):
        resolve(tmp_path / "ours").frames()


def test_a_checkpoint_that_does_not_say_what_frames_it_saw_is_warned_about(
    tmp_path: Path, model: Robometer, caplog: pytest.LogCaptureFixture
) -> None:
    """As before November 2026; upstream's own weights are known to be trained on upstream's frames."""
    ours, public = tmp_path / "ours", _upstream(tmp_path / "up", model)
    save_checkpoint(ours, model.state_dict(), _config(), {"corpus": "c0ffee"})
    assert overridden(resolve(public).frames(), {}) == load_scorer(public).info.frames == FrameSettings(32, 240, 0)
    whole = {"max_frames": 16, "short_edge": 160, "jpeg_quality": 90}
    assert overridden(resolve(ours).frames(), whole) == FrameSettings(16, 160, 90)
    assert not [record for record in caplog.records if record.name.startswith("robometer")]
    assert overridden(load_scorer(ours).info.frames, {"max_frames": 16}) == FrameSettings(16, 240, 90)
    [warning] = [record.getMessage() for record in caplog.records if record.name.startswith("robometer")]
    assert "does not record which frames it was trained on. It gets at most 16 frames, short edge 240 px" in warning
    assert re.search("frames +not recorded", summary(open_checkpoint(ours)))


def test_upstreams_settings_may_lie_in_the_folder_above(tmp_path: Path, model: Robometer) -> None:
    folder = _upstream(tmp_path / "run" / "ckpt-kendall=0.5_step=100", model)
    (folder / "config.yaml").rename(tmp_path / "run" / "config.yaml")
    assert _equal(model, load_model(folder)[0])


def test_lerobots_layout_loads_as_it_is(tmp_path: Path, model: Robometer) -> None:
    folder = _lerobot(tmp_path / "le", model)
    keys = set(load_file(folder / WEIGHTS))
    # A tied pair is written once, under the head's name.
    assert "model.lm_head.weight" in keys and "model.model.language_model.embed_tokens.weight" not in keys
    assert "model.model.visual.pos_embed.weight" in keys and "progress_head.4.weight" in keys
    again, config = load_model(folder)
    assert _equal(model, again)
    assert (config.sampling.max_frames, config.sampling.progress_bins) == (8, BINS)
    assert len(_progress(folder)) == 3


def test_heads_under_the_model_are_found_too(tmp_path: Path, model: Robometer) -> None:
    folder = _lerobot(tmp_path, model)
    state = {k if k.startswith("model.") else f"model.{k}": v for k, v in load_file(folder / WEIGHTS).items()}
    embedding = state["model.lm_head.weight"].clone()
    save_file(state | {"model.model.language_model.embed_tokens.weight": embedding}, folder / WEIGHTS)
    assert _equal(model, load_model(folder)[0])


def test_public_names() -> None:
    assert our_name("model.model.visual.blocks.0.norm1.weight") == "model.visual.blocks.0.norm1.weight"
    assert our_name("model.lm_head.weight") == "lm_head.weight"
    assert our_name("model.frame_pool_attn.weight") == "frame_pool_attn.weight"
    for name in ("model.visual.pos_embed.weight", "progress_head.0.bias", "members.0.video_proj.weight"):
        assert our_name(name) == name


def test_optional_tensors_may_be_absent_or_left_over(tmp_path: Path, model: Robometer) -> None:
    folder = _upstream(tmp_path, model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["frame_pool_attn.weight"]
    extra = {"lm_head.weight": torch.zeros(2, 2), "similarity_head.0.bias": torch.zeros(3)}
    save_weights(folder, state | extra)
    again = load_model(folder)[0].state_dict()
    assert not again.pop("frame_pool_attn.weight").any()
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_the_attention_that_pools_frames_is_not_optional(tmp_path: Path, model: Robometer) -> None:
    pooled = {
        "use_per_frame_progress_token": False,
        "frame_pooling": "attention",
        "frame_pooling_attn_temperature": 2.0,
    }
    folder = _upstream(tmp_path, model, model=pooled, training={"predict_pref_progress": False})
    again, config = load_model(folder)
    assert _equal(model, again) and isinstance(again, Robometer)
    assert (again.pooling, again.temperature) == ("attention", 2.0)
    assert not config.model.per_frame_progress_token and not config.model.ask_progress
    save_weights(folder, {name: tensor for name, tensor in model.state_dict().items() if "pool" not in name})
    with pytest.raises(CheckpointError, match=r"missing: frame_pool_attn.weight"):
        load_model(folder)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_heads_without_bins_load(tmp_path: Path, loss: str) -> None:
    config = Config(model=ModelConfig(kind="robometer", base_model="tiny", progress_loss=loss))
    built = build_robometer(config)[0]
    folder = _upstream(tmp_path, built, model={"progress_loss_type": loss}, loss={"progress_loss_type": loss})
    again, loaded = load_model(folder)
    assert _equal(built, again) and loaded.model.progress_loss == loss


def test_the_published_tokenizer_is_used_where_there_is_one(tmp_path: Path, model: Robometer) -> None:
    folder = _upstream(tmp_path, model, model={"base_model_id": "nobody/has-this"})
    load_processor(_config()).tokenizer.save_pretrained(folder)
    assert _equal(model, load_model(folder)[0])


# --- what must not load ---------------------------------------------------------------------------------------------


def _state(model: Robometer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_each_tensor_that_does_not_fit_is_named(tmp_path: Path, model: Robometer) -> None:
    state = _state(model)
    del state["model.language_model.layers.1.mlp.up_proj.weight"]
    state["success_head.0.bias"] = torch.zeros(3)
    state["model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 2)
    save_weights(_upstream(tmp_path, model), state)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    for part in (
        "missing: model.language_model.layers.1.mlp.up_proj.weight",
        "unexpected: model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "success_head.0.bias (model (32,), checkpoint (3,))",
    ):
        assert part in str(caught.value)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path, model: Robometer) -> None:
    state = _state(model)
    save_weights(_upstream(tmp_path, model), state | {"model.success_head.0.bias": state["success_head.0.bias"] + 1})
    with pytest.raises(CheckpointError, match=r"success_head\.0\.bias twice"):
        load_model(tmp_path)


def test_embedding_rows_and_tokenizer_must_be_of_one_model(tmp_path: Path, model: Robometer) -> None:
    state = _state(model)
    name = "model.language_model.embed_tokens.weight"
    rows = len(state[name])
    state[name] = state[name][:-1].clone()
    save_weights(_upstream(tmp_path, model), state)
    with pytest.raises(CheckpointError, match=f"{rows - 1} embedding rows, but its tokenizer has {rows} tokens"):
        load_model(tmp_path)


def test_an_incomplete_damaged_or_foreign_folder_is_one_sentence(tmp_path: Path, model: Robometer) -> None:
    folder = _upstream(tmp_path / "a", model)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{shard.name} is damaged"):
        load_model(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"these are missing: {shard.name}"):
        load_model(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["progress_head.0.bias"] = "../../elsewhere.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_model(folder)
    (tmp_path / "b").mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        load_model(tmp_path / "b")


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("data", {"use_multi_image": False}, "use_multi_image=false"),
        ("model", {"use_peft": True}, "use_peft=true.*merge it"),
        ("model", {"torch_dtype": "int8"}, "torch_dtype=int8"),
        ("model", {"frame_pooling": "last"}, "frame_pooling='last'"),
        ("model", {"progress_loss_type": "cauchy"}, "progress_loss='cauchy'"),
    ],
)
def test_settings_that_make_another_model_are_refused(
    tmp_path: Path, model: Robometer, section: str, changes: dict[str, Any], words: str
) -> None:
    folder = _upstream(tmp_path, model, **{section: changes})
    with pytest.raises(CheckpointError, match=words):
        load_config(folder)


def test_a_checkpoint_outlives_settings_of_its_training_but_not_of_its_model(tmp_path: Path, model: Robometer) -> None:
    save_checkpoint(tmp_path, model.state_dict(), _config(), {})
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    settings["train"]["of_an_earlier_version"] = settings["a_section_of_one"] = {"x": 1}
    sampling = settings["sampling"]  # an earlier version wrote this into every checkpoint:
    sampling |= {"compat": "fixed", "mode": "rbm", "max_success": sampling.pop("default_cutoff")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert load_model(tmp_path)[1] == _config()
    settings["sampling"]["compat"] = "upstream"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(CheckpointError, match=r"There is no setting sampling.compat"):
        load_config(tmp_path)
    del settings["sampling"]["compat"]
    settings["model"]["of_an_earlier_version"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(CheckpointError, match="of_an_earlier_version"):
        load_config(tmp_path)


def test_an_unknown_backbone_is_refused(tmp_path: Path, model: Robometer) -> None:
    folder = _upstream(tmp_path, model)
    (folder / "config.json").write_text(json.dumps(_backbone(model) | {"model_type": "molmo2"}))
    with pytest.raises(CheckpointError, match="built on 'molmo2'"):
        load_model(folder)


# --- ReWiND ---------------------------------------------------------------------------------------------------------

REWIND_YAML = """
model:
  base_model_id: rewind_transformer
  torch_dtype: float32
  progress_loss_type: {loss}
  rewind: !!python/object:robometer.models.rewind_transformer.ReWINDTransformerConfig
    hidden_dim: 32
    num_layers: 2
    num_attention_heads: 4
    max_len: 16
    causal_mask: {causal}
    use_per_frame_progress_token: {token}
    progress_loss_type: l2
    id2label: {{0: LABEL_0}}
    shape: !!python/tuple [1, 2]
data: {{max_frames: 16, progress_pred_type: absolute}}
loss: {{progress_loss_type: {loss}, progress_discrete_bins: 10}}
"""


def test_upstreams_rewind_loads_without_running_what_its_yaml_names(tmp_path: Path) -> None:
    built = Rewind(24, 20, 32, 2, 4, 16, BINS)
    save_weights(tmp_path, built.state_dict())
    (tmp_path / "config.yaml").write_text(REWIND_YAML.format(loss="discrete", causal="true", token="true"))
    again, config = load_model(tmp_path)
    assert _equal(built, again)
    assert (config.model.attention, config.sampling.progress_bins) == ("causal", BINS)
    assert (config.embed.image_encoder, config.embed.text_encoder) == ("dinov2_base", "minilm_l12")
    mark = tmp_path / "ran"
    attack = f"\nboom: !!python/object/apply:os.mkdir ['{mark}']\n"
    (tmp_path / "config.yaml").write_text(REWIND_YAML.format(loss="discrete", causal="true", token="true") + attack)
    load_config(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("i", range(8))
def test_recorded_rewind_weights_load(golden: Path, tmp_path: Path, i: int) -> None:
    case = next(c for c in json.loads((golden / "d_rewind/cases.json").read_text()) if c["name"] == f"precomputed_{i}")
    (tmp_path / WEIGHTS).symlink_to(golden / f"d_rewind/precomputed_{i}.weights.safetensors")
    flags = {"causal": case["causal_mask"], "token": case["per_frame_progress_token"]}
    text = REWIND_YAML.format(loss=case["progress_loss_type"], **{k: str(v).lower() for k, v in flags.items()})
    (tmp_path / "config.yaml").write_text(text)
    model = load_model(tmp_path)[0]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == case["params"]


def test_recorded_robometer_weights_load(golden: Path, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).symlink_to(golden / "d_rbm/weights_discrete10.safetensors")
    for file in (golden / "d_rbm/processor").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").symlink_to(golden / "d_rbm/base_model_config_after_resize.json")
    facts = json.loads((golden / "d_rbm/cases.json").read_text())["facts"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": facts["model_config_fields"]}))
    model, config = load_model(tmp_path)
    assert config.sampling.progress_bins == 10
    expected = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


# --- where a checkpoint comes from ----------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, model: Robometer) -> dict[str, str]:
    """The environment for an offline hub cache that holds one public checkpoint under `main` and a tag."""
    repo = tmp_path / "hub" / "models--robometer--tiny"
    commit = "b" * 40
    _upstream(repo / "snapshots" / commit, model)
    (repo / "refs").mkdir()
    for ref in ("main", "v1"):
        (repo / "refs" / ref).write_text(commit)
    return {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}


ASK = """
import sys
from robometer.models.inventory import summary
from robometer.models.layouts import open_checkpoint
from robometer.models.sources import locate
from robometer.models.weights import CheckpointError
for source in sys.argv[1:]:
    try:
        print(open_checkpoint(locate(source)).layout)
    except CheckpointError as error:
        print(error)
"""


def test_a_hub_id_in_the_cache_works_offline_and_others_say_so(tmp_path: Path, hub_cache: dict[str, str]) -> None:
    sources = [
        "robometer/tiny",
        "robometer/tiny@v1",
        f"robometer/tiny@{'b' * 40}",
        "robometer/tiny@v2",
        "nobody/nothing",
    ]
    process = subprocess.run(  # the hub's client reads its environment on import
        [sys.executable, "-c", ASK, *sources],
        env=os.environ | hub_cache,
        capture_output=True,
        text=True,
        check=True,
    )
    *layouts, other_revision, nothing = process.stdout.splitlines()
    assert layouts == ["upstream"] * 3
    assert "robometer/tiny@v2 is not a folder, and as a hub id it cannot be fetched" in other_revision
    assert (
        "nobody/nothing" in nothing and "the hub cannot be reached" in nothing and "give an existing folder" in nothing
    )


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "best").mkdir(parents=True)
    assert locate("outputs/best") == Path("outputs/best")
    assert for_workers("outputs/best") == str(tmp_path / "outputs" / "best")
    assert for_workers("robometer/Robometer-4B@main") == "robometer/Robometer-4B@main"
    for wrong in ("outputs/none/best", "./outputs/none", "/none", "none"):
        with pytest.raises(CheckpointError, match="is neither a folder nor a hub id"):
            locate(wrong)
    (tmp_path / "outputs" / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        locate("outputs/file")


def test_an_empty_model_holds_no_memory(tmp_path: Path, model: Robometer) -> None:
    empty = empty_model(open_checkpoint(_lerobot(tmp_path, model)))
    assert {tensor.device.type for tensor in [*empty.parameters(), *empty.buffers()]} == {"meta"}


def test_match_counts_what_is_optional() -> None:
    expected: dict[str, tuple[int, ...]] = {"a.weight": (2, 3), "frame_pool_attn.weight": (1, 2), "b": (1,)}
    fit = match(expected, {"a.weight": (3, 2), "lm_head.weight": (9, 9), "c": (1,)})
    assert fit.missing == ("frame_pool_attn.weight", "b") and fit.unexpected == ("c",)
    assert fit.misshaped == (("a.weight", (2, 3), (3, 2)),)
    fit = match(expected, {"a.weight": (2, 3), "b": (1,)}, {"frame_pool_attn.weight"})
    assert fit.problems == ""
