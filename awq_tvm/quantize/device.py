"""The device that PyTorch works on, and the way there and back.

While a run is under way the device is PyTorch's default device, so what is made anew is on it; what is read from
files is put there, and what is written is taken back. Random numbers are drawn on the CPU: the same for every device.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from awq_tvm.errors import ResourceError, UsageError

AUTO = "auto"


def find_device(name: str) -> torch.device:
    """Settle where to work.

    Args:
        name: "auto" for the first CUDA GPU if there is one and else the CPU; "cpu"; "cuda"; or one GPU, "cuda:1".

    Raises:
        UsageError: something else.
        ResourceError: there is no such GPU, or PyTorch cannot use it.
    """
    if name == AUTO:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, colon, number = name.partition(":")
    if kind != "cuda" or bool(colon) != number.isdecimal():
        raise UsageError(
            f"There is no device {name[:80]!r}", where="--device", why="legal are auto, cpu, cuda and cuda:N"
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        raise ResourceError(
            f"PyTorch has no device {name}",
            where="--device",
            why=f"it can use {found} CUDA GPUs"
            + ("" if torch.version.cuda else f"; PyTorch {torch.__version__} is built for CPUs alone"),
            fix="--device cpu"
            if not found
            else f"one of {', '.join(f'cuda:{index}' for index in range(found))}",
        )
    return torch.device("cuda", int(number or 0))


def describe_device(device: torch.device) -> str:
    """What decides the last bits of a result: the model of a GPU, or what PyTorch uses of the CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return str(torch.backends.cpu.get_cpu_capability())


def placed(values: Tensor | npt.NDArray[Any]) -> Tensor:
    """A tensor on the device that is worked on: the very same where it is there already."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.to(torch.get_default_device())


def taken_back(tensor: Tensor) -> npt.NDArray[Any]:
    """The values of a tensor in this machine's memory."""
    array: npt.NDArray[Any] = tensor.cpu().numpy()
    return array


def place_buffers(model: torch.nn.Module) -> None:
    """Put what a network computed for itself, such as rotary tables, on the device that is worked on."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, placed(buffer))
