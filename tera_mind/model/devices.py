"""Which device and arithmetic are used when the user does not say."""

from __future__ import annotations

import torch

from tera_mind.errors import InputError
from tera_mind.model.fast import Precision


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; `InputError` where the device asked for is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"no CUDA device here, asked for {name!r}; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"{name!r} is no device; use auto, cpu or cuda") from None


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware, and so faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        capabilities = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # older torch: unknown, so take the sure way
        return False
    return bool(capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False))


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bfloat16 where the hardware has it, float32 elsewhere."""
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "32"
    return "bf16" if name == "bf16" else "32"


def choose_devices(text: str) -> tuple[torch.device, ...]:
    """GPUs by number, `0,1`; `InputError` where one of them is absent."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--devices is numbers of GPUs such as 0,1, got {text!r}") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = [number for number in numbers if not 0 <= number < count]
    if missing:
        raise InputError(f"there are {count} CUDA devices here, asked for number {missing[0]}; see nvidia-smi")
    return tuple(torch.device("cuda", number) for number in numbers)
