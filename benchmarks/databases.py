"""Fresh databases for the runs: copies of a template, so that what a run finds in them is made once."""

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

__all__ = ["Databases"]

_SYNCHRONOUS = {"aiosqlite": "pysqlite", "asyncpg": "psycopg"}


class Databases:
    """Where one worker's databases are: files in a temporary folder, or databases of a PostgreSQL server."""

    def __init__(self, url: str) -> None:
        self.url: URL = make_url(url)
        self.kind: str = self.url.get_backend_name()
        """"sqlite" or "postgresql"."""
        self.driver: str = self.url.get_driver_name()
        self.is_async: bool = self.driver in _SYNCHRONOUS
        self._names: set[str] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="sqlaudit-bench-")) if self.kind == "sqlite" else None

    def create(self, template: str | None = None) -> str:
        """Make a database, empty or a copy of *template*, and return its name."""
        name = f"sqlaudit_bench_{uuid.uuid4().hex[:16]}"
        self._names.add(name)
        if self._folder is None:
            self._administer(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}")
        elif template is not None:
            shutil.copyfile(self._folder / template, self._folder / name)
        return name

    def drop(self, name: str) -> None:
        """Remove a database that nobody uses any more."""
        self._names.discard(name)
        if self._folder is None:
            self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        else:
            for path in self._folder.glob(f"{name}*"):
                path.unlink()

    def drop_all(self) -> None:
        """Remove what this object has made."""
        for name in [*self._names]:
            self.drop(name)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def engine(self, name: str) -> Engine:
        """Return an engine of the synchronous driver, which prepares what the runs find."""
        url = self._url_of(name)
        driver = _SYNCHRONOUS.get(self.driver, self.driver)
        return create_engine(url.set(drivername=f"{self.kind}+{driver}"))

    def async_engine(self, name: str, **options: Any) -> AsyncEngine:
        """Return an engine of the asynchronous driver."""
        return create_async_engine(self._url_of(name), **options)

    def settle(self, name: str) -> None:
        """Let a template be at rest: no vacuum or checkpoint of what made it in anybody's measured time."""
        if self._folder is None:
            engine = self.engine(name).execution_options(isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text("VACUUM ANALYZE"))
                connection.execute(text("CHECKPOINT"))
            engine.dispose()

    def _url_of(self, name: str) -> URL:
        return self.url.set(database=name if self._folder is None else str(self._folder / name))

    def _administer(self, statement: str) -> None:
        engine = create_engine(self.url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()
