"""Norms of the heads of q and k between one linear for q, k and v and attention, as models are exported."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from awq_tvm.passes.rewrite import Bindings
from awq_tvm.schedules.gpu.head_norm import Part


@dataclass(frozen=True)
class HeadNorms:
    """What was found.

    Args:
        x: [n, features], of whose columns heads are.
        parts: runs of heads, all columns of x in their order.
        weights: of the parts that are normalised.
        head_dim: features of a head.
        eps: of the norms.
    """

    x: relax.Expr
    parts: tuple[Part, ...]
    weights: tuple[relax.Expr, ...]
    head_dim: int
    eps: float


def find_head_norms(bindings: Bindings, var: relax.Expr) -> HeadNorms | None:
    """The norms, where var is x with some runs of its columns normalised by heads of one size.

    That is ``concat([reshape(rms_norm(reshape(x[:, a:b], [n, h, d]))), ..., x[:, c:]], axis=1)``.
    """
    concat = bindings.call(var, "relax.concat")
    if concat is None or not isinstance(concat.args[0], relax.Tuple) or int(concat.attrs.axis) != 1:
        return None
    sources, norms, columns = [], [], []
    for field in concat.args[0].fields:
        norm = _norm_of_heads(bindings, field)
        inside = bindings.call(norm.args[0], "relax.reshape") if norm is not None else None
        part = bindings.call(field if inside is None else inside.args[0], "relax.strided_slice")
        if part is None or len(part.args) > 4 or part.args[0].ty.ndim != 2:
            return None
        axes, begins, ends = ([int(value.value) for value in fields] for fields in part.args[1:4])
        if axes != [1]:
            return None
        sources.append(part.args[0])
        norms.append(norm)
        columns.append((begins[0], ends[0]))
    x, used = sources[0], [norm for norm in norms if norm is not None]
    starts = [begin for begin, _ in columns]
    stops = [end for _, end in columns]
    whole = starts[0] == 0 and starts[1:] == stops[:-1] and stops[-1] == int(x.ty.shape[1])
    sizes = {(int(norm.args[1].ty.shape[0]), float(norm.attrs.epsilon)) for norm in used}
    if not whole or len(sizes) != 1 or not all(source.same_as(x) for source in sources):
        return None
    ((head_dim, eps),) = sizes
    if any((end - begin) % head_dim for begin, end in columns):
        return None
    parts = tuple(
        Part((end - begin) // head_dim, norm is not None)
        for (begin, end), norm in zip(columns, norms, strict=True)
    )
    return HeadNorms(x, parts, tuple(norm.args[1] for norm in used), head_dim, eps)


def _norm_of_heads(bindings: Bindings, field: relax.Expr) -> relax.Call | None:
    """The norm of [n, heads, head_dim] that a matrix of as many columns is a view of."""
    view = bindings.call(field, "relax.reshape") if field.ty.ndim == 2 else None
    norm = bindings.call(view.args[0], "relax.nn.rms_norm") if view is not None else None
    if (
        norm is None
        or [int(axis) for axis in norm.attrs.axes] not in ([-1], [2])
        or norm.args[0].ty.ndim != 3
    ):
        return None
    inside = bindings.call(norm.args[0], "relax.reshape")
    if inside is None or inside.args[0].ty.ndim != 2:
        return None
    # Views do not move anything: back in rows as long, each norm is of a run of columns of its row.
    return norm if int(inside.args[0].ty.shape[1]) == int(field.ty.shape[1]) else None
