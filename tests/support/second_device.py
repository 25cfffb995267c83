"""A device beside the CPU for PyTorch, as strict as a GPU: its tensors and the CPU's meet only when they are moved.

What lies there is computed by the CPU's own kernels, so results are the same bits. PyTorch keeps a place for one such
device in a process, so this is for a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
_MOVES = {_ATEN._to_copy.default, _ATEN.copy_.default}
# CUDA takes indices from the CPU too.
_TAKE_INDICES = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}


class _Elsewhere(torch.Tensor):
    """A tensor on the device.

    Attributes:
        host: its values, where the device keeps them.
    """

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> _Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in _pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, _Elsewhere)]
    strangers = [one for one in tensors if not isinstance(one, _Elsewhere) and one.dim()]
    if func in _TAKE_INDICES:
        strangers = [one for one in strangers if one.dtype.is_floating_point]
    if there and strangers and func not in _MOVES:
        raise RuntimeError(f"{func} was given tensors of {NAME} and of the CPU")
    device = kwargs.get("device")
    goes_there = device.type == NAME if device is not None else bool(there)
    if func is _ATEN.copy_.default:
        goes_there = isinstance(args[0], _Elsewhere)
    if device is not None and device.type == NAME:
        kwargs = {**kwargs, "device": _CPU}
    hosts = _pytree.tree_map_only(_Elsewhere, lambda one: one.host, (args, kwargs))
    known = {id(one.host): one for one in there}

    def wrap(result: torch.Tensor) -> torch.Tensor:
        if not goes_there:
            return result
        return known[id(result)] if id(result) in known else _Elsewhere(result)

    return _pytree.tree_map_only(torch.Tensor, wrap, func(*hosts[0], **hosts[1]))


def register() -> torch.device:
    """Make the device known to PyTorch, once in a process."""
    _setup_privateuseone_for_python_backend(NAME)
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    # The registration ends with the object that made it.
    torch._awq_tvm_second_device = everything  # type: ignore[attr-defined]
    return torch.device(NAME, 0)
