"""
sqlaudit's plugin of pytest.

A package of its own, which pytest may import at its start: sqlaudit and SQLAlchemy
are imported when the first test asks for a fixture, and measured by coverage.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlaudit.testing import Recording


@pytest.fixture(name="audit_session")
def _audit_session() -> Any:
    """Return the session whose changes `audit_recording` has: define a fixture of this name that does."""
    pytest.fail("audit_recording needs a session: define a fixture audit_session that returns yours.", pytrace=False)


@pytest.fixture(name="audit_recording")
def _audit_recording(audit_session: Any) -> Iterator["Recording"]:
    """Record the changes of `audit_session`: ``await audit_recording.changes()``, or ``changes_sync()``."""
    from sqlaudit.testing import Recording  # noqa: PLC0415 (not at the start of pytest)

    recording = Recording(audit_session)
    yield recording
    recording.close()
