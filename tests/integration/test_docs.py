"""The programs in the pages of docs/ run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", sorted(each.name for each in DOCS.glob("*.md")))
def test_the_program_of_a_page_runs(page: str, tmp_path: Path) -> None:
    """The Python blocks of a page are one program that ends well, without warnings."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    program = tmp_path / "program.py"
    program.write_text("".join(blocks), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )

    assert blocks
    assert done.returncode == 0, done.stdout + done.stderr
