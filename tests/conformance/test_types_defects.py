"""What of the types was found not to be told as it reads. To be moved to test_types.py when it is."""

from collections.abc import Sequence

import pytest

from conformance_setup import Maker
from type_cases import DEFECTS, TypeCase
from type_lives import audited, check, lives_of_edges


@pytest.mark.parametrize(
    ("database", "case"),
    [
        pytest.param(database, case, id=f"{database}-{case}")
        for cases in DEFECTS.values()
        for case in cases
        for database in case.databases
    ],
    indirect=["database"],
)
async def test_the_edges_of_a_type_are_told_as_they_read(maker: Maker, case: TypeCase) -> None:
    """NULL, empty, extreme and non-ASCII values of a type are told as they read back, however they are written."""
    await check(await audited([case], maker), lives_of_edges([case]))
