"""What docs/howto-alembic.md says, done step by step, is what happens."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from databases import Database
from integration.test_docs import BLOCKS, DOCS
from observing import read_trail


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_page_leads_to_a_renamed_table_with_one_history(database: Database, tmp_path: Path) -> None:
    """Models, env.py, first migration; then the renamed ones, with their migration, there and back."""
    models, env, renamed, rename = (block.code for block in BLOCKS[DOCS / "howto-alembic.md"])
    package = tmp_path / "myapp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(models)
    alembic(tmp_path, "init", "-t", "async", "migrations")
    replace(tmp_path / "migrations" / "env.py", "target_metadata = None\n", env)
    replace(tmp_path / "alembic.ini", "driver://user:pass@localhost/dbname", database.async_url)
    alembic(tmp_path, "revision", "--autogenerate")
    alembic(tmp_path, "upgrade", "head")
    alembic(tmp_path, "check")
    engine = create_engine(database.async_url.replace("+aiosqlite", ""))
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO client (id, fullname) VALUES (1, ' Jane')"))

    (package / "models.py").write_text(renamed)
    alembic(tmp_path, "revision", "--rev-id", "renames")
    [script] = (tmp_path / "migrations" / "versions").glob("renames_*.py")
    script.write_text(script.read_text().partition("def upgrade")[0] + rename)
    alembic(tmp_path, "upgrade", "head")
    alembic(tmp_path, "check")
    with engine.connect() as connection:
        *_, insert, update = read_trail(connection)
    engine.dispose()

    assert (insert.what, insert.new_values) == (("insert", "Client", "1"), {"id": 1, "fullname": " Jane"})
    assert (update.what, update.new_values) == (("update", "Customer", "1"), {"name": "Jane"})
    for way in ("downgrade", "-1"), ("upgrade", "head"), ("downgrade", "base"):
        alembic(tmp_path, *way)


def alembic(folder: Path, *arguments: str) -> None:
    """Run Alembic's command in *folder*."""
    command = [sys.executable, "-m", "alembic", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def replace(file: Path, old: str, new: str) -> None:
    """Write *new* where *old* stands in *file*."""
    before = file.read_text()
    assert old in before
    file.write_text(before.replace(old, new))
