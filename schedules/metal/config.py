"""The sizes a SIMD-group matmul is built with, proved consistent when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from awq_tvm.errors import UnsupportedError

LANES = 32
"""Threads of a SIMD group, on every Apple GPU."""

CHUNK = 32
"""k that a lane takes of a row at once, a part of one group: 16 bytes of codes of up to 4 bits."""

SIDE = 8
"""Of the matrices that a SIMD group multiplies."""

QUAD = 4
"""Outputs whose scales and zero points lie side by side."""

MAX_SUMS = 16
"""Matrices of sums that a SIMD group may hold: 32 registers of each lane."""

HALF_BYTES, FLOAT_BYTES = 2, 4


@dataclass(frozen=True)
class FewConfig:
    """A kernel for a few tokens: a SIMD group sums some outputs, its lanes divide k.

    Attributes:
        tokens: the largest M.
        rows: outputs of a SIMD group, which share its reads of x: 1, 2 or 4.
        simdgroups: of a threadgroup.
    """

    tokens: int
    rows: int = QUAD
    simdgroups: int = 2

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        _require(self.rows in (1, 2, QUAD), f"rows is {self.rows}, and not 1, 2 or {QUAD}")
        _require(1 <= self.simdgroups <= 32, f"{self.simdgroups} SIMD groups do not make a threadgroup")
        # In the end each lane finishes one of them.
        _require(1 <= self.tokens * self.rows <= LANES, f"{self.tokens} x {self.rows} sums for {LANES} lanes")

    @property
    def block_rows(self) -> int:
        """Outputs of a threadgroup."""
        return self.rows * self.simdgroups


@dataclass(frozen=True)
class TileConfig:
    """A kernel for many tokens: x and decoded weights pass through threadgroup memory.

    Attributes:
        tokens: of a threadgroup's tile.
        rows: outputs of the tile.
        token_groups: SIMD groups along the tokens.
        row_groups: SIMD groups along the outputs.
        depth: k in threadgroup memory at a time.
    """

    tokens: int
    rows: int
    token_groups: int
    row_groups: int
    depth: int = 64

    def __post_init__(self) -> None:
        """Prove the sizes consistent."""
        _require(self.token_groups >= 1 and self.row_groups >= 1, "there must be SIMD groups")
        _require(self.threads <= 1024, f"{self.threads} threads do not make a threadgroup")
        for name, size, groups in (
            ("tokens", self.tokens, self.token_groups),
            ("rows", self.rows, self.row_groups),
        ):
            _require(size > 0 and size % (SIDE * groups) == 0, f"{name} is {size} for {groups} SIMD groups")
        _require(
            self.own_tokens * self.own_rows <= MAX_SUMS * SIDE * SIDE, "the sums do not fit the registers"
        )
        # A staged slice of sums is read by whole SIMD groups.
        _require(self.own_rows * SIDE % LANES == 0, "the outputs of a SIMD group do not fill its lanes")
        _require(self.depth > 0 and self.depth % CHUNK == 0, f"depth is {self.depth}, no multiple of {CHUNK}")
        _require(
            self.tokens * self.depth % (SIDE * self.threads) == 0, "the threads do not divide a tile of x"
        )
        codes, odd = divmod(self.rows * self.depth, self.threads)
        _require(odd == 0 and codes in (8, 16, CHUNK), "the threads do not divide a tile of weights")

    @property
    def threads(self) -> int:
        """Of a threadgroup."""
        return LANES * self.token_groups * self.row_groups

    @property
    def own_tokens(self) -> int:
        """Tokens of a SIMD group."""
        return self.tokens // self.token_groups

    @property
    def own_rows(self) -> int:
        """Outputs of a SIMD group."""
        return self.rows // self.row_groups

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory: a tile of x and one of weights; in the end eight tokens' sums of each SIMD group."""
        tiles = HALF_BYTES * self.depth * (self.tokens + self.rows)
        return max(tiles, FLOAT_BYTES * SIDE * self.rows * self.token_groups)


@dataclass(frozen=True)
class SimdgroupConfig:
    """The kernels of one linear, by M.

    Attributes:
        few: up to their ``tokens``, in rising order.
        tiles: the same; the last one serves every larger M.
    """

    few: tuple[FewConfig, ...]
    tiles: tuple[TileConfig, ...]

    def __post_init__(self) -> None:
        """Prove that there is a kernel for every M, and one only."""
        limits = [few.tokens for few in self.few] + [tile.tokens for tile in self.tiles]
        _require(bool(self.tiles), "there is no kernel for many tokens")
        _require(limits == sorted(set(limits)), f"the kernels' tokens {limits} do not rise")

    @property
    def threadgroup_bytes(self) -> int:
        """The most threadgroup memory of any kernel."""
        return max(tile.threadgroup_bytes for tile in self.tiles)


def default_config(out_features: int, gpu_cores: int | None) -> SimdgroupConfig:
    """What suits a linear before anything was measured.

    Args:
        out_features: N; few outputs are spread over more SIMD groups.
        gpu_cores: of the chip, 8 where unknown. Each wants some sixteen SIMD groups to hide its latencies.
    """
    wanted = 16 * (gpu_cores or 8)
    rows = next((rows for rows in (QUAD, 2) if out_features >= rows * wanted), 1)
    few = tuple(FewConfig(tokens, rows) for tokens in (1, 4, 8))
    return SimdgroupConfig(
        few, (TileConfig(16, 64, 1, 4), TileConfig(32, 64, 2, 2), TileConfig(64, 64, 2, 2))
    )


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise UnsupportedError("This SIMD-group configuration is not consistent", why=why)
