"""Rows on their way through a statement, however many: the first in memory, the rest in a temporary file."""

import pickle
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Final, Generic, TypeVar

__all__ = ["Spool"]


Item = TypeVar("Item")

CHUNKS_IN_MEMORY: Final = 10


class Spool(Generic[Item]):
    """
    Chunks that are put in, and then taken out in the same order, once.

    The file has no name, and is gone when the spool is.
    """

    def __init__(self) -> None:
        self.count = 0
        """How many items were put in."""
        self._chunks: list[list[Item]] = []
        self._file: IO[bytes] | None = None

    def put(self, chunk: list[Item]) -> None:
        """Add a chunk."""
        self.count += len(chunk)
        if len(self._chunks) < CHUNKS_IN_MEMORY:
            self._chunks.append(chunk)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="sqlaudit-")  # noqa: SIM115 (closed by take)
        pickle.dump(chunk, self._file, pickle.HIGHEST_PROTOCOL)

    def take(self) -> Iterator[list[Item]]:
        """Yield the chunks."""
        yield from self._chunks
        self._chunks = []
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            end = file.tell()
            file.seek(0)
            while file.tell() < end:
                # Nobody but this process has written the file.
                chunk: Any = pickle.load(file)  # noqa: S301
                yield chunk
