"""How the examples are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed_by(program: Path, folder: Path, *, times: bool = True, **environment: str) -> list[str]:
    """Run *program* without warnings in an empty folder; return its lines, with each time as ``(time)`` if *times*."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    # MariaDB lets every client know that it has no names for primary keys.
    errors = [line for line in done.stderr.splitlines() if not line.endswith("ignored for PRIMARY key.")]
    assert (done.returncode, errors) == (0, []), done.stdout + done.stderr
    assert not list(folder.iterdir()), "It leaves files behind."
    output = done.stdout
    if times:
        output = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+\+00:00| EES?T)", "(time)", output)
    return output.splitlines()
