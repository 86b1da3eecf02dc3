"""How fast training goes, what it waits for, and how much of the device it uses."""

from __future__ import annotations

import copy
import time
from typing import Any

import lightning
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tera_mind.diffusion.loss import Crops
from tera_mind.errors import InputError
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.module import MethodModule

#: dense peak of matrix units in half precision, TFLOP/s, by the device's name (makers' data sheets)
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A40": 150.0, "V100": 125.0, "B200": 2250.0}


class Throughput(Callback):
    """Logs how fast training goes, averaged between two of the trainer's log steps.

    `train/pairs_per_second` of all processes together; `train/data_wait_share`, the time in which the loop waited for
    its next batch; `train/memory_gb`, the peak of a GPU's allocator or the process's memory; `train/tflops` of one
    process and, where the device's peak is known, `train/mfu`, the share of it. Work is counted once, on shapes alone,
    from the operations of a forward and backward pass, recomputation not counted.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        """The peak, where it is not known.

        Args:
            peak_tflops: the device's peak in the precision used, TFLOP/s; null: by the GPU's name, unknown on a CPU.
        """
        if peak_tflops is not None and peak_tflops <= 0:
            raise InputError(f"the device's peak should be above 0 TFLOP/s, got {peak_tflops:g}")
        self.peak_tflops = peak_tflops
        self._flops_per_pair: float | None = None
        self._start = self._batch_end = 0.0
        self._waited = 0.0
        self._pairs = self._logged_step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del trainer
        device = pl_module.device
        if self.peak_tflops is None and device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            self.peak_tflops = next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
        self._begin()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del trainer, pl_module
        self._batch_end = time.perf_counter()  # the first batch's workers start here: that is waiting too

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del trainer, pl_module
        self._begin()  # what validation took is not training

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del trainer, batch_idx
        self._waited += time.perf_counter() - self._batch_end
        if self._flops_per_pair is None:
            assert isinstance(pl_module, MethodModule)
            self._flops_per_pair = training_flops(pl_module, batch) / len(batch["image"])
            self._begin()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del outputs, batch_idx
        self._batch_end = time.perf_counter()
        self._pairs += len(batch["image"])
        if trainer.global_step == self._logged_step or trainer.global_step % max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]
            return
        self._logged_step = trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # once a log step, so that the clock sees finished work
            self._batch_end = time.perf_counter()
        elapsed = max(1e-9, self._batch_end - self._start)
        rate = self._pairs / elapsed
        figures = {
            "train/pairs_per_second": rate * trainer.world_size,
            "train/data_wait_share": min(1.0, self._waited / elapsed),
            "train/memory_gb": _memory_gb(pl_module.device),
        }
        if self._flops_per_pair is not None:
            figures["train/tflops"] = self._flops_per_pair * rate / 1e12
            if self.peak_tflops is not None:
                figures["train/mfu"] = figures["train/tflops"] / self.peak_tflops
        pl_module.log_dict(figures, batch_size=1)
        self._begin()

    def _begin(self) -> None:
        self._start = self._batch_end = time.perf_counter()
        self._waited, self._pairs = 0.0, 0


def training_flops(module: MethodModule, batch: dict[str, Tensor]) -> float:
    """Floating-point operations of the loss of a batch and its gradients (a multiply-add is two), from shapes alone."""
    network = copy.deepcopy(module.network).to("meta")
    if isinstance(network, GeneMorphUNet):
        network.recompute = False
    image, genes, inside = (batch[name].to("meta") for name in ("image", "genes", "inside"))
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad():
        t, alpha_bar = torch.zeros(len(image), dtype=torch.int64, device="meta"), torch.ones(1000, device="meta")
        crops = Crops(image, genes, inside, t, torch.zeros_like(image), alpha_bar)
        module.objective(network, crops).total.backward()
    return float(counter.get_total_flops())


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9
