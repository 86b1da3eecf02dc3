"""Where the time of a pass goes: operations and kernels of PyTorch's profiler in named classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tera_mind.model import fast_layers

Kind = Literal[
    "convolution", "attention", "normalisation", "linear maps", "optimiser", "copies", "elementwise", "waiting"
]
#: what an operation, or anything that called it, is named; the first class that is found in the chain counts
_BY_CALLER: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "normalisation",
        re.compile(r"rms_?norm|norm_?silu|layer_?norm|group_?norm|vector_norm|triton_(per|red)_", re.IGNORECASE),
    ),
    ("attention", re.compile(r"attention|flash|fmha|softmax|mem_?eff", re.IGNORECASE)),
    ("optimiser", re.compile(r"optimizer|adam|_foreach_|multi_tensor", re.IGNORECASE)),
    ("convolution", re.compile(r"conv|fprop|dgrad|wgrad|winograd|implicit_gemm", re.IGNORECASE)),
    ("linear maps", re.compile(r"linear|addmm|aten::b?mm|matmul|gemm|cutlass|cublas|nvjet|einsum", re.IGNORECASE)),
)
#: what an operation itself is named
_COPIES = re.compile(
    r"copy|aten::(cat|clone|contiguous|repeat|index|pad|fill|zero|empty|constant_pad|unfold|to\b|stack|resize)|memcpy|"
    r"memset|CatArray|direct_copy|upsample",
    re.IGNORECASE,
)


def classify(chain: Iterable[str]) -> Kind:
    """Class of an operation from its name and those of its callers, inside out; elementwise where none is found."""
    names = list(chain)
    for kind, pattern in _BY_CALLER:
        if any(pattern.search(name) for name in names):
            return kind
    return "copies" if names and _COPIES.search(names[0]) else "elementwise"


def time_by_class(run: Callable[[], object], device: torch.device) -> dict[Kind, float]:
    """Seconds by class of one call of `run` under the profiler: of kernels on a GPU, of operations on a CPU."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as found, _marked_norms():
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = found.events() or ()
    return _gpu_times(events) if device.type == "cuda" else _cpu_times(events)


@contextmanager
def _marked_norms() -> Iterator[None]:
    """The norm of generation is a few plain products: while it is watched, it says that they are a norm."""
    plain = fast_layers.rms_norm

    def rms_norm(*given: Any, **named: Any) -> torch.Tensor:
        with record_function("rms_norm"):
            return plain(*given, **named)

    fast_layers.rms_norm = rms_norm
    try:
        yield
    finally:
        fast_layers.rms_norm = plain


def _chain(event: Any) -> list[str]:
    names = []
    while event is not None:
        names.append(str(event.name))
        event = event.cpu_parent
    return names


def _cpu_times(events: Iterable[Any]) -> dict[Kind, float]:
    seconds: dict[Kind, float] = {}
    for event in events:
        if event.device_type.name == "CPU" and event.self_cpu_time_total > 0:
            kind = classify(_chain(event))
            seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    return seconds


def _gpu_times(events: Iterable[Any]) -> dict[Kind, float]:
    """Kernels by what launched them where that is known, else (CUDA graphs) by their own names."""
    seconds: dict[Kind, float] = {}
    events = list(events)
    launched = [(kernel, _chain(event)) for event in events for kernel in getattr(event, "kernels", ())]
    named = [(kernel.duration, [kernel.name, *chain]) for kernel, chain in launched]
    if not named:
        on_device = [event for event in events if event.device_type.name == "CUDA"]
        named = [(event.self_device_time_total, [event.name]) for event in on_device]
    for duration, chain in named:
        kind = classify(chain)
        seconds[kind] = seconds.get(kind, 0.0) + duration / 1e6
    return seconds


def scaled(seconds: dict[Kind, float], whole_s: float, device: torch.device) -> dict[Kind, float]:
    """Seconds by class of a pass that takes `whole_s` without the profiler.

    On a GPU what kernels leave over is time in which it waits. On a CPU, and where classes add up to more (the
    profiler slows what it watches), their shares are kept.
    """
    total = sum(seconds.values())
    if device.type == "cuda" and total < whole_s:
        return {**seconds, "waiting": whole_s - total}
    return {kind: value * whole_s / total for kind, value in seconds.items()}
