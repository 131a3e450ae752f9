"""How writes are noticed: by the unit of work, and as statements."""
