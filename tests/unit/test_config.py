"""The configuration, and the one slot that holds the default of it."""

import dataclasses
import datetime as dt
import zoneinfo
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Integer, create_engine, literal
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column, relationship, sessionmaker

from sqlaudit import SQLAuditConfig, get_config, has_config, set_config
from sqlaudit.config import clear_config, user_id_column
from sqlaudit.exceptions import ConfigurationError


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column(primary_key=True)
    login: Mapped[str] = mapped_column("login_name")
    kind: Mapped[str]
    next_id: Mapped[int] = column_property(literal(1))
    manager_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
    manager: Mapped["User | None"] = relationship(remote_side="User.id")

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "user"}


class Administrator(User):
    __mapper_args__ = {"polymorphic_identity": "administrator"}


class Membership(Base):
    __tablename__ = "membership"

    user_id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(primary_key=True)


def get_db() -> Iterator[Session]:
    """Yield a session, as FastAPI's dependencies do."""
    with Session() as session:
        yield session


async def get_async_db() -> AsyncIterator[AsyncSession]:
    """Yield a session, as FastAPI's asynchronous dependencies do."""
    async with AsyncSession() as session:
        yield session


async def make_session() -> AsyncSession:
    """Return a session that nobody would close."""
    return AsyncSession()


# --- the slot --------------------------------------------------------------------------------------------------------


def test_at_first_there_is_no_configuration() -> None:
    """Before one is set, there is none, and asking for it is an error that says what to call."""
    there_is_one = has_config()

    assert not there_is_one
    with pytest.raises(ConfigurationError, match=r"call set_config\(SQLAuditConfig\(\.\.\.\)\), or give config=\.$"):
        get_config()


def test_what_is_set_is_what_is_got() -> None:
    """The configuration that was set is the default, the very object."""
    config = SQLAuditConfig()

    set_config(config)

    assert has_config()
    assert get_config() is config


def test_setting_again_replaces_the_default() -> None:
    """There is one slot: the last configuration is the one that counts."""
    set_config(SQLAuditConfig(time_zone="Europe/Kyiv"))
    config = SQLAuditConfig()

    set_config(config)

    assert get_config() is config


def test_clearing_forgets_the_default() -> None:
    """After clearing there is no configuration."""
    set_config(SQLAuditConfig())

    clear_config()

    assert not has_config()


@pytest.mark.parametrize("config", [None, {"time_zone": "UTC"}, SQLAuditConfig], ids=["None", "dict", "the class"])
def test_something_else_is_no_configuration(config: Any) -> None:
    """Only a SQLAuditConfig is accepted, and the slot stays as it was."""
    with pytest.raises(ConfigurationError, match=r"expected a SQLAuditConfig\.$"):
        set_config(config)

    assert not has_config()


# --- the value -------------------------------------------------------------------------------------------------------


def test_every_argument_is_optional() -> None:
    """A configuration without arguments attributes to whom the context names, in UTC."""
    config = SQLAuditConfig()

    assert config.session_factory is None
    assert config.user_model is None
    assert config.get_user_id_callback is None
    assert not config.require_user
    assert config.zone == zoneinfo.ZoneInfo("UTC")


def test_a_configuration_cannot_be_changed() -> None:
    """A configuration is a value: no assignment, and equal to another of the same arguments."""
    config = SQLAuditConfig(time_zone="Europe/Kyiv")

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.time_zone = "UTC"  # type: ignore[misc]
    assert config == SQLAuditConfig(time_zone="Europe/Kyiv")
    assert config != SQLAuditConfig()


def test_a_copy_with_another_zone_has_another_zone() -> None:
    """dataclasses.replace() makes a configuration that is checked and resolved anew."""
    config = SQLAuditConfig(require_user=True)

    copy = dataclasses.replace(config, time_zone="Europe/Kyiv")

    assert copy.zone == zoneinfo.ZoneInfo("Europe/Kyiv")
    assert copy.require_user


def test_an_unknown_argument_is_refused() -> None:
    """A misspelt argument is an error, not silence."""
    arguments: dict[str, Any] = {"timezone": "UTC"}

    with pytest.raises(TypeError, match="timezone"):
        SQLAuditConfig(**arguments)


@pytest.mark.parametrize("value", ["false", 1, None])
def test_require_user_is_a_truth(value: Any) -> None:
    """A require_user that is neither True nor False is refused, as it may mean either."""
    with pytest.raises(ConfigurationError, match="require_user"):
        SQLAuditConfig(require_user=value)


# --- session factories -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "factory",
    [sessionmaker(), async_sessionmaker(), get_db, get_async_db, Session],
    ids=["sessionmaker", "async_sessionmaker", "generator", "async generator", "class"],
)
def test_whatever_gives_a_session_is_a_session_factory(factory: Callable[[], Any]) -> None:
    """Each kind of session factory is accepted without being called."""
    config = SQLAuditConfig(session_factory=factory)

    assert config.session_factory is factory


@pytest.mark.parametrize(
    "factory",
    [Session(), AsyncSession(), create_engine("sqlite://"), get_db(), "sessionmaker"],
    ids=["session", "async session", "engine", "generator", "str"],
)
def test_what_is_no_factory_is_refused(factory: Any) -> None:
    """A session, an engine or a generator, where the function that makes them is meant, is refused at once."""
    with pytest.raises(ConfigurationError) as caught:
        SQLAuditConfig(session_factory=factory)

    assert str(caught.value) == (
        f"session_factory is a {type(factory).__name__}; expected an async_sessionmaker, a sessionmaker, or a "
        f"(async) generator function that yields a session."
    )


