"""TVM's runtime library and the few of its functions that running a bundle takes, without the Python package `tvm`.

A bundle runs in TVM's runtime library, 3 MB of C++. `import tvm` brings much more with it, the scripting language of
its IRs first, even where it is told to load that library alone; here the library is found, loaded by its path and
called through `tvm_ffi`, which is the package that `tvm` itself stands on. Where a process has imported `tvm`
already, or does so later, both use the same library.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm import ir_attrs
from awq_tvm.bundle.machine import operating_system
from awq_tvm.errors import TargetError, UnsupportedError

# Where TVM looks first, see its libinfo.py.
LIBRARY_PATH_VARIABLE = "TVM_LIBRARY_PATH"
# Of the virtual machine: freed memory is kept for the next call.
_POOLED_ALLOCATOR = 2


class TvmRuntime:
    """The runtime library on one device.

    Args:
        kind: of the target: "cpu", "cuda" or "metal".
        device_library: what brings devices of the kind, in place of TVM's own.

    Raises:
        UnsupportedError: TVM or its runtime library is not installed.
        TargetError: its part for the device cannot be loaded.

    Attributes:
        shape: makes of integers what TVM takes for a shape.
        sequence: makes of a list what TVM takes for a tuple.
    """

    def __init__(self, kind: str, device_library: Path | None = None) -> None:
        self._ffi = load_runtime_library(kind, device_library)
        self.shape, self.sequence = self._ffi.Shape, self._ffi.convert
        self._device = self._ffi.device(kind, 0)
        self._on_cpu = kind == "cpu"
        self._allocate, self._read, self._write = (
            self.function(f"runtime.TVMTensor{name}")
            for name in ("AllocWithScope", "CopyToBytes", "CopyFromBytes")
        )

    def function(self, name: str) -> Any:
        """A function that the library registers under a global name."""
        return self._ffi.get_global_func(name)

    def load_machine(self, library: Path, *, overlap: bool = True) -> Any:
        """The virtual machine of a compiled library: an object with its functions by name.

        Args:
            library: its path.
            overlap: launch kernels as they ask for it; if false none begins before the one before it has ended.

        Raises:
            RuntimeError: it is none that this runtime can load.
        """
        with nullcontext() if overlap else _one_after_another(self._ffi):
            machine = self._ffi.load_module(str(library))["vm_load_executable"]()
        # Shapes are worked out on the CPU, so it is always one of the devices.
        devices = [self._device] if self._on_cpu else [self._device, self._ffi.device("cpu", 0)]
        arguments = [(device.dlpack_device_type(), device.index, _POOLED_ALLOCATOR) for device in devices]
        machine["vm_initialization"](*(value for device in arguments for value in device))
        return machine

    def tensor(self, array: np.ndarray[Any, Any]) -> Any:
        """A copy of an array on the device."""
        array = np.ascontiguousarray(array)
        made = self._allocate(self.shape(array.shape), self._ffi.dtype(array.dtype), self._device, None)
        self.write(made, array)
        return made

    def write(self, tensor: Any, array: np.ndarray[Any, Any]) -> None:
        """Overwrite a tensor of the device with an array of the same size, whose elements lie one after the other."""
        self._write(tensor, array.ctypes.data_as(ctypes.c_void_p), array.nbytes)

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """A tensor that is never written: on a CPU the array itself, where it lies, elsewhere a copy.

        Args:
            array: on a boundary of 64 bytes.
        """
        if not self._on_cpu:
            return self.tensor(array)
        return self._ffi.from_dlpack(array, require_alignment=64, require_contiguous=True)

    def array(self, tensor: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A copy of a float32 tensor of the device."""
        made = np.empty(tuple(tensor.shape), np.float32)
        self._read(tensor, made.ctypes.data_as(ctypes.c_void_p), made.nbytes)
        return made


@contextmanager
def _one_after_another(ffi: Any) -> Iterator[None]:
    """Keep from TVM, while it loads a library, that some kernels may begin early: they wait for nothing then."""
    name = "ffi.Module.load_from_bytes.cuda"
    load = ffi.get_global_func(name, allow_missing=True)
    if load is None:
        yield
        return
    ffi.register_global_func(name, lambda saved: load(without_overlap(bytes(saved))), override=True)
    try:
        yield
    finally:
        ffi.register_global_func(name, load, override=True)


def without_overlap(saved: bytes) -> bytes:
    """A module of CUDA kernels as TVM saves it, without the tag of those that may begin early.

    Of each kernel it holds how many tags there are, then each tag, its length before it; this one comes first, as
    the compiler puts it there.
    """
    length = struct.Struct("<Q")
    tag = ir_attrs.OVERLAP_TAG.encode()
    tagged = re.compile(b"(.{8})" + re.escape(length.pack(len(tag)) + tag), re.DOTALL)
    return tagged.sub(lambda found: length.pack(length.unpack(found[1])[0] - 1), saved)


def load_runtime_library(kind: str, device_library: Path | None = None) -> Any:
    """Load TVM's runtime library, and its part for GPUs of a kind, once in a process.

    Args:
        kind: "cpu", or of the GPU.
        device_library: in place of TVM's part for the GPU.

    Returns:
        the module tvm_ffi.

    Raises:
        UnsupportedError: TVM or its runtime library is not installed.
        TargetError: its part for the device cannot be loaded.
    """
    with _torch_hidden():
        try:
            import tvm_ffi
        except ModuleNotFoundError:
            raise _missing("the package tvm_ffi is not installed") from None
    path = find_runtime_library()
    # What tvm/base.py does; the same file is mapped once, whoever loads it. Global, for the parts and for bundles.
    ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    if kind != "cpu":
        part = device_library or path.with_stem(f"{path.stem}_{kind}")
        try:
            ctypes.CDLL(str(part), ctypes.RTLD_LOCAL)
        except OSError as error:
            raise TargetError(
                f"TVM's runtime for {kind} cannot be loaded.",
                where=str(part),
                why=str(error)[:300],
                fix=f"install the driver of the GPU and a build of TVM with {kind}",
            ) from None
    return tvm_ffi


def find_runtime_library() -> Path:
    """Where TVM's runtime library is, found without importing TVM.

    Raises:
        UnsupportedError: TVM or its runtime library is not installed.
    """
    name = "libtvm_runtime.dylib" if operating_system() == "darwin" else "libtvm_runtime.so"
    package = importlib.util.find_spec("tvm")
    if package is None or package.origin is None:
        raise _missing("the package tvm is not installed")
    top = Path(package.origin).parent
    # As TVM looks for it itself: a wheel's place, then those of a build from source.
    folders = [top / "lib", top.parents[1] / "build" / "lib", top.parents[1] / "lib"]
    if os.environ.get(LIBRARY_PATH_VARIABLE):
        folders.insert(0, Path(os.environ[LIBRARY_PATH_VARIABLE]))
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        raise _missing(f"there is no {name} in {', '.join(map(str, folders))}")
    return found.resolve()


def _missing(why: str) -> UnsupportedError:
    return UnsupportedError(
        "TVM's runtime library was not found.",
        where="apache-tvm",
        why=why,
        fix="`pip install --force-reinstall --no-deps apache-tvm apache-tvm-ffi` in the bundle's versions, "
        "which `python -m awq_tvm inspect BUNDLE` prints",
    )


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Keep tvm_ffi from importing PyTorch, which it does wherever it finds it and which takes seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
