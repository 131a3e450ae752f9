"""The Python code of docs/*.md runs as it stands there, every page can be found, and what must be listed is."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

import sqlaudit.exceptions
from built_docs import exported_names, modules_of_the_reference
from databases import postgresql_database
from integration.test_readme import blocks_of, programs_of
from unit.test_exports import PUBLIC_MODULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
BLOCKS = {page: blocks_of(page.read_text(encoding="utf-8")) for page in PAGES}
OF_SQLALCHEMY_20 = DOCS / "howto-frameworks.md"
"""Its programs run where the frameworks can be: see tests/sqlalchemy20."""
PROGRAMS = {
    f"{page.name}: {heading}": program
    for page, blocks in BLOCKS.items()
    if page != OF_SQLALCHEMY_20
    for heading, program in programs_of(blocks).items()
}

INSIDE = ("sqlaudit.capture", "sqlaudit.codec.", "sqlaudit.recorder", "sqlaudit.tracking")
"""How the names of modules begin that only other modules use, and of which the reference promises nothing."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_code_of_the_documentation_runs(name: str, tmp_path: Path) -> None:
    """The blocks under a heading of a page are a program that ends well, without warnings."""
    run(PROGRAMS[name], tmp_path)


def test_the_quickstart_runs_on_postgresql(postgresql_server: URL, tmp_path: Path) -> None:
    """The quickstart says that another URL is all there is to it."""
    programs = [name for name in PROGRAMS if name.startswith("quickstart.md: ")]

    assert programs
    for name in programs:
        with postgresql_database(postgresql_server) as database:
            run(PROGRAMS[name], tmp_path, DATABASE_URL=database.async_url)


def test_every_fragment_compiles() -> None:
    """A fragment is Python, as it could stand in a coroutine."""
    for page, blocks in BLOCKS.items():
        for block in blocks:
            code = "\n" * (block.first_line - 1) + block.code
            compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_page_is_in_the_navigation_once() -> None:
    """What is in docs/ can be found from every page, and nothing is promised that isn't there."""
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]

    assert sorted(pages_in(navigation)) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_every_public_module_is_in_the_reference() -> None:
    """The reference shows all that is public, and the homes of all the names that the package exports."""
    wanted = [module for module in PUBLIC_MODULES if exported_names(module) and not module.startswith(INSIDE)]

    assert sorted(modules_of_the_reference()) == wanted
    described = {name.rpartition(".")[2] for module in wanted for name in exported_names(module)}
    assert set(sqlaudit.__all__) <= described


@pytest.mark.parametrize("name", sqlaudit.exceptions.__all__)
def test_every_error_has_a_remedy(name: str) -> None:
    """The page of errors has a heading for each, and says below it when it is raised and what to do."""
    page = (DOCS / "errors.md").read_text(encoding="utf-8")

    [said] = re.findall(rf"^##+ {name}\n\n(.+?)(?=\n#|\Z)", page, re.MULTILINE | re.DOTALL)

    assert "**Do:**" in said


def test_the_laws_name_tests_that_exist() -> None:
    """Every test that the page of guarantees names is one, in the file that it names."""
    page = (DOCS / "guarantees.md").read_text(encoding="utf-8")

    files = set(re.findall(r"`(tests/\S+?\.py)", page))

    assert len(files) > 10
    assert [file for file in files if not (ROOT / file).is_file()] == []
    named: list[tuple[str, str]] = re.findall(r"`(tests/\S+?\.py)::(\w+)`", page)
    assert [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()] == []


def pages_in(navigation: Any) -> Iterator[str]:
    """Yield the pages of *navigation*, a part of zensical.toml's nav."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for each in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from pages_in(each)


def run(program: str, folder: Path, **environment: str) -> None:
    """Run *program* as a process of its own in *folder*, and make sure that it ends well."""
    page = folder / "page.py"
    page.write_text(program, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", page.name],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
