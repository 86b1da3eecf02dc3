"""What was made once and may be wanted again: the latest values up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """Values by key; those not used for longest make room. Safe to share between threads."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """The value, which counts as used, or None."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: V, size_bytes: int) -> None:
        """Keep a value; one larger than the limit is not kept."""
        with self._lock:
            _, before = self._values.pop(key, (None, 0))
            self.bytes -= before
            if size_bytes > self.limit_bytes:
                return
            self._values[key] = (value, size_bytes)
            self.bytes += size_bytes
            while self.bytes > self.limit_bytes:
                _, (_, size) = self._values.popitem(last=False)
                self.bytes -= size

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self.bytes = 0
