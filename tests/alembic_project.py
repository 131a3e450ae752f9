"""A project with Alembic's files, on the async ``env.py`` that ``alembic init -t async`` writes, and its migrations."""

import io
import re
from pathlib import Path
from typing import Any, Protocol

from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData


class Models(Protocol):
    """The models that ``env.py`` compares with; SQLAlchemy alone doesn't keep them alive."""

    @property
    def metadata(self) -> MetaData: ...


class Project:
    """A folder with Alembic's files, as its async template makes them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.output = io.StringIO()
        self.config = Config(str(folder / "alembic.ini"), output_buffer=self.output, stdout=io.StringIO())
        command.init(self.config, str(folder / "migrations"), template="async")
        self.url = url
        self.config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
        self.env = folder / "migrations" / "env.py"
        self.folder = folder / "migrations" / "versions"
        self.change_env(
            "target_metadata = None",
            "import sqlaudit.integrations.alembic\n\n"
            'target_metadata = [config.attributes["models"].metadata, sqlaudit.audit_metadata]',
        )
        self.change_env("if config.config_file_name is not None:\n    fileConfig(config.config_file_name)\n", "")
        self.options("compare_type=True, compare_server_default=True")

    def change_env(self, old: str, new: str) -> None:
        """Write *new* where *old* stands in ``env.py``."""
        before = self.env.read_text()
        assert old in before
        self.env.write_text(before.replace(old, new))

    def options(self, options: str) -> None:
        """Give ``context.configure()`` more arguments."""
        self.change_env("target_metadata=target_metadata", f"target_metadata=target_metadata, {options}")

    def use(self, models: Models) -> None:
        """Let ``env.py`` compare with *models*."""
        self.config.attributes["models"] = models

    def revise(self, *, autogenerate: bool = True) -> "Migration":
        """Make a new revision."""
        script: Any = command.revision(self.config, message="a change", autogenerate=autogenerate)
        return Migration(Path(script.path))

    def upgrade(self, to: str = "head", *, sql: bool = False) -> str:
        """Run migrations; return the SQL that they would send, with *sql*."""
        self.output.truncate(0)
        command.upgrade(self.config, to, sql=sql)
        return self.output.getvalue()

    def downgrade(self, to: str) -> None:
        """Run migrations backwards."""
        command.downgrade(self.config, to)

    def check(self) -> None:
        """Fail if the database differs from the models."""
        command.check(self.config)


class Migration:
    """A script of the folder ``versions``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def up(self) -> list[str]:
        """The statements of its upgrade."""
        return self._body("upgrade")

    @property
    def down(self) -> list[str]:
        """The statements of its downgrade."""
        return self._body("downgrade")

    def write(self, up: str) -> None:
        """Let *up* be the upgrade."""
        script = self.path.read_text()
        self.path.write_text(re.sub(r"(def upgrade.*?\n)    pass\n", rf"\g<1>{up}", script, count=1, flags=re.DOTALL))

    def _body(self, function: str) -> list[str]:
        [body] = re.findall(rf'def {function}\(\).*?"""\n(.*?)(?:\n\n\n|\Z)', self.path.read_text(), re.DOTALL)
        lines = (line.strip() for line in body.splitlines())
        return [line for line in lines if line and not line.startswith("#") and line != "pass"]
