"""Pass all weights as one tuple."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.relax import transform as relax_transform


@tvm.transform.module_pass(opt_level=0, name="BundleWeights")
class BundleWeights:
    """Turn the weight parameters of ``forward`` into one tuple, so that a call hands over one argument.

    Before::

        def forward(input_ids, logit_positions, kv_cache, w0, w1, ...): ...

    After::

        def forward(input_ids, logit_positions, kv_cache, weights): ...

    Needs: to be the last pass that looks at weights. Leaves alone: functions without weights.
    """

    def transform_module(self, mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        """Bundle, and put back the functions that have nothing to bundle."""
        bundled = relax_transform.BundleModelParams("weights")(mod)
        for variable, func in mod.functions_items():
            if isinstance(func, tvm.relax.Function) and not func.params:
                bundled[bundled.get_global_var(variable.name_hint)] = func
        return bundled
