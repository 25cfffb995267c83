"""Elementwise functions as plain TIR expressions, so that every lane of a vector is computed at once.

A call to libm inside a vector loop is made one lane at a time; these are polynomials instead. Each takes and
returns a float32 expression of any number of lanes and uses nothing but adds, multiplies, comparisons and bit
casts, so LLVM turns it into vector instructions on every target. The coefficients are least-maximum fits to the
ranges named below. Errors stated are the largest seen over the range, against float64.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

_EXP2_COEFFICIENTS = (
    0.6931471824645996,
    0.24022647738456726,
    0.055503323674201965,
    0.00961843691766262,
    0.0013398875016719103,
    0.00015353361959569156,
)
"""2**f = 1 + f * p(f) on |f| <= 1/2, relative error 2e-9 before rounding."""

_EXP_COEFFICIENTS = (
    1.0,
    0.4999999403953552,
    0.16666431725025177,
    0.04166800156235695,
    0.00837415549904108,
    0.0013843653723597527,
)
"""e**r = 1 + r * p(r) on |r| <= log(2) / 2, relative error 2e-9 before rounding."""

_SIN_COEFFICIENTS = (-0.16666654943614784, 0.00833217814063612, -0.00019517298224153528)
"""sin(r) = r + r**3 * p(r**2) on |r| <= pi / 4."""

_COS_COEFFICIENTS = (0.04166664686631508, -0.001388736750937058, 2.4438450848524938e-05)
"""cos(r) = 1 - r**2 / 2 + r**4 * p(r**2) on |r| <= pi / 4."""

_ERF_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Abramowitz and Stegun 7.1.26: erf(x) = 1 - t * p(t) * exp(-x**2), t = 1 / (1 + 0.3275911 x), within 1.5e-7."""

_ROUND_MAGIC = 12582912.0
"""1.5 * 2**23: adding it rounds a float32 below 2**22 to a whole number, kept in the low bits of the sum."""

_LN2_HIGH = 0.693145751953125
_LN2_LOW = math.log(2) - _LN2_HIGH
"""log(2) in two parts, so that n * _LN2_HIGH is exact in float32 for |n| <= 128."""


def lanes(x: Any) -> int:
    """Number of lanes of an expression."""
    dtype = str(x.ty.dtype)
    return int(dtype.rpartition("x")[2]) if "x" in dtype else 1


def splat(value: Any, count: int, dtype: str = "float32") -> Any:
    """A scalar, Python number or expression, in ``count`` lanes."""
    expression = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return expression if count == 1 else tirx.Broadcast(expression, count)


def exp2(x: Any) -> Any:
    """2**x, relative error 2e-7; 0 below -127, infinity from 127.5, NaN stays NaN."""
    count = lanes(x)
    clamped, shifted, fraction = _variables(count, "clamped", "shifted", "fraction")
    magic = splat(_ROUND_MAGIC, count)
    body = _scale(1 + fraction * _horner(fraction, _EXP2_COEFFICIENTS), shifted)
    body = tirx.Let(fraction, clamped - (shifted - magic), body)
    body = tirx.Let(shifted, clamped + magic, body)
    return tirx.Let(clamped, _clamp(x, -127.0, 128.0), body)


def exp(x: Any) -> Any:
    """e**x, relative error 2e-7; 0 below -88.03, infinity from 88.4, NaN stays NaN."""
    count = lanes(x)
    clamped, shifted, whole, rest = _variables(count, "clamped", "shifted", "whole", "rest")
    magic = splat(_ROUND_MAGIC, count)
    body = _scale(1 + rest * _horner(rest, _EXP_COEFFICIENTS), shifted)
    body = tirx.Let(rest, clamped - whole * splat(_LN2_HIGH, count) - whole * splat(_LN2_LOW, count), body)
    body = tirx.Let(whole, shifted - magic, body)
    body = tirx.Let(shifted, clamped * splat(1 / math.log(2), count) + magic, body)
    return tirx.Let(clamped, _clamp(x, -127 * math.log(2), 128 * math.log(2)), body)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x)."""
    one = splat(1.0, lanes(x))
    return one / (one + exp(-x))


def silu(x: Any) -> Any:
    """X * sigmoid(x)."""
    return _bound(x, lambda v: v / (splat(1.0, lanes(x)) + exp(-v)))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent, absolute error 2e-7."""
    one, two = splat(1.0, lanes(x)), splat(2.0, lanes(x))
    return one - two / (one + exp(two * x))


