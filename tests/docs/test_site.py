"""The docs site: it builds strictly and without a network, asks no foreign host, and is true to the code."""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from jobs.cli import COMMAND
from jobs.grammar import Command
from robometer.configs import Config
from robometer.configs.loading import to_dict
from robometer.settings import settings
from tests.jobs.test_grammar import every_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error and no way out of this process."""
    folder = tmp_path_factory.mktemp("site")

    def refuse(*_: object) -> None:
        raise AssertionError("building the docs asks the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.chdir(ROOT)
        build(load_config("mkdocs.yml", site_dir=str(folder), strict=True))
    return folder


def loaded(page: str) -> Iterator[str]:
    """What a browser fetches by itself when it opens a page."""
    found: list[str] = []

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag in ("script", "img", "iframe", "source", "video", "object", "embed"):
                found.extend(value for value in (given.get("src"), given.get("srcset"), given.get("data")) if value)
            if tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
                found.append(given.get("href") or "")

    Loads().feed(page)
    return iter(found + re.findall(r"url\((?!data:)([^)]+)\)|@import ([^;]+)", page))


def test_no_page_loads_anything_from_a_foreign_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert [url for url in loaded(page.read_text()) if "//" in str(url)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text()), sheet


def test_every_page_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {page.with_suffix(".html").name for page in (ROOT / "docs").glob("*.md")} <= places


def test_the_reference_lists_every_setting_and_every_recipe(site: Path) -> None:
    page = (site / "reference/configuration.html").read_text()

    def keys(values: dict[str, object], prefix: str) -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                yield from keys(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    listed = set(re.findall(r"<tr>\s*<td><code>([a-z_]+(?:\.\w+)+)</code></td>", page))
    assert listed == set(keys(to_dict(Config()), ""))
    for recipe in (ROOT / "robometer/configs/recipe").glob("*.yaml"):
        assert f"recipe={recipe.stem}</h3>" in re.sub(r"<a class=.headerlink.*?</a>", "", page)


def test_every_setting_says_what_it_means() -> None:
    sections = {name: type(section) for name, section in vars(Config()).items()}
    silent = [one.key for name, kind in sections.items() for one in settings(name, kind) if not one.meaning]
    assert silent == []


def test_the_reference_says_what_a_setting_means(site: Path) -> None:
    page = (site / "reference/configuration.html").read_text()
    (row,) = re.findall(r"<tr>\s*<td><code>train\.batch_size</code></td>.*?</tr>", page, re.DOTALL)
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]
    assert cells == ["train.batch_size", "int", "32", "Samples per optimizer step over all workers. At least 1."]


def test_the_reference_shows_shapes_and_errors_of_the_python_api(site: Path) -> None:
    page = (site / "reference/api/robometer.html").read_text()
    assert 'id="robometer.scoring.Clip"' in page
    assert "uint8 [T, H, W, 3] RGB" in page and "the frames have another type or shape" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:robometer|pipelines|jobs|tests|benchmarks|cluster|docs|\.ci)/[a-z0-9_./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link and "reference/" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_fit_the_grammar(page: Path) -> None:
    """Some pages have their commands run as well (test_pages.py); of all others at least names and values are right."""
    for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.search(r"(?:^|PYTHONPATH=. |-- )(?:robometer |python -m jobs\.)(.*)", line):
                read(shlex.split(command[1], comments=True))


def read(words: list[str]) -> None:
    """Check a command line against the grammar and the settings."""
    command = COMMAND.get_command(click.Context(COMMAND), words[0])
    assert command, words
    if isinstance(command, click.Group):
        command, words = command.commands[words[1]], words[1:]
    assert isinstance(command, Command)
    command.read(words[1:])


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_examples_of_help_fit_the_grammar(name: str, command: Command) -> None:
    lines = command.examples.replace("\\\n", " ").strip().splitlines()
    assert lines
    for line in lines:
        read(shlex.split(re.sub(r"^.*(?:robometer |jobs\.)", "", line, count=1), comments=True))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images").iterdir())
    assert {picture.name for picture in pictures} == {"corpus.png", "page.webp", "report.png"}
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


def test_what_github_reads_is_valid_yaml() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert any(step.get("run") == "bash .ci/run" for step in workflow["jobs"]["test"]["steps"])
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        values = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= values.keys(), form
