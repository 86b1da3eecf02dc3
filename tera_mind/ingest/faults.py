"""Several faults of a user's files at once: collected while reading goes on, raised together, a line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tera_mind.errors import InputError, TeraMindError

#: under which an error that is raised alone remembers its file and place for those who collect further up
_OWN = "fault"


@dataclass(frozen=True)
class Fault:
    """What is wrong where: a file or folder, a place in it ("", "column gene", "rows 12-40"), and words of remedy."""

    file: Path
    place: str
    words: str

    @property
    def line(self) -> str:
        """One line; file and place are named once, whether the words do it or not."""
        words = " ".join(self.words.split())
        where = [] if str(self.file) in words else [str(self.file)]
        where += [self.place] if self.place and self.place not in words else []
        return f"{', '.join(where)}: {words}" if where else words


class FaultsError(InputError):
    """Several faults; `lines` has one line each."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__(faults)  # the arguments are what travels between processes
        self.faults = faults

    @property
    def lines(self) -> tuple[str, ...]:
        """A line a fault."""
        return tuple(fault.line for fault in self.faults)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Faults:
    """Collects faults: what `add` is told, and what `catching` keeps from ending the reading."""

    def __init__(self) -> None:
        self._found: dict[Fault, TeraMindError | None] = {}  # in order; the same fault counts once

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._found)

    def add(self, file: Path, place: str, words: str) -> None:
        """Note a fault."""
        self._found.setdefault(Fault(file, place, words))

    @contextmanager
    def catching(self, file: Path, place: str = "") -> Iterator[None]:
        """Turn a `TeraMindError` of the block into a fault of `file` (several of them: as they are) and go on."""
        try:
            yield
        except FaultsError as error:
            for fault in error.faults:
                self._found.setdefault(fault)
        except TeraMindError as error:
            own = vars(error).get(_OWN)
            self._found.setdefault(own if isinstance(own, Fault) else Fault(file, place, str(error)), error)

    def raise_any(self) -> None:
        """Raise `FaultsError` for several faults; a single error that was caught is raised as it came."""
        if len(self) == 1:
            ((fault, error),) = self._found.items()
            if error is not None:
                vars(error)[_OWN] = fault
                raise error
        if self._found:
            raise FaultsError(tuple(self._found))
