"""The output of `robometer checkpoint`, and its check of the public layouts without weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import checkpoint as job
from robometer.configs.schema import Config
from robometer.models.checkpoint import save_checkpoint
from robometer.models.config import ModelConfig
from robometer.models.inventory import describe, dry_checkpoints, inventory
from robometer.models.layouts import open_checkpoint
from robometer.models.rewind import Rewind
from robometer.models.robometer import build_robometer
from robometer.models.weights import save_weights
from tests.conftest import SHARED

QWEN = SHARED / "data" / "qwen3_vl_4b_instruct"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    config = Config(model=ModelConfig(kind="robometer", base_model="tiny"))
    provenance = {"corpus": "c0ffee", "step": 7, "metrics": {"seen/voc": 0.5}}
    save_checkpoint(path, build_robometer(config)[0].state_dict(), config, provenance, max_shard_size=300_000)
    return path


def test_the_command_prints_what_a_checkpoint_holds(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([str(tiny)]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert lines["layout"] == ["robometer"] and lines["corpus"] == ["c0ffee"] and lines["metrics"][-1] == "0.5"
    assert lines["progress_head"][0] == "6" and lines["all"][3:] == ["0", "0", "0"]
    parameters = sum(
        p.numel()
        for p in build_robometer(Config(model=ModelConfig(kind="robometer", base_model="tiny")))[0].parameters()
    )
    assert lines["all"][1:3] == [f"{parameters:,}", f"{4 * parameters:,}"]


def test_the_command_names_what_does_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(model=ModelConfig(kind="rewind", hidden_dim=16, num_layers=1, num_heads=2, max_len=16))
    state = Rewind(6, 5, 16, 1, 2, 16, 10).state_dict()
    save_checkpoint(tmp_path, state, config, {})
    assert job.main([str(tmp_path)]) == 0
    capsys.readouterr()
    state["stranger"] = state.pop("preference_token").clone()
    save_weights(tmp_path, state)
    assert job.main([str(tmp_path)]) == 2
    printed = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line}
    assert rows["preference_token"] == ["0", "0", "0", "1", "0", "0"] and rows["stranger"][3:] == ["0", "1", "0"]
    assert rows["all"][3:] == ["1", "1", "0"] and "does not load" in printed.err
    assert job.main(["tracking.uri=none"]) == 2


def test_a_model_tells_its_backbone_and_its_size_and_a_rewind_has_none(tiny: Path, tmp_path: Path) -> None:
    """A public client starts only if the description names its backbone, somewhere."""
    config = Config(model=ModelConfig(kind="rewind", hidden_dim=16, num_layers=1, num_heads=2, max_len=16))
    model = Rewind(6, 5, 16, 1, 2, 16, 10)
    save_checkpoint(tmp_path, model.state_dict(), config, {})
    rewind, robometer = (describe(open_checkpoint(path)) for path in (tmp_path, tiny))
    assert "qwen" not in json.dumps(rewind).lower()
    assert robometer["experiment_config"]["model"]["base_model"] == "tiny"
    sizes = {
        "Rewind": model,
        "Robometer": build_robometer(Config(model=ModelConfig(kind="robometer", base_model="tiny")))[0],
    }
    for architecture in (rewind["model_architecture"], robometer["model_architecture"]):
        module = sizes[architecture["model_class"]]
        assert architecture["total_parameters"] == sum(parameter.numel() for parameter in module.parameters())
        names = [name for name, _ in module.named_children()]
        assert [part["name"] for part in architecture["architecture_summary"]] == names
        assert architecture["trainable_parameters"] is None


def test_a_description_tells_no_size_of_adapters_alone(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    adapters = replace(checkpoint.config.model, lora=replace(checkpoint.config.model.lora, rank=4))
    described = describe(replace(checkpoint, config=replace(checkpoint.config, model=adapters)))
    assert set(described["model_architecture"].values()) == {None}


def test_both_public_layouts_of_a_base_model_fit(tiny: Path) -> None:
    for checkpoint in dry_checkpoints(tiny):
        everything = inventory(checkpoint)[-1]
        assert (everything.missing, everything.unexpected, everything.misshaped) == (0, 0, 0), checkpoint.layout
        slots = {name: slot for name, slot in checkpoint.slots.items() if "layers.1" not in name}
        assert inventory(replace(checkpoint, slots=slots))[-1].missing == len(checkpoint.slots) - len(slots) > 0


@pytest.mark.skipif(not QWEN.is_dir(), reason="../shared/data is absent: the real configuration is not in the project")
def test_the_published_size_fits_to_the_last_tensor() -> None:
    upstream, lerobot = ({group.name: group for group in inventory(checkpoint)} for checkpoint in dry_checkpoints(QWEN))
    for groups in (upstream, lerobot):
        everything = groups["all"]
        assert (everything.missing, everything.unexpected, everything.misshaped) == (0, 0, 0)
        assert groups["embed_tokens"].parameters == 151674 * 2560
    assert (upstream["all"].tensors, upstream["all"].parameters) == (732, 4_447_004_940)
    assert lerobot["all"].tensors == 733 and lerobot["lm_head"].tensors == 1
