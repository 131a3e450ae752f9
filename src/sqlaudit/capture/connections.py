"""Which connections a change can be recorded on."""

from sqlalchemy import Connection

from sqlaudit.exceptions import CaptureError

__all__ = ["refuse_autocommit"]


def refuse_autocommit(connection: Connection) -> None:
    """
    Refuse a connection on which a change and its trail wouldn't be committed together.

    Raises:
        CaptureError: its isolation level is AUTOCOMMIT.
    """
    level = connection.get_execution_options().get(
        "isolation_level", getattr(connection.dialect, "_on_connect_isolation_level", None)
    )
    if level == "AUTOCOMMIT":
        raise CaptureError(
            "The connection is in AUTOCOMMIT mode, where a change and its trail can't be committed together; use "
            "another isolation level for sessions that write tracked models."
        )
