"""Which linears of a block share an input, and what feeds them: found by running the block, without its weights.

Every linear answers with random numbers of its own, whatever it is asked, so what one answer changes elsewhere in
the block shows who reads it. Scaled answers of a linear or a norm that arrive as equally scaled inputs of linears,
and change nothing else, can be scaled in the weights too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from awq_tvm.quantize.plain_linears import experts_in

# What a run of the block on one or on a few tokens is called with besides hidden states.
Arguments = Mapping[int, Mapping[str, Any]]

FEW_TOKENS = 3
OUTPUT = "the block's output"
# Large enough that a clamp on the way shows, small enough for float32.
_LOUD = 30.0


@dataclass(frozen=True)
class Probe:
    """What a run changes, and what it answers.

    Attributes:
        tokens: 1 or FEW_TOKENS.
        factors: by path of a linear or norm, what its answers are multiplied by, [N] or [tokens, N].
        positive: answers are between 0.5 and 1.5, else of both signs.
        loudness: the standard deviation of answers of both signs.
    """

    tokens: int = FEW_TOKENS
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    positive: bool = False
    loudness: float = 1.0


class TracedBlock:
    """A copy of a block whose linears answer at random, with only the first of its experts, for all tokens.

    Attributes:
        linears: the linears that can be quantized, by path.
        routers: paths of what else multiplies by a matrix: it chooses experts, or has one output.
        norms: widths of the norms, by path.
    """

    def __init__(self, block: nn.Module, arguments: Arguments, hidden_size: int) -> None:
        """Take a copy; the block is left as it is and may be on "meta".

        Args:
            block: the block.
            arguments: what it is called with, by number of tokens.
            hidden_size: of what enters it.
        """
        self._block, self._arguments, self._hidden_size = copy.deepcopy(block), arguments, hidden_size
        self.generator = torch.Generator().manual_seed(0)
        self._random: dict[tuple[Any, ...], Tensor] = {}
        self._probe = Probe()
        self._inputs: dict[str, Tensor] = {}
        self.linears: dict[str, nn.Linear] = {}
        self.routers: list[str] = []
        self.norms: dict[str, int] = {}
        for experts in experts_in(self._block).values():
            del experts[1:]
            experts.asked_all = (0,)
        for path, module in self._block.named_modules():
            if isinstance(module, nn.Linear) and module.out_features > 1:
                self.linears[path] = module
                module.forward = self._answering(path, module.out_features)  # type: ignore[method-assign]
            elif _matrix(module) is not None:
                self.routers.append(path)
                self._fill(path, module)
                module.forward = self._answering_as_if_asked(path, module.forward)  # type: ignore[method-assign]
            elif _is_norm(module):
                self.norms[path] = module.weight.shape[0]
                self._fill(path, module)
                module.forward = self._scaling(path, module.forward)  # type: ignore[method-assign]

    def run(self, probe: Probe) -> dict[str, Tensor]:
        """Run the block.

        Args:
            probe: on what, with which changes.

        Returns:
            What every linear and router was asked, float32 [T, K] by path, in the order in which they were, and
            the block's output under OUTPUT.
        """
        self._probe, self._inputs = probe, {}
        hidden = self._values("hidden", (1, probe.tokens, self._hidden_size))
        output = self._block(hidden, **self._arguments[probe.tokens])
        return self._inputs | {OUTPUT: _rows(output)}

    @contextmanager
    def output_of(self, path: str, outputs: list[Tensor]) -> Iterator[None]:
        """Collect what a module below the block returns, as [T, N]."""
        hook = self._block.get_submodule(path).register_forward_hook(
            lambda _module, _args, output: outputs.append(_rows(output))
        )
        try:
            yield
        finally:
            hook.remove()

    def norm_offset(self, path: str) -> float:
        """What a norm adds to its weight before it multiplies: 1 in Gemma, else 0."""
        norm = self._block.get_submodule(path)
        width = norm.weight.shape[0]
        zeros = {"weight": torch.zeros(width)}
        if getattr(norm, "bias", None) is not None:
            zeros["bias"] = torch.zeros(width)
        hidden = self._values("norm", (1, 1, width))
        return 1.0 if bool(torch.func.functional_call(norm, zeros, (hidden,)).any()) else 0.0

    def _values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Random numbers, the same for the same name and shape."""
        key = (name, shape, self._probe.positive, self._probe.loudness)
        if key not in self._random:
            if self._probe.positive:
                self._random[key] = torch.rand(shape, generator=self.generator) + 0.5
            else:
                self._random[key] = torch.randn(shape, generator=self.generator) * self._probe.loudness
        # A copy: some blocks add to what they were answered in place.
        return self._random[key].clone()

    def _answering(self, path: str, rows: int) -> Callable[[Tensor], Tensor]:
        def forward(asked: Tensor) -> Tensor:
            self._inputs[path] = _rows(asked)
            answer = self._values(path, (*asked.shape[:-1], rows))
            factors = self._probe.factors.get(path)
            return answer if factors is None else answer * factors

        return forward

    def _answering_as_if_asked(self, path: str, forward: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def as_if(asked: Tensor) -> Any:
            self._inputs[path] = _rows(asked)
            return forward(self._values(path, tuple(asked.shape)))

        return as_if

    def _scaling(self, path: str, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def scaled(hidden: Tensor) -> Tensor:
            factors = self._probe.factors.get(path)
            return forward(hidden) if factors is None else forward(hidden) * factors

        return scaled

    def _fill(self, path: str, module: nn.Module) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.rand(parameter.shape, generator=self.generator) + 0.5
            setattr(module, name, nn.Parameter(values, requires_grad=False))


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """What differs between two runs."""
    return {name for name, value in before.items() if not close(value, after[name])}


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if found.shape != wanted.shape:
        return False
    return float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def norm_readers(block: TracedBlock, norm: str) -> set[str] | None:
    """Find who reads a norm.

    Args:
        block: the traced block.
        norm: path of the norm.

    Returns:
        Linears and routers that read the norm's output as it is; None where anything else depends on it.
    """
    before = block.run(Probe())
    width = block.norms[norm]
    factors = _distinct_factors(width, block.generator)
    after = block.run(Probe(factors={norm: factors}))
    readers = changed(before, after)
    scaled = all(
        name != OUTPUT and before[name].shape[-1] == width and close(after[name], before[name] * factors)
        for name in readers
    )
    return readers if scaled and readers else None


def rows_that_feed(block: TracedBlock, linear: str, fed: Iterable[str]) -> tuple[str, tuple[int, ...]] | None:
    """Find the linear whose input columns are made of single rows of another's output.

    On one token attention hands its values through, whatever queries and keys say; so each row of the output is
    scaled by a factor of its own, and the input's columns tell where they come from.

    Args:
        block: the traced block.
        linear: path of the linear that may feed another.
        fed: paths of those it may feed; all that have the same input are in the group of one of them.

    Returns:
        The path of the one it feeds, and for each of its K columns the row it comes from; None where it feeds
        none, or something else too.
    """
    rows = block.linears[linear].out_features
    before = block.run(Probe(tokens=1, positive=True))
    # A fused gate and up projection feeds by one half alone.
    parts = [slice(0, rows), slice(rows // 2, rows), slice(0, rows // 2)]
    for part in parts:
        factors = torch.ones(rows)
        factors[part] = _distinct_factors(part.stop - part.start, block.generator)
        after = block.run(Probe(tokens=1, factors={linear: factors}, positive=True))
        for name in fed:
            source = _match((after[name] / before[name])[0], factors[part])
            if source is not None:
                source += part.start
                if _feeds(block, linear, name, source):
                    return name, tuple(source.tolist())
    return None


def holds_queries_or_keys(block: TracedBlock, linear: str, feeding: Iterable[int]) -> bool:
    """Whether some rows of a linear matter only where there are several tokens to choose from.

    Args:
        block: the traced block.
        linear: its path.
        feeding: rows that are known to feed another linear.
    """
    rows = block.linears[linear].out_features
    factors = _distinct_factors(rows, block.generator)
    factors[sorted(set(feeding))] = 1.0
    if bool((factors == 1.0).all()):
        return False
    before, after = (
        block.run(Probe(tokens=1, factors=change, positive=True)) for change in ({}, {linear: factors})
    )
    return not changed(before, after)


def mixes_tokens(block: TracedBlock, module: str, linears: Iterable[str]) -> bool:
    """Whether a module's output at the last token depends on what its linears answer at the first."""
    first = torch.ones(FEW_TOKENS, 1)
    first[0] = -2.0
    runs = []
    for factors in ({}, dict.fromkeys(linears, first)):
        outputs: list[Tensor] = []
        with block.output_of(module, outputs):
            asked = block.run(Probe(factors=factors))
        inside = {name: asked[name] for name in block.linears if name.startswith(f"{module}.") or not module}
        runs.append({name: value[-1] for name, value in inside.items()} | {OUTPUT: outputs[0][-1]})
    return bool(changed(*runs))


def _feeds(block: TracedBlock, linear: str, fed: str, source: Tensor) -> bool:
    """Whether scaling the rows of `source` scales their columns and does nothing else, whatever the answers."""
    factors = torch.ones(block.linears[linear].out_features)
    used = source.unique()
    factors[used] = _distinct_factors(used.numel(), block.generator)
    for loudness in (1.0, _LOUD):
        before = block.run(Probe(loudness=loudness))
        after = block.run(Probe(factors={linear: factors}, loudness=loudness))
        with_same_input = {name for name, value in before.items() if torch.equal(value, before[fed])}
        scaled = close(after[fed], before[fed] * factors[source])
        if not scaled or not changed(before, after) <= with_same_input:
            return False
    return True


def _match(ratios: Tensor, factors: Tensor) -> Tensor | None:
    """The place of each ratio among the factors; None if one is not there."""
    ordered, places = factors.sort()
    right = torch.searchsorted(ordered, ratios).clamp(1, ordered.numel() - 1)
    nearest = torch.where(ratios - ordered[right - 1] < ordered[right] - ratios, right - 1, right)
    if not bool(((ordered[nearest] - ratios).abs() < 1e-5).all()):
        return None
    return places[nearest]


def _distinct_factors(count: int, generator: torch.Generator) -> Tensor:
    return torch.linspace(1.1, 2.9, count)[torch.randperm(count, generator=generator)]


def _rows(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    return tensor.reshape(-1, tensor.shape[-1])


def _matrix(module: nn.Module) -> Tensor | None:
    """The matrix of a module that holds nothing but one and perhaps biases."""
    weight = getattr(module, "weight", None)
    leaf = not any(module.children()) and isinstance(weight, Tensor) and weight.dim() == 2
    return weight if leaf else None


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return not any(module.children()) and isinstance(weight, Tensor) and weight.dim() == 1
