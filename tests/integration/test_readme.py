"""
The Python code of README.md runs as it stands there.

The blocks under one heading are one program, run as a process of its own. A
block after ``<!-- fragment -->`` isn't part of it, and only has to compile.
"""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    heading: str
    first_line: int
    code: str
    is_fragment: bool


def blocks_of(markdown: str) -> list[Block]:
    """Return the Python blocks of *markdown*, in order."""
    blocks: list[Block] = []
    heading, language, first_line, code, is_fragment = "", None, 0, list[str](), False
    for number, line in enumerate(markdown.splitlines(), start=1):
        if language is None and (fence := re.fullmatch(r"```(\w*).*", line)):
            language, first_line, code = fence[1], number + 1, []
        elif language is not None and line.rstrip() == "```":
            if language == "python":
                text = "".join(f"{each}\n" for each in code)
                blocks.append(Block(heading=heading, first_line=first_line, code=text, is_fragment=is_fragment))
            language, is_fragment = None, False
        elif language is not None:
            code.append(line)
        elif line.startswith("#"):
            heading, is_fragment = line.lstrip("#").strip(), False
        elif line.strip():
            is_fragment = line.strip() == "<!-- fragment -->"
    assert language is None, f"The block from line {first_line} has no end."
    return blocks


def programs_of(blocks: Iterable[Block]) -> dict[str, str]:
    """Return the programs of *blocks* by heading; their line numbers are those of the page."""
    programs: dict[str, str] = {}
    complete = [block for block in blocks if not block.is_fragment]
    for heading, together in itertools.groupby(complete, key=lambda block: block.heading):
        program = ""
        for block in together:
            program += "\n" * (block.first_line - 1 - program.count("\n")) + block.code
        programs[heading] = program
    return programs


BLOCKS = blocks_of(README.read_text(encoding="utf-8"))
PROGRAMS = programs_of(BLOCKS)


def test_the_readme_has_code_that_runs() -> None:
    """There is at least one block that isn't a fragment, and no two headings share a name."""
    headings = [heading for heading, _ in itertools.groupby(block.heading for block in BLOCKS if not block.is_fragment)]

    assert headings
    assert len(headings) == len(PROGRAMS)


@pytest.mark.parametrize("heading", PROGRAMS)
def test_the_code_under_each_heading_runs(heading: str, tmp_path: Path) -> None:
    """The blocks under a heading are a program that ends well, without warnings."""
    program = tmp_path / "README.md.py"
    program.write_text(PROGRAMS[heading], encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_fragment_compiles() -> None:
    """A fragment is Python, as it could stand in a coroutine."""
    fragments = [block for block in BLOCKS if block.is_fragment]

    for block in fragments:
        compile("\n" * (block.first_line - 1) + block.code, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_blocks_are_told_apart() -> None:
    """A comment is no heading, other languages are none of ours, and a fragment is marked right before its block."""
    page = """\
# One
```python
# a comment
a = 1
```
```bash
# not ours
```
<!-- fragment -->

```python
await a
```
```python
b = a
```
## Two
<!-- fragment -->
but words between them
```python
c = 3
```
"""

    blocks = blocks_of(page)
    programs = programs_of(blocks)

    assert [(block.heading, block.first_line, block.code, block.is_fragment) for block in blocks] == [
        ("One", 3, "# a comment\na = 1\n", False),
        ("One", 12, "await a\n", True),
        ("One", 15, "b = a\n", False),
        ("Two", 21, "c = 3\n", False),
    ]
    assert {heading: code.split("\n") for heading, code in programs.items()} == {
        "One": ["", "", "# a comment", "a = 1", *[""] * 10, "b = a", ""],
        "Two": [*[""] * 20, "c = 3", ""],
    }


def test_ci_runs_the_command_of_the_readme() -> None:
    """What a newcomer is told to run is what CI runs."""
    ci = (README.parent / ".ci" / "run").read_text()

    commands = [line for line in README.read_text().splitlines() if line.endswith("tox run")]

    assert len(commands) == 1
    assert commands[0] in ci
