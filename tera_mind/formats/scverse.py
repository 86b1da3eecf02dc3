"""The optional SpatialData library, asked for in one way."""

from __future__ import annotations

import warnings
from typing import Any

from tera_mind.errors import InputError


def require_spatialdata() -> Any:
    """The library, or an `InputError` that says how to get it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of its own dependencies
            import spatialdata
    except ImportError as error:
        raise InputError(
            f"SpatialData needs the optional packages ({error}); install them: pip install 'tera-mind[spatial]'"
        ) from None
    return spatialdata
