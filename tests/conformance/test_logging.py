"""What the log is told: ids, labels and counts, and no value of anybody's row."""

import logging
import uuid
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conformance_setup import Maker
from observing import stored_trail
from sqlaudit import (
    Capture,
    Change,
    SQLAuditConfig,
    _delivery,
    audit_context,
    create_audit_tables_sync,
    drain_changes,
    on_change,
    register_hooks,
    set_config,
    track_table,
)
from sqlaudit.exceptions import UncapturedStatementWarning


class Base(DeclarativeBase):
    pass


@track_table()
class Patient(Base):
    __tablename__ = "logged_patient"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(unique=True)


@track_table(capture=Capture.TRIGGERS)
class Watched(Base):
    __tablename__ = "logged_watched"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test hears what another one has subscribed to."""
    monkeypatch.setattr(_delivery, "_subscribers", ())


@pytest.fixture(name="hooked")
async def _hooked(engine: AsyncEngine, maker: Maker, caplog: pytest.LogCaptureFixture) -> Maker:
    set_config(SQLAuditConfig(session_factory=maker, warn_uncaptured=True))
    register_hooks(maker)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(create_audit_tables_sync)
    caplog.set_level(logging.DEBUG, "sqlaudit")
    return maker


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what sqlaudit has logged."""
    return [record for record in caplog.records if record.name.split(".")[0] == "sqlaudit"]


async def test_each_writing_is_logged_with_ids(
    hooked: Maker, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG: how many changes a flush or statement has recorded, and of which transaction, as `extra`, too."""
    async with hooked() as session:
        session.add_all([Patient(id=1, name="a"), Patient(id=2, name="b")])
        await session.flush()
        await session.execute(delete(Patient).where(Patient.id == 1))
        await session.commit()

    (transaction,) = {uuid.UUID(change.transaction_id) for change in await stored_trail(engine)}
    assert [
        (record.name, record.levelno, vars(record)["transaction_id"], vars(record)["changes"])
        for record in logged(caplog)
    ] == [("sqlaudit.recorder", logging.DEBUG, str(transaction), count) for count in (2, 1)]
    assert logged(caplog)[0].getMessage() == f"Recorded changes of transaction {transaction}: 2."


async def test_a_statement_that_passes_without_a_trail_is_logged(
    hooked: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """With warn_uncaptured, each such statement is logged, not its first place alone; what is refused is raised."""
    async with hooked() as session:
        for _ in range(2):
            with pytest.warns(UncapturedStatementWarning):
                await session.execute(text("UPDATE logged_patient SET name = 'x'"))

    assert [(record.name, record.levelno, vars(record)["table"]) for record in logged(caplog)] == [
        ("sqlaudit.capture", logging.WARNING, "logged_patient")
    ] * 2


async def test_no_value_is_ever_logged(hooked: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens, neither messages, arguments, `extra` nor tracebacks have a value of a row, actor or reason."""
    secrets: list[str] = []

    def secret() -> str:
        secrets.append(f"secret-{uuid.uuid4().hex}")
        return secrets[-1]

    @on_change()
    async def failing(change: Change) -> None:
        raise ValueError(change.fields, change.changed_by, change.reason)

    @on_change(Patient)
    def failing_with_a_cause(change: Change) -> None:
        try:
            raise KeyError(repr(change))
        except KeyError as error:
            raise RuntimeError(repr(change)) from error

    async with hooked() as session:
        with audit_context(user_id=secret(), reason=secret(), fact=secret()):
            session.add_all([Patient(id=1, name=secret()), Watched(id=1, name=secret())])
            await session.commit()
            await session.execute(insert(Patient), [{"id": 2, "name": secret()}])
            await session.execute(update(Watched).values(name=secret()))
            with pytest.warns(UncapturedStatementWarning):
                await session.execute(text(f"UPDATE logged_patient SET name = '{secret()}' WHERE id = 1"))
            await session.commit()
            session.add(Patient(id=3, name=secret()))
            await session.flush()
            session.add(Patient(id=4, name=secrets[-1]))
            with pytest.raises(IntegrityError):
                await session.flush()
            await session.rollback()
            session.add(Patient(id=5, name=secret()))
            await session.flush()
            await session.execute(text("ALTER TABLE sqlaudit_change RENAME TO elsewhere"))
            await session.commit()
    await drain_changes()

    told: list[Any] = [(record.getMessage(), vars(record), caplog.handler.format(record)) for record in logged(caplog)]
    assert {record.name for record in logged(caplog)} == {"sqlaudit.recorder", "sqlaudit.capture", "sqlaudit.events"}
    assert {vars(record).get("error") for record in logged(caplog)} >= {"ValueError", "RuntimeError"}
    assert len(secrets) == 10
    assert [each for each in secrets if each in repr(told)] == []
