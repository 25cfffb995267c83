"""NVIDIA's driver through ctypes: memory, kernels, graphs and events. Nothing else is needed on the machine.

It works in the primary context of the first device, which PyTorch uses too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.errors import ResourceError, TargetError

Array = np.ndarray[Any, Any]

_MAJOR, _MINOR, _SMS, _L2_BYTES = 75, 76, 16, 38
_DYNAMIC_SHARED = 8
_CLUSTER_DIMENSION, _PROGRAMMATIC_STREAM_SERIALIZATION = 4, 6
_DEFAULT_SHARED = 48 * 1024
_THREAD_LOCAL_CAPTURE = 1


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, whose value is a union of 64 bytes."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("values", ctypes.c_uint * 3),
        ("rest", ctypes.c_char * 52),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((f"{kind}_{axis}", ctypes.c_uint) for kind in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class HasImage(Protocol):
    """What names a binary."""

    @property
    def image(self) -> str:
        """A file of the pack."""


class Gpu:
    """The first GPU of this machine.

    Raises:
        TargetError: there is none, or no driver.

    Attributes:
        pack: the folder of its binaries.
        overlap: whether launches that may begin before those before them have ended do.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise _no_gpu(f"{library} cannot be loaded: {error}") from None
        count, device, context, stream = (ctypes.c_int(), ctypes.c_int(), *(ctypes.c_void_p() for _ in "cs"))
        if self._cuda.cuInit(0) or self._cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise _no_gpu("the driver finds no device")
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 1)
        self.stream = stream
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, device)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.name, self.driver = name.value.decode(), f"{version.value // 1000}.{version.value % 1000 // 10}"
        major, minor, self.sms, self.l2_bytes = (
            self._attribute(which, device) for which in (_MAJOR, _MINOR, _SMS, _L2_BYTES)
        )
        self.arch = f"sm_{major}{minor}"
        self._images: dict[str, ctypes.c_void_p] = {}
        self._functions: dict[tuple[int, str], ctypes.c_void_p] = {}
        self._kept: list[ctypes.c_uint64] = []
        self.pack = Path()
        self.overlap = True

    def image(self, case: HasImage) -> ctypes.c_void_p:
        """See ``check.Device``."""
        return self.load(case.image)

    def load(self, name: str) -> ctypes.c_void_p:
        """A binary of the pack."""
        if name not in self._images:
            module = ctypes.c_void_p()
            self._call("cuModuleLoadData", ctypes.byref(module), (self.pack / name).read_bytes())
            self._images[name] = module
        return self._images[name]

    def empty(self, size: int) -> ctypes.c_uint64:
        """A buffer of so many bytes."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 16)))
        self._kept.append(pointer)
        return pointer

    def upload(self, values: Array) -> ctypes.c_uint64:
        """See ``check.Device``."""
        values = np.ascontiguousarray(values)
        pointer = self.empty(values.nbytes)
        self._call("cuMemcpyHtoD_v2", pointer, values.ctypes.data_as(ctypes.c_void_p), _size(values.nbytes))
        return pointer

    def copy(self, buffer: ctypes.c_uint64, size: int) -> ctypes.c_uint64:
        """The same bytes elsewhere."""
        pointer = self.empty(size)
        self._call("cuMemcpyDtoD_v2", pointer, buffer, _size(size))
        return pointer

    def download(self, buffer: ctypes.c_uint64, like: Array) -> Array:
        """See ``check.Device``."""
        found = np.empty_like(like)
        self.wait()
        self._call("cuMemcpyDtoH_v2", found.ctypes.data_as(ctypes.c_void_p), buffer, _size(found.nbytes))
        return found

    def inside(self, buffer: ctypes.c_uint64, first: int, count: int, itemsize: int) -> ctypes.c_uint64:
        """See ``check.Device``."""
        return ctypes.c_uint64(buffer.value + first * itemsize)

    def free_all(self) -> None:
        """Give back every buffer."""
        self.wait()
        for pointer in self._kept:
            self._call("cuMemFree_v2", pointer)
        self._kept.clear()

    def launch(self, image: ctypes.c_void_p, launch: Launch, buffers: dict[str, Any]) -> None:
        """See ``check.Device``."""
        function = self._function(image, launch)
        values = [buffers[one] if isinstance(one, str) else _number(one) for one in launch.arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = (*launch.grid, *launch.block, ctypes.c_uint(launch.shared_bytes), self.stream)
        asked: list[tuple[int, tuple[int, ...]]] = []
        if launch.cluster > 1:
            asked.append((_CLUSTER_DIMENSION, (launch.cluster, 1, 1)))
        if launch.overlaps and self.overlap:
            asked.append((_PROGRAMMATIC_STREAM_SERIALIZATION, (1,)))
        if not asked:
            self._call("cuLaunchKernel", function, *sizes, pointers, None)
            return
        attributes = (_Attribute * len(asked))(*(_Attribute(which, 0, values) for which, values in asked))
        config = _Config(*sizes, attributes, len(asked))
        self._call("cuLaunchKernelEx", ctypes.byref(config), function, pointers, None)

    def graph(self, start: Callable[[], None]) -> Callable[[], None]:
        """What ``start`` launches, recorded; the result launches all of it at once."""
        recorded, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL_CAPTURE)
        start()
        self._call("cuStreamEndCapture", self.stream, ctypes.byref(recorded))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), recorded, ctypes.c_ulonglong(0))
        return lambda: self._call("cuGraphLaunch", ready, self.stream)

    def seconds(self, start: Callable[[], None]) -> float:
        """How long the device works on what ``start`` launches, between two events."""
        first, last = (self._event() for _ in range(2))
        self._call("cuEventRecord", first, self.stream)
        start()
        self._call("cuEventRecord", last, self.stream)
        self._call("cuEventSynchronize", last)
        elapsed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), first, last)
        for event in (first, last):
            self._call("cuEventDestroy_v2", event)
        return elapsed.value / 1e3

    def wait(self) -> None:
        """Until all that was launched is done."""
        self._call("cuStreamSynchronize", self.stream)

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), 0)
        return event

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _function(self, image: ctypes.c_void_p, launch: Launch) -> ctypes.c_void_p:
        key = (image.value or 0, launch.kernel)
        if key not in self._functions:
            function = ctypes.c_void_p()
            self._call("cuModuleGetFunction", ctypes.byref(function), image, launch.kernel.encode())
            self._functions[key] = function
        if launch.shared_bytes > _DEFAULT_SHARED:
            self._call("cuFuncSetAttribute", self._functions[key], _DYNAMIC_SHARED, launch.shared_bytes)
        return self._functions[key]

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            why = (text.value or b"").decode() or "no reason given"
            raise ResourceError(f"{name} failed", where="the driver", why=f"{why} ({code})")


def best_arch(arch: str, there: Sequence[str]) -> str | None:
    """The newest of the architectures that a GPU can run: of its own generation, and no newer than it."""
    number = int(arch.removeprefix("sm_"))
    fit = [one for one in there if one.removeprefix("sm_")[:-1] == arch.removeprefix("sm_")[:-1]]
    return max((one for one in fit if int(one.removeprefix("sm_")) <= number), default=None)


def _number(value: int | float) -> Any:
    """A scalar parameter, as kernels take it."""
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def _size(size: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(size)


def _no_gpu(why: str) -> TargetError:
    return TargetError(
        "No NVIDIA GPU was found, so nothing was measured",
        why=why,
        fix="run this on a machine with a GPU and its driver; without one there are --counts and --emulate",
    )
