"""Every error a user can cause: one root, leaves that are also the standard classes.

The command line turns a `TeraMindError` into one line on standard error and exit code 2. A message therefore
says, in one line: what was expected, what came, what to do.
"""

from __future__ import annotations


class TeraMindError(Exception):
    """Root of all errors that a user's input, files or settings can cause."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What the command line prints: one line, or a line a fault where several were found at once."""
        return (" ".join(str(self).split()),)


class InputError(TeraMindError, ValueError):
    """A value, option or data set that cannot be used as given."""


class MissingFileError(TeraMindError, FileNotFoundError):
    """A file or folder that was asked for and is not there."""


class FormatError(TeraMindError, ValueError):
    """A file that exists and cannot be read: damaged, truncated, or of an unknown version."""


class PanelMismatchError(TeraMindError, ValueError):
    """The genes of a data set and of a checkpoint do not fit together."""
