"""The pages that mkdocs makes from the code: the settings, from the configuration's dataclasses, and the Python API."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from robometer.configs import Config
from robometer.settings import settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("robometer", "pipelines")
CONFIGURATION, API = "reference/configuration.md", "reference/api"
RECIPES = ROOT / "robometer/configs/recipe"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the made pages to the navigation."""
    api: list[Any] = [f"{API}/index.md", *({name: page} for name, page in _api_pages())]
    config.nav = [*(config.nav or []), {"Reference": [{"Settings": CONFIGURATION}, {"Python": api}]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    files.append(File.generated(config, CONFIGURATION, content=configuration_page()))
    files.append(File.generated(config, f"{API}/index.md", content=_api_index()))
    for name, page in _api_pages():
        files.append(File.generated(config, page, content=_api_page(name)))
    return files


def configuration_page() -> str:
    """Every section of the configuration as a table of its keys, and every recipe."""
    head = """# Settings

Give any of these as `key=value` to a command, such as `train.steps=500`. A recipe (`recipe=NAME`) sets several at once;
what you give beside it wins. Lists look like `'evaluate.splits=[seen,held_out]'`; texts need no quotes of their own.

"""
    sections = (section(field.name, type(getattr(Config(), field.name))) for field in dataclasses.fields(Config))
    return head + "\n".join([*sections, "## Recipes\n", *map(_recipe, sorted(RECIPES.glob("*.yaml")))])


def section(name: str, kind: type) -> str:
    """One dataclass of settings as Markdown."""
    rows = [
        f"| `{one.key}` | {_type(one.hint)} | {_code(one.default)} | {one.meaning} |" for one in settings(name, kind)
    ]
    table = "\n".join(["| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows])
    return f"## {name}\n\n{inspect.getdoc(kind)}\n\n{table}\n"


def _type(hint: Any) -> str:
    if isinstance(hint, type) and not get_args(hint):
        return "text" if hint is str else hint.__name__
    if get_origin(hint) is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(hint) if choice != "")
    return str(hint).replace("str", "text").replace(" | ", " or ").replace("NoneType", "none").replace("None", "none")


def _code(value: object) -> str:
    if isinstance(value, list):
        return "`[" + ",".join(map(str, value)).replace("|", "\\|") + "]`"
    return "" if value == "" else f"`{str(value).lower() if isinstance(value, bool | None) else value}`"


def _recipe(path: Path) -> str:
    return f"### recipe={path.stem}\n\n```yaml\n{path.read_text().removeprefix('# @package _global_').strip()}\n```\n"


def _api_pages() -> list[tuple[str, str]]:
    """Name and page of each package that has modules."""
    folders = [ROOT / name for name in PACKAGES]
    packages = [folder for top in folders for folder in [top, *sorted(top.rglob("*"))] if _modules(folder)]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in packages]
    return [(name, f"{API}/{name}.md") for name in names]


def _modules(folder: Path) -> list[str]:
    """The modules of a package that say what they are, in the order of their names."""
    if not (folder / "__init__.py").is_file():
        return []
    own = sorted(path for path in folder.glob("*.py") if ast.get_docstring(ast.parse(path.read_text())))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in own]


def _api_index() -> str:
    """Every module with the first line of what it says of itself."""
    sections = []
    for package, _ in _api_pages():
        folder = ROOT / package.replace(".", "/")
        lines = [f"* [`{module}`][{module}]: {_first_line(module)}" for module in _modules(folder)]
        sections.append("\n".join([f"## {package}\n", *lines, ""]))
    return "# Python\n\n" + "\n".join(sections)


def _first_line(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")


def _api_page(package: str) -> str:
    after_the_guides = "---\nsearch: {boost: 0.3}\n---\n\n"
    modules = "\n".join(f"::: {module}\n" for module in _modules(ROOT / package.replace(".", "/")))
    return f"{after_the_guides}# {package}\n\n{modules}"
