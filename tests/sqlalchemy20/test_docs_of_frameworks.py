"""The Python code of docs/howto-frameworks.md runs as it stands there."""

from pathlib import Path

import pytest

from integration.test_docs import BLOCKS, OF_SQLALCHEMY_20, run
from integration.test_readme import programs_of

PROGRAMS = programs_of(BLOCKS[OF_SQLALCHEMY_20])


@pytest.mark.parametrize("heading", PROGRAMS)
def test_the_code_of_the_page_runs(heading: str, tmp_path: Path) -> None:
    """The blocks under a heading are a program that ends well, without warnings."""
    run(PROGRAMS[heading], tmp_path)
