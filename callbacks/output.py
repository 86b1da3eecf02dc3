"""Pictures and tables of callbacks: files in the run's folder, and the same in W&B where it is among the loggers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image

from tera_mind.formats.atomic import atomic_file


def write_pictures(trainer: lightning.Trainer, name: str, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
    """Grey pictures (y, x) by caption, as `NAME/step=N-K.png`; on the first process only."""
    if not trainer.is_global_zero:
        return
    folder = Path(trainer.default_root_dir) / name
    for index, picture in enumerate(pictures.values()):
        with atomic_file(folder / f"step={trainer.global_step:06d}-{index}.png") as partial:
            Image.fromarray(picture).save(partial, format="PNG")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [*pictures.values()], caption=[*pictures], step=trainer.global_step)


def write_table(trainer: lightning.Trainer, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys, as `NAME/step=N.csv`; on the first process only."""
    if not trainer.is_global_zero or not rows:
        return
    columns = [*rows[0]]
    with (
        atomic_file(Path(trainer.default_root_dir) / name / f"step={trainer.global_step:06d}.csv") as partial,
        partial.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            data = [[row[column] for column in columns] for row in rows]
            logger.log_table(name, columns=columns, data=data, step=trainer.global_step)
