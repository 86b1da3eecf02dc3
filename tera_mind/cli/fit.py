"""`tera-mind fit`: Lightning's command line over the module and the data module."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import yaml

from tera_mind.cli.names import check_own_packages
from tera_mind.errors import InputError

#: exit code of a run that a signal stopped after it had saved: run me again (EX_TEMPFAIL)
STOPPED = 75
HELP = """\
Train a model from YAML files. Every key of them can be overridden by name; later files and options win.
All keys: docs/configuration.md.

Run the same command again to go on: where the run's folder (trainer.default_root_dir) holds last.ckpt, training
continues from it and ends with the weights that the uninterrupted run would have (CPU, float32, a budget in steps:
bit by bit; a budget in time depends on the clock). `--ckpt_path FILE` continues from another checkpoint.

SIGTERM and SIGUSR1 write last.ckpt after the step at hand and end with exit code 75, Ctrl-C with 130.

examples:
  tera-mind fit -c experiments/demo.yaml --data.shards shards
  tera-mind fit -c experiments/paper/main.yaml --data.shards shards --trainer.devices 8
  tera-mind fit -c experiments/paper/main.yaml -c experiments/paper/supp_m.yaml --data.shards shards
  tera-mind fit -c experiments/demo.yaml --print_config
  tera-mind fit -c experiments/baselines/patch_dm.yaml --data.shards shards      # another method: `method:` in the file

several machines, 8 GPUs each (the same line on every machine; under SLURM see docs/slurm.md):
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
      -m tera_mind.cli.main fit -c experiments/paper/main.yaml --data.shards shards \\
      --trainer.num_nodes 2 --trainer.devices 8
torchrun itself ends with 1 whatever its processes end with: run.json in the run's folder says `stopped` or `finished`.
"""


def run(arguments: Sequence[str]) -> int:
    check_own_packages()
    # imported here: Lightning takes seconds, and a shadowed `datamodules` must be named first
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    from callbacks.signals import StoppedBySignal

    if any(argument in {"-h", "--help"} for argument in arguments):
        print(HELP)
    _quieten()
    torch.set_float32_matmul_precision("high")
    try:
        _fit(arguments)
    except StoppedBySignal as stop:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            return 0  # Lightning kills all processes when one that it started ends with another code
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        print(f"tera-mind fit: {stop}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit with code 1 of it
            raise KeyboardInterrupt from None
        raise
    except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001 (where torch keeps it)
        words = " ".join(str(error).split())[:300]
        raise InputError(f"model.compile: the network could not be compiled here ({words}); set it to false") from error
    return 0


def _quieten() -> None:
    # Lightning's own advice about worker counts and sync; users meet it in its documentation
    for advice in (".*does not have many workers.*", ".*args parameter is intended.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=advice)
    # said whenever there is a data module, though it leaves that hook alone
    warnings.filterwarnings("ignore", message=".*overridden `transfer_batch_to_device`.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in str(record.msg)
    )


def _resume_wandb(run_id: str | None) -> None:
    """Let a W&B logger, whose run begins with its first record, go on with that run; what the user set counts."""
    if run_id is not None and "WANDB_RUN_ID" not in os.environ:
        os.environ["WANDB_RUN_ID"] = run_id
        os.environ.setdefault("WANDB_RESUME", "allow")


def method_asked(arguments: Sequence[str], known: Container[str]) -> str:
    """The method that the arguments of `fit` ask for: the last of `--method NAME` and `method:` in the YAML files.

    It is looked for before the arguments are parsed, since it says which settings there are; what cannot be read or is
    unknown is left for the parser to refuse.
    """
    from tera_mind.model.methods import TERA_MIND

    method = TERA_MIND
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in itertools.pairwise(words):
        asked: Any = None
        if option == "--method":
            asked = value
        elif option in {"-c", "--config"} and Path(value).is_file():
            try:
                content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError, OSError):
                continue
            asked = content.get("method") if isinstance(content, dict) else None
        if isinstance(asked, str) and asked in known:
            method = asked
    return method


def _fit(arguments: Sequence[str]) -> None:
    from jsonargparse import set_parsing_settings
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from callbacks.checkpoint import LastCheckpoint
    from callbacks.provenance import read_record, require_same_run
    from datamodules.pairs import PairsDataModule
    from tera_mind.model.checkpoint import load_checkpoint
    from tera_mind.module import MODULES, MethodModule

    method = method_asked(arguments, MODULES)

    class FitCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_argument(
                "--method", default=method, choices=list(MODULES), help="what is trained; says which keys `model` has"
            )
            parser.link_arguments("data.inputs", "model.inputs", apply_on="instantiate")

        def _parse_ckpt_path(self) -> None:
            """Lightning would put a checkpoint's settings over those of this run, which count."""

        def before_fit(self) -> None:
            path = self.config["fit"]["ckpt_path"]
            if path in {None, "last"}:
                path = self._last()
            if path not in {None, "best", "hpc", "registry"}:  # Lightning's own words for "find one"
                assert isinstance(self.model, MethodModule)
                load_checkpoint(path).info.require_same_inputs(self.model.info)
            self.config_init["fit"]["ckpt_path"] = path

        def _last(self) -> str | None:
            """The checkpoint that the same command left behind."""
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint) and callback.path(self.trainer).is_file():
                    self.trainer.datamodule = self.datamodule  # type: ignore[attr-defined]
                    folder = Path(self.trainer.default_root_dir)
                    require_same_run(folder, self.trainer, self.model)
                    _resume_wandb((read_record(folder) or {}).get("wandb_id"))
                    return str(callback.path(self.trainer))
            return None

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    mode = {"parser_mode": "omegaconf+"}
    FitCLI(
        MODULES[method],
        PairsDataModule,
        args=["fit", *arguments],
        parser_kwargs={"prog": "tera-mind", **mode, "fit": mode},
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
