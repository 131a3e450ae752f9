"""The Python code of docs/*.md runs as it stands there."""

import subprocess
import sys
from pathlib import Path

import pytest

from integration.test_readme import blocks_of, programs_of

PROGRAMS = {
    f"{page.name}: {heading}": program
    for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    for heading, program in programs_of(blocks_of(page.read_text(encoding="utf-8"))).items()
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_code_of_the_documentation_runs(name: str, tmp_path: Path) -> None:
    """The blocks under a heading of a page are a program that ends well, without warnings."""
    program = tmp_path / "page.py"
    program.write_text(PROGRAMS[name], encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
