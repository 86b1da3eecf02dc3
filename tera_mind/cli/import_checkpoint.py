"""`tera-mind import-checkpoint`: a published Lightning checkpoint in, one of ours out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError

#: stains and pixel size of the published models
PUBLISHED_STAINS = ("DAPI", "PolyT")
PUBLISHED_PIXEL_UM = 0.108

_DESCRIPTION = """\
Turn a published checkpoint into one that `tera-mind generate` and `tera-mind fit --model.init_from` read.

The shape of the network is read from the weights and checked against the checkpoint's name, which is like
638850_64_229_all_4_ours: brain, small patch in pixels, genes, sections, gene sections, variant. Weights that are
extra or missing are listed and refused.

What a published file does not hold must be told: its genes in the order of its training, its stains, and its pixel
size. Its images went in as uint8, so the intensity range of every stain is taken as 0 to 255."""

_EPILOG = """\
examples:
  tera-mind import-checkpoint 638850_64_229_all_4_ours/last.ckpt --genes genes.txt --out published.ckpt
  tera-mind import-checkpoint last.ckpt --name 638850_64_229_all_4_ours --genes brain.zarr --out published.ckpt"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind import-checkpoint",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="FILE.ckpt", help="published Lightning checkpoint")
    add("--out", required=True, type=Path, metavar="OUT.ckpt", help="checkpoint to write")
    add(
        "--genes",
        required=True,
        type=Path,
        metavar="GENES",
        help="genes in the order of the published training: a text file with one a line, or a brain store",
    )
    add(
        "--stains",
        default=",".join(PUBLISHED_STAINS),
        metavar="A,B",
        help="stains in the order of its channels (default: %(default)s)",
    )
    add("--pixel-um", type=float, default=PUBLISHED_PIXEL_UM, metavar="UM", help="pixel size (default: %(default)s)")
    add("--name", default=None, help="name of the published checkpoint (default: from its file or folder)")
    add(
        "--trust-pickle",
        action="store_true",
        help="also load pickled Python objects, which can run any code: only for files whose source you trust",
    )
    add("--overwrite", action="store_true", help="replace OUT.ckpt if it is there")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Read, check, convert, write; exit code 0, user errors are raised as `TeraMindError`."""
    options = build_parser().parse_args(arguments)
    import torch

    from tera_mind.formats.atomic import atomic_file
    from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content
    from tera_mind.model.published import import_state
    from tera_mind.model.published_file import PublishedName, published_config, read_published
    from tera_mind.model.unet import GeneMorphUNet

    if options.out.exists() and not options.overwrite:
        raise InputError(f"{options.out} exists: give --overwrite or another --out")
    if not options.pixel_um > 0:
        raise InputError(f"--pixel-um must be above 0, got {options.pixel_um:g}")
    stains = tuple(part.strip() for part in options.stains.split(","))
    name = PublishedName.of_path(options.checkpoint) if options.name is None else PublishedName.parse(options.name)
    if options.name is not None and name is None:
        raise InputError(f"--name is like 638850_64_229_all_4_ours, got {options.name!r}")
    genes = read_genes(options.genes)
    published = read_published(options.checkpoint, trust_pickle=options.trust_pickle)
    config = published_config(published)
    state = import_state(config, published)
    if name is not None:
        name.require(config)
    if len(genes) != config.genes:
        raise PanelMismatchError(
            f"the checkpoint was trained on {config.genes} genes, {options.genes} has {len(genes)}: "
            "give the genes of its training, in their order"
        )
    if len(stains) != config.stains or len(set(stains)) != len(stains) or not all(stains):
        raise InputError(f"the checkpoint has {config.stains} stains, got --stains {options.stains}")
    with torch.device("meta"):  # its own weights would be thrown away
        network = GeneMorphUNet(config)
    network.load_state_dict(state, assign=True)
    info = CheckpointInfo(
        model=config,
        prediction="epsilon",
        genes=genes,
        stains=stains,
        pixel_um=options.pixel_um,
        intensity_range=dict.fromkeys(stains, (0.0, 255.0)),
    )
    content = checkpoint_content(info, network)
    content["tera_mind"]["imported"] = {
        "file": options.checkpoint.name,
        "name": None if name is None else name.text,
    }
    with atomic_file(options.out) as partial:
        torch.save(content, partial)
    parameters = sum(value.numel() for value in state.values())
    print(
        f"{options.out}: {parameters:,} parameters, {config.genes} genes, stains {', '.join(stains)}, "
        f"{config.gene_sections} gene sections to {config.sections} image sections, patches of {config.patch_px} px "
        f"({config.bin_px} px bins), {options.pixel_um:g} um a pixel"
    )
    print(f"name {name.text}: agrees with the weights" if name else "no name to check the shape against (--name)")
    return 0


def read_genes(path: Path) -> tuple[str, ...]:
    """Gene names of a brain store, or of a text file with one a line (blank lines are skipped)."""
    if path.is_dir():
        from tera_mind.formats.brain import Brain

        return Brain.open(path).genes
    if not path.is_file():
        raise MissingFileError(f"no genes at {path}: give a text file with one gene a line, or a brain store")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no text file with one gene a line ({error.reason})") from error
    genes = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({gene for gene in genes if genes.count(gene) > 1})
    if twice:
        raise FormatError(f"{path} names genes twice: {', '.join(twice[:8])}; every gene stands once")
    return genes
