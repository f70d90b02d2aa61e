"""What the wheel holds: every file that the packages read or that says they are typed."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("robometer", "pipelines", "jobs")


def test_every_file_of_the_packages_travels_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = ROOT / package
        travelling = {p for pattern in (*patterns["*"], *patterns.get(package, ())) for p in folder.glob(pattern)}
        there = {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".py"}
        assert there == {p for p in travelling if p.is_file()}
        assert folder / "py.typed" in there


def test_every_folder_with_code_is_a_package() -> None:
    """Setuptools finds packages only; a folder of modules without `__init__.py` would stay behind."""
    for package in PACKAGES:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
