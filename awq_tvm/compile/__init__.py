"""The compile driver: the order of the stages from a checkpoint to a bundle.

Called, it is `awq_tvm.api.compile`.
"""

from __future__ import annotations

from awq_tvm.callable_package import make_callable

make_callable(__name__)
