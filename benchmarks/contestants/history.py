"""
sqlalchemy-history, a fork of Continuum: https://corridor.github.io/sqlalchemy-history/.

As in its README, with ``support_async`` so that both kinds of driver work. At its
fastest: the "subquery" strategy; it has no triggers.
"""

from sqlalchemy_history import make_versioned, transaction_class, version_class

from benchmarks.contestants.base import Contestant
from benchmarks.contestants.continuum import Continuum
from benchmarks.models import define_models


def make(kind: str, *, tuned: bool) -> Contestant:
    """Return the contestant."""
    make_versioned(user_cls=None, options={"support_async": True, **({"strategy": "subquery"} if tuned else {})})
    return Continuum(define_models(attributes={"__versioned__": {}}), version_class, transaction_class)
