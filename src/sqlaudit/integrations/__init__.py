"""Edges to other packages: a module needs the extra of its name, and nobody inside imports it."""

__all__: list[str] = []
