"""Rotary position embedding: what a config.json asks for, as one table of frequencies.

Every scaling kind changes only the table of inverse frequencies and one scale, so both are worked out here,
in Python, and the kernels know nothing of kinds: angle[position, i] = position * inverse_frequency[i].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from awq_tvm.errors import CheckpointError, UnsupportedError

Floats = np.ndarray[Any, np.dtype[np.float32]]
LEGAL_KINDS = ("default", "linear", "llama3", "yarn")
_WHERE = "config.json rope_parameters"


@dataclass(frozen=True)
class RopeConfig:
    """A rotary embedding over ``head_dim`` features, pair (i, i + head_dim / 2) turned by the i-th angle.

    The fields keep their config.json names. Those that the kind does not use are ignored.

    Args:
        head_dim: features of one head, even.
        theta: base of the frequencies, > 1.
        kind: "default", "linear", "llama3" or "yarn".
        factor: how many times longer the context became, >= 1.
        original_max_position_embeddings: context length in tokens before scaling (llama3, yarn).
        low_freq_factor: llama3, wavelengths above original / low_freq_factor are stretched by ``factor``.
        high_freq_factor: llama3, wavelengths below original / high_freq_factor are kept.
        beta_fast: yarn, turns in the original context above which a frequency is kept.
        beta_slow: yarn, turns in the original context below which a frequency is divided by ``factor``.
        truncate: yarn, round the blending range outwards to whole dimensions.
        attention_factor: yarn, scale of cos and sin; None derives it from ``factor`` and the two mscales.
        mscale: yarn, see ``attention_scale``.
        mscale_all_dim: yarn, see ``attention_scale``.

    Raises:
        UnsupportedError: the kind is unknown, or ``head_dim`` is odd.
        CheckpointError: a number is not finite or out of its range.
    """

    head_dim: int
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        """Prove the numbers usable."""
        if self.kind not in LEGAL_KINDS:
            raise UnsupportedError(
                f"rope kind {self.kind!r} is not known",
                where=_WHERE,
                fix=f"use one of {', '.join(LEGAL_KINDS)}",
            )
        if self.head_dim <= 0 or self.head_dim % 2:
            raise UnsupportedError(
                f"head_dim {self.head_dim} cannot be rotated in pairs", where="config.json"
            )
        self._need(math.isfinite(self.theta) and self.theta > 1, "rope_theta", self.theta, "a number above 1")
        if self.kind == "default":
            return
        self._need(math.isfinite(self.factor) and self.factor >= 1, "factor", self.factor, "a number >= 1")
        if self.kind == "linear":
            return
        original = self.original_max_position_embeddings
        self._need(original > 0, "original_max_position_embeddings", original, "a number of tokens above 0")
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            self._need(
                0 < low < high < math.inf, "high_freq_factor", high, f"above low_freq_factor {low} > 0"
            )
            return
        slow, fast = self.beta_slow, self.beta_fast
        self._need(0 < slow <= fast < math.inf, "beta_fast", fast, f"at least beta_slow {slow} > 0")
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            self._need(value is None or 0 <= value < math.inf, name, value, "a finite number >= 0")

    @staticmethod
    def _need(condition: bool, name: str, found: object, needed: str) -> None:
        if not condition:
            raise CheckpointError(f"{name} is {found}", where=_WHERE, why=f"it must be {needed}")

    @staticmethod
    def from_hugging_face(config: dict[str, Any], head_dim: int) -> RopeConfig:
        """Read config.json, old (``rope_theta`` and ``rope_scaling``) or new (``rope_parameters``).

        Args:
            config: config.json.
            head_dim: features of one head.

        Raises:
            UnsupportedError: an unknown kind, or a rotation of a part of the head.
            CheckpointError: a parameter is missing, no number, or out of its range.
        """
        given = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(given, dict):
            raise CheckpointError("the rope parameters are no object", where=_WHERE)
        partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if partial not in (None, 1, 1.0):
            raise UnsupportedError(f"partial_rotary_factor {partial} is not supported", where=_WHERE)
        kind = given.get("rope_type", given.get("type", "default")) or "default"
        fields: dict[str, Any] = {"head_dim": head_dim, "kind": str(kind)}
        fields["theta"] = _number(given.get("rope_theta", config.get("rope_theta", 10000.0)), "rope_theta")
        required = {
            "linear": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": ("factor",),
        }.get(str(kind), ())
        for name in required:
            if given.get(name) is None:
                raise CheckpointError(f"{name} is missing", where=_WHERE, why=f"rope kind {kind!r} needs it")
            fields[name] = _number(given[name], name)
        if kind == "yarn":
            for name in ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"):
                if given.get(name) is not None:
                    fields[name] = _number(given[name], name)
            fields["truncate"] = bool(given.get("truncate", True))
            original = given.get("original_max_position_embeddings") or config.get(
                "max_position_embeddings", 0
            )
            fields["original_max_position_embeddings"] = _number(original, "original_max_position_embeddings")
        if "original_max_position_embeddings" in fields:
            fields["original_max_position_embeddings"] = int(fields["original_max_position_embeddings"])
        return RopeConfig(**fields)

    @property
    def attention_scale(self) -> float:
        """Yarn's scale of cos and sin, 1 for the other kinds.

        The kernels rotate without it: multiply the softmax scale by its square instead.
        """
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._yarn_mscale(self.mscale) / self._yarn_mscale(self.mscale_all_dim)
        return self._yarn_mscale(1.0)

    def inverse_frequencies(self) -> Floats:
        """Radians a position for each pair of features, [head_dim // 2] float32.

        Rounded to float32 where transformers rounds: at position 8192 one unit in the last place is 5e-4 rad.
        """
        exponent = np.arange(0, self.head_dim, 2).astype(np.float32) / np.float32(self.head_dim)
        powers = np.power(np.float64(self.theta), exponent.astype(np.float64)).astype(np.float32)
        inverse: Floats = np.float32(1) / powers
        if self.kind == "linear":
            inverse = inverse / np.float32(self.factor)
        elif self.kind == "llama3":
            inverse = self._llama3(inverse)
        elif self.kind == "yarn":
            inverse = self._yarn(powers)
        return inverse.astype(np.float32)

    def _llama3(self, inverse: Floats) -> Floats:
        """Keep short wavelengths, divide long ones by ``factor``, blend between."""
        f32 = np.float32
        original = self.original_max_position_embeddings
        wavelength = f32(2 * math.pi) * (f32(1) / inverse)  # two roundings, as PyTorch's scalar / tensor
        long = wavelength > f32(original / self.low_freq_factor)
        short = wavelength < f32(original / self.high_freq_factor)
        scaled = np.where(long, inverse / f32(self.factor), inverse)
        span = f32(self.high_freq_factor - self.low_freq_factor)
        smooth = (f32(original) * (f32(1) / wavelength) - f32(self.low_freq_factor)) / span
        blended = (f32(1) - smooth) * scaled / f32(self.factor) + smooth * scaled
        result: Floats = np.where(~long & ~short, blended, scaled)
        return result

    def _yarn(self, powers: Floats) -> Floats:
        """Blend kept and divided frequencies over the dimensions between the two turn counts."""
        f32 = np.float32
        low, high = self._yarn_dimension(self.beta_fast), self._yarn_dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_dim - 1)
        if low == high:
            high += 0.001
        ramp = (np.arange(self.head_dim // 2, dtype=f32) - f32(low)) / f32(high - low)
        kept = f32(1) - np.clip(ramp, f32(0), f32(1))
        divided = f32(1) / (f32(self.factor) * powers)
        blended: Floats = divided * (f32(1) - kept) + (f32(1) / powers) * kept
        return blended

    def _yarn_dimension(self, turns: float) -> float:
        """The (fractional) pair that turns this many times in the original context."""
        wavelength = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return self.head_dim * math.log(wavelength) / (2 * math.log(self.theta))

    def _yarn_mscale(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def _number(value: object, name: str) -> float:
    """A finite JSON number as float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{name} is {value!r}", where=_WHERE, why="it must be a finite number")
    return float(value)