def test_a_coroutine_function_is_refused_as_a_session_factory() -> None:
    """A coroutine function gives a session that nobody closes; the error names what to make of it."""
    with pytest.raises(ConfigurationError, match="make it an async generator function that yields the session"):
        SQLAuditConfig(session_factory=make_session)


# --- the callback ----------------------------------------------------------------------------------------------------


async def ask_somebody() -> int:
    """Return the id of a user, in a while."""
    return 1


@pytest.mark.parametrize("callback", [lambda: 1, ask_somebody], ids=["function", "coroutine function"])
def test_a_callback_is_a_function(callback: Any) -> None:
    """The callback may be synchronous or not, and isn't called when the configuration is made."""
    config = SQLAuditConfig(get_user_id_callback=callback)

    assert config.get_user_id_callback is callback


def test_an_id_is_no_callback() -> None:
    """The user's id where the function that returns it is meant is refused."""
    callback: Any = 42

    with pytest.raises(ConfigurationError, match="get_user_id_callback is a int; expected a function without"):
        SQLAuditConfig(get_user_id_callback=callback)


# --- the user model --------------------------------------------------------------------------------------------------


def test_without_a_user_model_there_is_no_column() -> None:
    """Nobody knows the type of the users' ids without a model."""
    column = user_id_column(SQLAuditConfig())

    assert column is None


def test_a_user_is_known_by_the_primary_key() -> None:
    """Without a field, the id of a user is the model's primary key."""
    column = user_id_column(SQLAuditConfig(user_model=User))

    assert column is User.__table__.c.id
    assert isinstance(column.type, Integer)


@pytest.mark.parametrize("model", [User, Administrator])
def test_a_user_is_known_by_the_field_that_was_named(model: type[Any]) -> None:
    """The field is an attribute's name, an inherited one's too, whatever its column is called."""
    column = user_id_column(SQLAuditConfig(user_model=model, user_model_user_id_field="login"))

    assert column is User.__table__.c.login_name


@pytest.mark.parametrize("model", [int, "User", User(), Base], ids=["class", "name", "instance", "base"])
def test_a_user_model_is_a_mapped_class(model: Any) -> None:
    """Anything but a mapped class is refused."""
    with pytest.raises(ConfigurationError, match=r"expected a mapped class\.$"):
        SQLAuditConfig(user_model=model)


@pytest.mark.parametrize("model", [User, Administrator])
def test_a_misspelt_user_field_is_refused_with_the_fields_there_are(model: type[Any]) -> None:
    """The error says what may have been meant, and lists the model's fields, the inherited ones too."""
    with pytest.raises(ConfigurationError, match=r"'logn', which \w+ doesn't have \(did you mean login\?\); .+login"):
        SQLAuditConfig(user_model=model, user_model_user_id_field="logn")


def test_the_name_of_a_column_is_no_field() -> None:
    """Fields are attribute names, not column names."""
    with pytest.raises(ConfigurationError, match="login_name"):
        SQLAuditConfig(user_model=User, user_model_user_id_field="login_name")


@pytest.mark.parametrize("field", ["manager", "next_id"])
def test_a_user_field_that_is_no_column_is_refused(field: str) -> None:
    """A relationship or an SQL expression can't identify a user."""
    with pytest.raises(ConfigurationError, match=field):
        SQLAuditConfig(user_model=User, user_model_user_id_field=field)


def test_a_user_field_without_a_model_is_refused() -> None:
    """A field needs the model that it is of."""
    with pytest.raises(ConfigurationError, match=r"without user_model; give both\.$"):
        SQLAuditConfig(user_model_user_id_field="id")


def test_a_user_field_is_a_name() -> None:
    """An attribute where its name is meant is refused."""
    field: Any = User.id

    with pytest.raises(ConfigurationError, match=r"expected a field's name\.$"):
        SQLAuditConfig(user_model=User, user_model_user_id_field=field)


def test_a_user_model_with_two_keys_needs_a_field() -> None:
    """Where the primary key has several columns, the field is named by the user."""
    with pytest.raises(ConfigurationError, match="identifies a user with user_model_user_id_field"):
        SQLAuditConfig(user_model=Membership)

    column = user_id_column(SQLAuditConfig(user_model=Membership, user_model_user_id_field="user_id"))
    assert column is Membership.__table__.c.user_id


# --- the time zone ---------------------------------------------------------------------------------------------------


def test_a_zone_is_found_by_its_name() -> None:
    """An IANA name is resolved when the configuration is made."""
    config = SQLAuditConfig(time_zone="Europe/Kyiv")

    assert config.zone == zoneinfo.ZoneInfo("Europe/Kyiv")


def test_a_tzinfo_is_a_zone() -> None:
    """A tzinfo is taken as it is."""
    zone = dt.timezone(dt.timedelta(hours=5, minutes=45))

    config = SQLAuditConfig(time_zone=zone)

    assert config.zone is zone


@pytest.mark.parametrize("name", ["Europe/Kiyv", "", "Europe", "../etc/passwd", "/etc/passwd", "\x00"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    """A zone that this system doesn't know is refused, with an example and what to install."""
    with pytest.raises(ConfigurationError) as caught:
        SQLAuditConfig(time_zone=name)

    assert str(caught.value).startswith(f"time_zone is {name!r}, which this system doesn't know;")
    assert "pip install tzdata" in str(caught.value)


@pytest.mark.parametrize("zone", [3, None, dt.timedelta(hours=3)], ids=["int", "None", "timedelta"])
def test_what_is_no_zone_is_refused(zone: Any) -> None:
    """An offset in hours, say, is no time zone."""
    with pytest.raises(ConfigurationError, match=rf"time_zone is a {type(zone).__name__}; expected an IANA name"):
        SQLAuditConfig(time_zone=zone)
