"""No audit at all."""

from benchmarks.contestants.base import Contestant
from benchmarks.models import define_models


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    return Contestant(define_models())
