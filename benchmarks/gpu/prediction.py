"""What counts say of a time: for how long each part of a GPU is busy at least. Bounds, and nothing that was measured.

A kernel takes as long as the busiest part of it: memory, the second-level cache, what issues instructions, or tensor
cores. The latter two are those of the SM with the most to do, so that a last round of few tiles is a whole one.
Beside it stands the roof of a float16 product, cuBLAS at its best: reading all weights, or multiplying at the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .count_table import instructions_of
from .pack import Case
from .report import BARS

ISSUED = 4
"""Instructions of warps that leave an SM in a cycle."""

LAUNCH_S = 1e-6
"""Of a kernel behind another in a graph, from the last byte of the one to the first of the other: assumed."""

_HALF = 2


@dataclass(frozen=True)
class Machine:
    """A GPU.

    Attributes:
        name: it.
        sms: streaming multiprocessors.
        hertz: of their clock, at which the published peak is reached.
        read: bytes a second from memory.
        l2: bytes a second from the second-level cache.
        between: bytes a second of the shared memory of other blocks of a cluster, all SMs together.
        multiply: float16 products and sums of an SM in a cycle.
        of_mma: the part of it that `mma.sync` reaches.
    """

    name: str
    sms: int
    hertz: float
    read: float
    l2: float
    between: float
    multiply: int
    of_mma: float


MACHINES = {
    # Data sheet: 3.35 TB/s, and 989 TFLOP/s, 4096 operations of an SM in a cycle at 1.83 GHz. The second-level cache
    # mma.sync and the shared memory of other blocks as others have measured them, about (arXiv:2402.13499 and
    # others): NVIDIA publishes none of them.
    "sm_90": Machine("H100 SXM", 132, 1.83e9, 3.35e12, 5.5e12, 2.6e12, 2048, 0.62),
}


@dataclass(frozen=True)
class Prediction:
    """Cycles that a linear takes at least.

    Attributes:
        reading: from memory, every byte once.
        caching: what blocks ask of the second-level cache.
        issuing: instructions of the SM with most blocks.
        multiplying: likewise its tensor cores.
        adding: the kernels that add parts of k, or the reading of what other blocks of a cluster have left.
        launches: how many kernels.
        overlapping: how many of them may begin before what was launched before has ended.
        roof: a float16 product of the same shape.
        hertz: of the clock.
    """

    reading: float
    caching: float
    issuing: float
    multiplying: float
    adding: float
    launches: int
    overlapping: int
    roof: float
    hertz: float

    @property
    def cycles(self) -> float:
        """Of all of it."""
        return max(self.reading, self.caching, self.issuing, self.multiplying) + self.adding

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "memory": self.reading,
            "L2": self.caching,
            "issue": self.issuing,
            "tensor cores": self.multiplying,
        }
        return max(parts, key=lambda name: parts[name])

    def times_the_roof(self, launch_s: float = 0.0, *, overlap: bool = False) -> float:
        """How many times as fast as cuBLAS at its roof, where each launch costs so many seconds.

        Args:
            launch_s: of a launch that begins when the one before it has ended.
            overlap: those of ours that may begin earlier cost nothing; less they cannot.
        """
        launch = launch_s * self.hertz
        paid = self.launches - (self.overlapping if overlap else 0)
        return (self.roof + launch) / (self.cycles + paid * launch)


def predict(case: Case, m: int, machine: Machine) -> Prediction:
    """The bounds of one linear and M; machine code must have been counted."""
    counts, launches = case.counts[m], case.launches[m]
    kernel = case.kernels[launches[0].kernel]
    loop = kernel["loop_instructions"]
    share = counts["most_steps"] / counts["tile_steps"]
    once = counts["blocks"] * counts["warps"] * (kernel["instructions"] - loop)
    peak = machine.multiply * (1 if m in case.rounds_weights_at else machine.of_mma)
    added = [
        one.blocks * one.block[0] / 32 * case.kernels[one.kernel]["instructions"] for one in launches[1:]
    ]
    n, k = case.spec["out_features"], case.spec["in_features"]
    read, cached = machine.read / machine.hertz, machine.l2 / machine.hertz
    return Prediction(
        reading=counts["floor_bytes"] / read,
        caching=counts["copied_bytes"] / cached,
        issuing=share * (counts["rounds"] * loop + once) / ISSUED,
        multiplying=share * counts["products"] * 16 * 8 * 16 / peak,
        adding=sum(added) / (ISSUED * machine.sms)
        + counts["exchanged_bytes"] * machine.sms * machine.hertz / machine.between,
        launches=len(launches),
        overlapping=sum(one.overlaps for one in launches),
        roof=max(_HALF * (k * n + m * k + m * n) / read, m * n * k / (machine.multiply * machine.sms)),
        hertz=machine.hertz,
    )


HEADER = (
    "K x N",
    "M",
    "by",
    "memory",
    "L2",
    "issue",
    "tensor cores",
    "adding",
    "bound by",
    "us",
    "roof of fp16",
    "x",
    "x, 1 us a launch",
    "x, launches overlapped",
    "bar",
)


def table(cases: Sequence[Case]) -> list[str]:
    """Predictions as lines of Markdown, cycles by what they are of; none where nothing is known of the GPU."""
    machine = MACHINES.get(cases[0].arch)
    if machine is None or not all(
        "loop_instructions" in one for case in cases for one in case.kernels.values()
    ):
        return []
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for case in cases:
        for m in case.launches:
            found = predict(case, m, machine)
            cells = (
                case.shape,
                str(m),
                instructions_of(case, m),
                *(
                    f"{one:.0f}"
                    for one in (
                        found.reading,
                        found.caching,
                        found.issuing,
                        found.multiplying,
                        found.adding,
                    )
                ),
                found.bound,
                f"{found.cycles / found.hertz * 1e6:.2f}",
                f"{found.roof / found.hertz * 1e6:.2f}",
                f"{found.times_the_roof():.2f}",
                f"{found.times_the_roof(LAUNCH_S):.2f}",
                f"{found.times_the_roof(LAUNCH_S, overlap=True):.2f}",
                f"{BARS[m]}" if m in BARS else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines
