"""`tera-mind fit`: Lightning's command line over the module and the data module."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from tera_mind.cli.names import check_own_packages

EXAMPLES = """\
examples:
  tera-mind fit -c experiments/demo.yaml --data.shards shards
  tera-mind fit -c experiments/published.yaml --data.shards shards --trainer.devices 8
  tera-mind fit -c experiments/demo.yaml --data.shards shards --ckpt_path runs/demo/last.ckpt   # go on
  tera-mind fit -c experiments/demo.yaml --print_config
"""


def run(arguments: Sequence[str]) -> int:
    check_own_packages()
    # imported here: Lightning takes seconds, and a shadowed `datamodules` must be named first
    import torch
    from jsonargparse import set_parsing_settings
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from datamodules.pairs import PairsDataModule
    from tera_mind.model.checkpoint import load_checkpoint
    from tera_mind.module import GeneMorphModule

    class FitCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for name in ("genes", "stains", "pixel_um", "intensity_range", "gene_sections"):
                parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
            parser.link_arguments("data.patch_px", "model.patch_px")
            parser.link_arguments("data.bin_px", "model.bin_px")

        def before_fit(self) -> None:
            path = self.config["fit"]["ckpt_path"]
            if path not in {None, "best", "hpc", "last", "registry"}:  # Lightning's own words for "find one"
                assert isinstance(self.model, GeneMorphModule)
                load_checkpoint(path).info.require_same_inputs(self.model.info)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    torch.set_float32_matmul_precision("high")
    # Lightning's own advice about worker counts and sync; users meet it in its documentation
    for advice in (".*does not have many workers.*", ".*args parameter is intended.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=advice)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in str(record.msg)
    )
    if any(argument in {"-h", "--help"} for argument in arguments):
        print("Train a model from a YAML file. Every key of the file can be overridden by name.\n")
        print(EXAMPLES)
    mode = {"parser_mode": "omegaconf+"}
    FitCLI(
        GeneMorphModule,
        PairsDataModule,
        args=["fit", *arguments],
        parser_kwargs={"prog": "tera-mind", **mode, "fit": mode},
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
