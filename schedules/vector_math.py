"""Elementwise functions as plain TIR expressions, so that every lane of a vector is computed at once.

A call to libm inside a vector loop is made one lane at a time; these are polynomials instead. Each takes and
returns a float32 expression of any number of lanes and uses nothing but adds, multiplies, comparisons and bit
casts, so LLVM turns it into vector instructions on every target. The coefficients are least-maximum fits to
the ranges named below. Errors stated are the largest seen over the range, against float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
"""Abramowitz and Stegun 7.1.26: erf(x) = 1 - t * p(t) * exp(-x**2), t = 1 / (1 + 0.3275911 x) for x >= 0."""

_LN2_HIGH = 0.693145751953125
_LN2_LOW = math.log(2) - _LN2_HIGH
"""log(2) in two parts, so that n * _LN2_HIGH is exact in float32 for |n| <= 128."""


Bind = Callable[[Any], Any]
"""Names a value where a kernel is built statement by statement; without one the value becomes a Let."""


def lanes(x: Any) -> int:
    """Number of lanes of an expression."""
    dtype = str(x.ty.dtype)
    return int(dtype.rpartition("x")[2]) if "x" in dtype else 1


def splat(value: Any, count: int, dtype: str = "float32") -> Any:
    """A scalar, Python number or expression, in ``count`` lanes."""
    expression = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return expression if count == 1 else tirx.Broadcast(expression, count)


def exp2(x: Any, bind: Bind | None = None) -> Any:
    """2**x, relative error 2e-7; 0 below -127, infinity from 127.5, NaN stays NaN."""
    count = lanes(x)
    names = _Names(bind)
    clamped = names(_clamp(names(x), -127.0, 128.0))
    whole = names(tirx.nearbyint(clamped))
    fraction = names(clamped - whole)
    return names.close(_scale(splat(1.0, count) + fraction * _horner(fraction, _EXP2_COEFFICIENTS), whole))


def exp(x: Any, bind: Bind | None = None) -> Any:
    """e**x, relative error 2e-7; 0 below -88.03, infinity from 88.4, NaN stays NaN."""
    count = lanes(x)
    names = _Names(bind)
    clamped = names(_clamp(names(x), -127 * math.log(2), 128 * math.log(2)))
    whole = names(tirx.nearbyint(clamped * splat(1 / math.log(2), count)))
    rest = names(clamped - whole * splat(_LN2_HIGH, count) - whole * splat(_LN2_LOW, count))
    return names.close(_scale(splat(1.0, count) + rest * _horner(rest, _EXP_COEFFICIENTS), whole))


def sigmoid(x: Any, bind: Bind | None = None) -> Any:
    """1 / (1 + e**-x)."""
    one = splat(1.0, lanes(x))
    return one / (one + exp(-x, bind))


def silu(x: Any, bind: Bind | None = None) -> Any:
    """X * sigmoid(x)."""
    names = _Names(bind)
    value = names(x)
    return names.close(value / (splat(1.0, lanes(x)) + exp(-value, bind)))


def tanh(x: Any, bind: Bind | None = None) -> Any:
    """The hyperbolic tangent, absolute error 2e-7."""
    one, two = splat(1.0, lanes(x)), splat(2.0, lanes(x))
    return one - two / (one + exp(two * x, bind))


def erf(x: Any, bind: Bind | None = None) -> Any:
    """The error function, absolute error 5e-7."""
    count = lanes(x)
    one = splat(1.0, count)
    names = _Names(bind)
    value = names(x)
    sign = names(tirx.Select(value < splat(0.0, count), splat(-1.0, count), one))
    t = names(one / (one + splat(0.3275911, count) * (sign * value)))
    return names.close(sign * (one - t * _horner(t, _ERF_COEFFICIENTS) * exp(-(value * value), bind)))


def gelu(x: Any, bind: Bind | None = None) -> Any:
    """0.5 * x * (1 + erf(x / sqrt(2))), absolute error 5e-7 * max(1, |x|)."""
    half, one = splat(0.5, lanes(x)), splat(1.0, lanes(x))
    names = _Names(bind)
    value = names(x)
    return names.close(half * value * (one + erf(value * splat(math.sqrt(0.5), lanes(x)), bind)))


def gelu_tanh(x: Any, bind: Bind | None = None) -> Any:
    """0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))), absolute error 5e-7 * max(1, |x|)."""
    count = lanes(x)
    names = _Names(bind)
    value = names(x)
    cubic = value + splat(0.044715, count) * value * value * value
    inner = tanh(splat(math.sqrt(2 / math.pi), count) * cubic, bind)
    return names.close(splat(0.5, count) * value * (splat(1.0, count) + inner))


def sin_cos(angle: Any, bind: Bind) -> tuple[Any, Any]:
    """(sin, cos) of a float32 angle in radians, |angle| < 2**30, absolute error 1e-7.

    The reduction by pi / 2 runs in float64, so a large angle loses nothing to it.
    """
    count = lanes(angle)
    wide = bind(angle.astype(_type("float64", count)))
    turns = bind(tirx.nearbyint(wide * splat(2 / math.pi, count, "float64")))
    rest = bind((wide - turns * splat(math.pi / 2, count, "float64")).astype(_type("float32", count)))
    quadrant = bind(turns.astype(_type("int32", count)))
    square = bind(rest * rest)
    sine = bind(rest + rest * square * _horner(square, _SIN_COEFFICIENTS))
    one, half = splat(1.0, count), splat(0.5, count)
    cosine = bind(one - half * square + square * square * _horner(square, _COS_COEFFICIENTS))
    swap = tirx.bitwise_and(quadrant, splat(1, count, "int32")) == splat(1, count, "int32")
    sine, cosine = bind(tirx.Select(swap, cosine, sine)), bind(tirx.Select(swap, sine, cosine))
    two = splat(2, count, "int32")
    sine_negative = tirx.bitwise_and(quadrant, two) == two
    cosine_negative = tirx.bitwise_and(quadrant + splat(1, count, "int32"), two) == two
    return tirx.Select(sine_negative, -sine, sine), tirx.Select(cosine_negative, -cosine, cosine)


def _type(dtype: str, count: int) -> str:
    return dtype if count == 1 else f"{dtype}x{count}"


class _Names:
    """Gives names to the values of one expression, so that each is computed once."""

    def __init__(self, bind: Bind | None) -> None:
        self.bind = bind
        self.lets: list[tuple[Any, Any]] = []

    def __call__(self, value: Any) -> Any:
        if self.bind is not None:
            return self.bind(value)
        variable = tirx.Var("v", str(value.ty.dtype))
        self.lets.append((variable, value))
        return variable

    def close(self, body: Any) -> Any:
        """The expression with its names around it."""
        for variable, value in reversed(self.lets):
            body = tirx.Let(variable, value, body)
        return body


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


def _scale(mantissa: Any, whole: Any) -> Any:
    """Mantissa * 2**whole, whole being a whole number from -127, which counts as minus infinity, to 128."""
    count = lanes(mantissa)
    exponent = whole.astype(_type("int32", count)) + splat(127, count, "int32")
    power = tirx.shift_left(exponent, splat(23, count, "int32"))
    return mantissa * tirx.reinterpret(_type("float32", count), power)
