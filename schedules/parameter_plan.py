"""Which checkpoint tensors every weight parameter of a compiled model is made of.

The plan travels with the IRModule as an attribute: passes that combine or repack weights rewrite it, and the
compile driver carries it out once at the end. So the repack happens at compile time, never on the device.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class DenseSource:
    """A parameter made of unquantized tensors, concatenated along axis 0 and cast.

    Args:
        tensors: checkpoint names.
        dtype: of the parameter.
        layout: None for the tensors as they are, else the name of a dense layout.
    """

    tensors: tuple[str, ...]
    dtype: str
    layout: str | None = None


@dataclass(frozen=True)
class QuantizedSource:
    """One array of a packed quantized weight, the rows of several linears one below the other.

    Args:
        modules: checkpoint names of the linears, concatenated along N.
        spec: JSON of the ``MatmulSpec`` of the whole.
        layout: name of the weight layout.
        array: which of the layout's arrays.
        halves_in_turn: whether the rows of the whole's two halves alternate, as gated outputs want them.
    """

    modules: tuple[str, ...]
    spec: str
    layout: str
    array: int
    halves_in_turn: bool = False


@dataclass(frozen=True)
class OrderSource:
    """The order in which a linear's inputs are gathered, int32 [K]: that of the columns of its packed weight.

    Args:
        module: checkpoint name of a linear that was quantized in activation order.
    """

    module: str


Source = DenseSource | QuantizedSource | OrderSource


@dataclass(frozen=True)
class ParameterPlan:
    """Weight parameters by name, in the order in which the compiled function takes them."""

    sources: dict[str, Source]

    def is_quantized(self, name: str) -> bool:
        """Whether ``name`` is a parameter that holds an array of a quantized weight."""
        return isinstance(self.sources.get(name), QuantizedSource)

    def is_dense(self, name: str) -> bool:
        """Whether ``name`` is an unquantized weight; an input of the model is none."""
        return isinstance(self.sources.get(name), DenseSource)

    def quantized(self, name: str) -> QuantizedSource:
        """The source of an array of a quantized weight.

        Raises:
            KeyError: ``name`` is no such parameter.
        """
        source = self.sources[name]
        if not isinstance(source, QuantizedSource):
            raise KeyError(name)
        return source

    def dense(self, name: str) -> DenseSource:
        """The source of an unquantized parameter.

        Raises:
            KeyError: ``name`` is no such parameter.
        """
        source = self.sources[name]
        if not isinstance(source, DenseSource):
            raise KeyError(name)
        return source

    def to_json(self) -> str:
        """The plan as JSON."""
        kinds = {name: [type(s).__name__, asdict(s)] for name, s in self.sources.items()}
        return json.dumps(kinds)

    @staticmethod
    def from_json(text: str) -> ParameterPlan:
        """Read back what ``to_json`` wrote."""
        sources: dict[str, Source] = {}
        for name, (kind, fields) in json.loads(text).items():
            if kind == "DenseSource":
                fields["tensors"] = tuple(fields["tensors"])
                sources[name] = DenseSource(**fields)
            elif kind == "OrderSource":
                sources[name] = OrderSource(**fields)
            else:
                fields["modules"] = tuple(fields["modules"])
                sources[name] = QuantizedSource(**fields)
        return ParameterPlan(sources)
