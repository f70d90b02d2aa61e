"""The Dockerfile names what exists. Nothing here builds it; hadolint reads it where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.cluster.manifests import CLUSTER

ROOT = CLUSTER.parent
FILE = CLUSTER / "Dockerfile"
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE)).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def commands(word: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.startswith(f"{word} ")]


def test_what_is_copied_exists_and_is_let_through() -> None:
    rules = [
        line for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert rules[0] == "*"
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for words in commands("COPY") if not words[0].startswith("--from") for source in words[:-1]}
    assert copied == let_through
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages < copied


def test_stages_and_arguments_exist() -> None:
    stages, arguments = set[str](), {"BUILDPLATFORM"}
    pairs = [words[0].partition("=") for words in commands("ARG")]
    values = {name: value for name, sign, value in pairs if sign}
    for line in LINES:
        word, _, rest = line.partition(" ")
        if word == "ARG":
            arguments.add(rest.partition("=")[0])
        for name in re.findall(r"\$\{(\w+)", line) if word in ("FROM", "COPY") else ():
            assert name in arguments, line
        if word == "FROM":
            stages.add(rest.partition(" AS ")[2])
        for stage in re.findall(r"--from=(\S+)", line):
            assert stage in stages
    assert {f"build-{device}" for device in ("cuda", "cpu")} <= stages
    assert values["DEVICE"] == "cuda" and f":{values['CUDA']}." in values["CUDA_IMAGE"]


def test_versions_are_those_of_the_project() -> None:
    text, makefile = FILE.read_text(), (ROOT / "Makefile").read_text()
    (torch,) = re.findall(r"^ARG TORCH=(.+)$", text, re.MULTILINE)
    assert f"TORCH ?= {torch}\n" in makefile
    (python,) = re.findall(r"^ARG PYTHON=(.+)$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]
    (extras,) = re.findall(r'"\.\[(.+?)\]"', text)
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys() - {"dev"}
    assert any(line.startswith("deepspeed") for line in PROJECT["project"]["dependencies"])


def test_operators_of_deepspeed_have_these_names() -> None:
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder
    from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder

    (words,) = [words for words in commands("ENV") if any(word.startswith("DS_BUILD") for word in words)]
    assert {f"{builder.BUILD_VAR}=1" for builder in (CPUAdamBuilder, FusedAdamBuilder)} <= set(words)


def test_the_last_stage_is_no_root_and_has_what_kuberay_and_ray_call() -> None:
    last = LINES[max(i for i, line in enumerate(LINES) if line.startswith("FROM ")) :]
    assert "USER 1000" in last and any("useradd --uid 1000" in line for line in last)
    installed = " ".join(line for line in last if "apt-get install" in line)
    assert {"bash", "rsync", "wget", "procps"} <= set(installed.split())
    assert any("/etc/profile.d/" in line for line in last)  # a login shell, as of `ray up`, forgets ENV PATH


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
