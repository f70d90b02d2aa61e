"""Settings that are passed through to DeepSpeed: which are refused, and what the others become."""

from __future__ import annotations

import os

import pytest

from pipelines.training.deepspeed_settings import check_deepspeed, deepspeed_config, deepspeeds_own_estimate
from robometer.configs import ConfigError, from_dict, load, to_dict
from robometer.runs.provenance import HOW_IT_RUNS

ZERO = "train.deepspeed.zero_optimization"
OPTIMIZER = f"{ZERO}.offload_optimizer"
OFFLOAD = "train.offload=optimizer"


def test_what_is_passed_through_stands_beside_what_our_settings_decide() -> None:
    given = [
        "train.zero_stage=3",
        "train.offload=parameters",
        f"{ZERO}.overlap_comm=true",
        f"{ZERO}.sub_group_size=5e8",
    ]
    nvme = f"{ZERO}.offload_optimizer={{device: nvme, nvme_path: /scratch, pin_memory: true}}"
    config = load([*given, nvme, f"{ZERO}.stage3_prefetch_bucket_size=1000", "train.deepspeed.aio.queue_depth=16"])
    check_deepspeed(config)
    settings = deepspeed_config(config, 1)
    assert settings["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": False},
        "overlap_comm": True,
        "sub_group_size": 5e8,
        "stage3_prefetch_bucket_size": 1000,
    }
    assert settings["aio"] == {"queue_depth": 16}
    assert settings["gradient_clipping"] == config.train.max_grad_norm
    assert from_dict(to_dict(config)) == config
    assert "deepspeed" in HOW_IT_RUNS  # so that a run can be resumed with other ones


@pytest.mark.parametrize(("overrides", "message"), [
    ([f"{ZERO}.overlap_com=true"], r"^train\.deepspeed has no .*overlap_com\. Did you mean .*overlap_comm\?$"),
    (["train.deepspeed.zero_optimisation.overlap_comm=true"], r"Did you mean zero_optimization\?$"),
    (["train.deepspeed.moe=1"], r"has no moe\. It has aio, comms_logger, "),
    ([f"{ZERO}.stage=3"], r"zero_optimization\.stage is decided by train\.zero_stage\. Set that instead\.$"),
    (["train.deepspeed.bf16.enabled=true"], r"bf16 is decided by train\.precision\."),
    (["train.deepspeed.gradient_clipping=1"], r"gradient_clipping is decided by train\.max_grad_norm\."),
    (["train.deepspeed.train_batch_size=8"], r"train_batch_size is decided by train\.batch_size\."),
    (["train.deepspeed.optimizer.type=Adam"], r"optimizer is decided by train\.learning_rate and train\."),
    ([f"{ZERO}.compute_grad_norm=false"], r"compute_grad_norm is decided by train\.max_grad_norm\."),
    ([f"{ZERO}.cpu_offload=true"], r"cpu_offload is decided by train\.offload\."),
    ([f"{ZERO}.zenflow={{}}"], r"zenflow cannot be used: its steps come later"),
    ([f"{ZERO}.reduce_bucket_size=many"], r"size='many' cannot be used: Input should be a valid integer"),
    ([f"{ZERO}.reduce_bucket_size=0"], r"reduce_bucket_size=0 cannot be used: Input should be greater than 0\.$"),
    ([f"{ZERO}.reduce_bucket_size=auto"], r"reduce_bucket_size=auto means nothing"),
    ([f"{ZERO}.offload_param.device=nvme"], r"offload_param needs train\.offload=parameters\.$"),
    ([f"{OPTIMIZER}.ratioo=1", OFFLOAD], r"Did you mean zero_.*offload_optimizer\.ratio\?$"),
    ([f"{OPTIMIZER}.device=nvme", OFFLOAD], r"device=nvme needs train\.zero_stage=3\.$"),
    ([f"{OPTIMIZER}.device=nvme", OFFLOAD, "train.zero_stage=3"], r"needs .*nvme_path"),
    ([f"{OPTIMIZER}.device=none", OFFLOAD], r"contradicts train\.offload=optimizer\.$"),
    ([f"{OPTIMIZER}.ratio=0.5", OFFLOAD], r"zero_optimization cannot be used: .*Stage 3\.$"),
    (["train.deepspeed.aio.blocksize=1"], r"Did you mean aio\.block_size\?$"),
    ([f"{ZERO}=true"], r"^train\.deepspeed\.zero_optimization is a section\."),
])  # fmt: skip
def test_a_setting_that_deepspeed_lacks_or_we_decide_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_deepspeed(load(overrides))


def test_deepspeeds_own_estimate_is_for_sixteen_bit_weights_that_are_all_trained() -> None:
    before = os.environ.get("DS_ACCELERATOR")
    assert deepspeeds_own_estimate(load(["train.zero_stage=2"]), 1000, 10, 4)[0] == 2 * 1000 + 18 * 1000 // 4
    assert deepspeeds_own_estimate(load(["train.zero_stage=3"]), 1000, 10, 4)[0] == 4 * 10 + 18 * 1000 // 4
    assert deepspeeds_own_estimate(load(["train.zero_stage=3", "train.offload=parameters"]), 1000, 10, 4)[0] == 4 * 10
    assert os.environ.get("DS_ACCELERATOR") == before
