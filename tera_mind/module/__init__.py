"""The LightningModules, one a method: wiring only. `MODULES` is where `tera-mind fit` finds the one asked for."""

from __future__ import annotations

from tera_mind.module.base import MethodModule
from tera_mind.module.baselines import PatchDMModule, PlainDDPMModule, RegressionModule, SinFusionModule
from tera_mind.module.coco_gan import CocoGanModule
from tera_mind.module.gene_morph import GeneMorphModule
from tera_mind.module.infinity_gan import InfinityGanModule
from tera_mind.module.ist_editing import IstEditingModule
from tera_mind.module.ms_pie import MsPieModule
from tera_mind.module.sst_editing import SstEditingModule

__all__ = ["MODULES", "GeneMorphModule", "MethodModule"]

_ALL: tuple[type[MethodModule], ...] = (
    GeneMorphModule,
    PatchDMModule,
    SinFusionModule,
    IstEditingModule,
    InfinityGanModule,
    CocoGanModule,
    MsPieModule,
    SstEditingModule,
    PlainDDPMModule,
    RegressionModule,
)
#: method, as YAML files and checkpoints spell it -> what trains it
MODULES: dict[str, type[MethodModule]] = {made.METHOD: made for made in _ALL}
