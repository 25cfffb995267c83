"""Static archives, for iOS, whose programs load no libraries that did not come with them.

An archive is linked into the app. As the app starts it makes its functions known to TVM's runtime, under names that
begin with a prefix of the model, so that several models fit one app: `ffi.SystemLib(prefix)` is the module that
`load_module` gives of a shared library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from awq_tvm.compile.toolchain.linker import Linker, run_tool


class Archiver(Linker):
    """A command that collects objects in an archive; it takes the place of a linker."""

    def __call__(self, output: str, objects: Sequence[str], options: Sequence[str] = (), **_: Any) -> None:
        """Collect ``objects`` in ``output``.

        Raises:
            TargetError: the archiver is not there or rejects the objects.
        """
        command = [*self.command, "rcs", *self.options, str(output), *map(str, objects)]
        run_tool(command, "The library could not be archived")


def symbol_prefix(name: str) -> str:
    """The prefix of a model's symbols, from the name of its bundle."""
    return f"awq_tvm_{re.sub(r'[^A-Za-z0-9]', '_', name)}_"


def with_prefix(mod: Any, prefix: str) -> Any:
    """A lowered module whose symbols begin with a prefix and which registers itself.

    TVM does this in one of its passes too, but there it fails on functions that it has rewritten before.

    Args:
        mod: what ``lower_relax`` returned.
        prefix: letters, digits and underscores.
    """
    changed = {
        var: function.with_attr("global_symbol", prefix + str(function.attrs["global_symbol"]))
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and "global_symbol" in function.attrs
    }
    mod = mod.with_attr("system_lib_prefix", prefix)
    for var, function in changed.items():
        mod[var] = function
    return mod
