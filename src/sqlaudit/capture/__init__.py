"""How writes are noticed: by the unit of work, and as statements. Internal: nothing in here is a promise."""

__all__: list[str] = []
