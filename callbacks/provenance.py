"""What a run was made with and how far it came: `run.json` in its folder, and the same in every logger."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

import tera_mind
from callbacks.signals import StoppedBySignal
from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.model.methods import parameter_count

VERSION = 1
#: what has to stay the same for a run to be continued in its folder
FIXED = ("method", "sections", "patch_px", "prediction", "genes", "data_fingerprint", "seed", "data_seed")


class RunRecord(Callback):
    """Writes `run.json` at the start, with every checkpoint, and at the end, and hands it to every logger.

    `status` is `running`, `finished`, `stopped` (by a signal, to be continued) or `failed`; a run that says `running`
    and has no process was killed. `started` is the first start, `ended` the last end.
    """

    def __init__(self) -> None:
        self._record: dict[str, Any] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        del stage
        if not trainer.is_global_zero:
            return
        self._record = {
            **describe(trainer, pl_module),
            "status": "running",
            "global_step": 0,
            "started": now(),
            "ended": None,
        }

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del pl_module, checkpoint
        before = read_record(Path(trainer.default_root_dir))
        if self._record and before is not None:
            self._record["started"] = before["started"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        fixed = {key: value for key, value in self._record.items() if key not in {"status", "global_step", "ended"}}
        for logger in trainer.loggers:
            logger.log_hyperparams(fixed)
            if isinstance(logger, WandbLogger) and self._record:
                self._record["wandb_id"] = logger.version  # a resumed run goes on under it
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        del pl_module, checkpoint
        self._write(trainer)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        self._write(trainer, status="finished", ended=now())

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        del pl_module
        stopped = isinstance(exception, StoppedBySignal | KeyboardInterrupt)
        self._write(trainer, status="stopped" if stopped else "failed", ended=now())

    def _write(self, trainer: lightning.Trainer, **changes: Any) -> None:
        if trainer.is_global_zero and self._record:
            self._record |= {"global_step": trainer.global_step, **changes}
            with atomic_file(Path(trainer.default_root_dir) / "run.json") as partial:
                partial.write_text(json.dumps(self._record, indent=1))


def describe(trainer: lightning.Trainer, module: Any) -> dict[str, Any]:
    """Method, data, settings, code and machine of a run, as plain data."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    manifest = data.manifest
    device = trainer.strategy.root_device
    return {
        "format": "run",
        "version": VERSION,
        "method": module.METHOD,
        "sections": module.info.model.sections,
        "patch_px": module.info.model.patch_px,
        "prediction": module.info.prediction,
        "parameters": parameter_count(module.network),
        "halo_px": module.info.model.halo_px,
        "tile_exact": module.info.model.tile_exact,
        "steps": trainer.max_steps,
        "genes": len(module.info.genes),
        "data_fingerprint": manifest.fingerprint,
        "code_version": code_version(),
        "seed": module.hparams["seed"],
        "data_seed": data.seed,
        "torch_version": str(torch.__version__),
        "lightning_version": lightning.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }


def code_version() -> str:
    """Version of the package; in a checkout also the commit, with `+changed` where files differ from it."""
    root = Path(tera_mind.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return tera_mind.__version__

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout it refuses to read
        return tera_mind.__version__
    return f"{tera_mind.__version__} {commit}{'+changed' if changed else ''}"


def read_record(folder: Path) -> dict[str, Any] | None:
    """`run.json` of a run's folder, None where there is none; raises `FormatError` where it cannot be read."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if (record["format"], record["version"]) == ("run", VERSION):
            return record
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is no readable record of a run ({error!r}): give another folder") from error
    raise FormatError(f"{path} is {record['format']} version {record['version']}, expected run version {VERSION}")


def require_same_run(folder: Path, trainer: lightning.Trainer, module: Any) -> None:
    """Raise `InputError` if the folder holds a run of other data, seeds or shape, which cannot be continued."""
    before = read_record(folder)
    if before is None:
        return
    ours = describe(trainer, module)
    differing = [key for key in FIXED if key in before and before[key] != ours[key]]  # older records lack some
    changed = [f"{key} {before[key]} there, {ours[key]} now" for key in differing]
    if changed:
        raise InputError(
            f"{folder} holds a run that is not this one ({'; '.join(changed)}): give another "
            "trainer.default_root_dir, or remove it"
        )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
