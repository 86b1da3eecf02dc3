"""Shapes are checked under pytest; real data is found by TERA_MIND_REAL_DATA or the tests that need it skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "offline")
# tests are small and run side by side: threads of one process would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook(["tera_mind", "datamodules", "callbacks"], "beartype.beartype")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Xenium and MERSCOPE samples."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TERA_MIND_REAL_DATA", root.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set TERA_MIND_REAL_DATA to the folder that holds xenium_breast_crop")
    return folder