def erf(x: Any) -> Any:
    """The error function, absolute error 5e-7."""
    count = lanes(x)
    one = splat(1.0, count)

    def of(v: Any) -> Any:
        (t,) = _variables(count, "t")
        sign = tirx.Select(v < splat(0.0, count), splat(-1.0, count), one)
        tail = t * _horner(t, _ERF_COEFFICIENTS) * exp(-(v * v))
        return sign * tirx.Let(t, one / (one + splat(0.3275911, count) * (sign * v)), one - tail)

    return _bound(x, of)


def gelu(x: Any) -> Any:
    """0.5 * x * (1 + erf(x / sqrt(2))), absolute error 5e-7 * max(1, |x|)."""
    half, one = splat(0.5, lanes(x)), splat(1.0, lanes(x))
    return _bound(x, lambda v: half * v * (one + erf(v * splat(math.sqrt(0.5), lanes(x)))))


def gelu_tanh(x: Any) -> Any:
    """0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))), absolute error 5e-7 * max(1, |x|)."""
    count = lanes(x)

    def of(v: Any) -> Any:
        inner = splat(math.sqrt(2 / math.pi), count) * (v + splat(0.044715, count) * v * v * v)
        return splat(0.5, count) * v * (splat(1.0, count) + tanh(inner))

    return _bound(x, of)


def sin_cos(angle: Any) -> tuple[Any, Any]:
    """(sin, cos) of a float32 angle in radians, |angle| < 2**30, absolute error 1e-7.

    The reduction by pi / 2 runs in float64, so a large angle loses nothing to it.
    """
    count = lanes(angle)
    wide = angle.astype(_type("float64", count))
    turns = tirx.nearbyint(wide * splat(2 / math.pi, count, "float64"))
    rest = (wide - turns * splat(math.pi / 2, count, "float64")).astype(_type("float32", count))
    quadrant = turns.astype(_type("int32", count))
    square = rest * rest
    sine = rest + rest * square * _horner(square, _SIN_COEFFICIENTS)
    one, half = splat(1.0, count), splat(0.5, count)
    cosine = one - half * square + square * square * _horner(square, _COS_COEFFICIENTS)
    swap = tirx.bitwise_and(quadrant, splat(1, count, "int32")) == splat(1, count, "int32")
    sine, cosine = tirx.Select(swap, cosine, sine), tirx.Select(swap, sine, cosine)
    two = splat(2, count, "int32")
    sine_negative = tirx.bitwise_and(quadrant, two) == two
    cosine_negative = tirx.bitwise_and(quadrant + splat(1, count, "int32"), two) == two
    return tirx.Select(sine_negative, -sine, sine), tirx.Select(cosine_negative, -cosine, cosine)


def _type(dtype: str, count: int) -> str:
    return dtype if count == 1 else f"{dtype}x{count}"


def _variables(count: int, *names: str) -> tuple[Any, ...]:
    return tuple(tirx.Var(name, _type("float32", count)) for name in names)


def _bound(x: Any, function: Any) -> Any:
    """``function(x)`` with x evaluated once."""
    (value,) = _variables(lanes(x), "x")
    return tirx.Let(value, x, function(value))


def _clamp(x: Any, low: float, high: float) -> Any:
    """X within [low, high]; a NaN compares false and so passes through."""
    count = lanes(x)
    below = tirx.Select(x > splat(high, count), splat(high, count), x)
    return tirx.Select(x < splat(low, count), splat(low, count), below)


def _horner(x: Any, coefficients: tuple[float, ...]) -> Any:
    count = lanes(x)
    value = splat(coefficients[-1], count)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + splat(coefficient, count)
    return value


def _scale(mantissa: Any, shifted: Any) -> Any:
    """Mantissa * 2**n, n being the whole number in the low bits of ``shifted``; 2**-127 counts as 0."""
    count = lanes(mantissa)
    integer = _type("int32", count)
    exponent = tirx.reinterpret(integer, shifted) + splat(127, count, "int32")
    power = tirx.shift_left(exponent, splat(23, count, "int32"))
    return mantissa * tirx.reinterpret(_type("float32", count), power)
