"""Beginnings of prompts that stay in the cache, so that the next prompt that begins alike need not be read there.

A prompt that has been read is kept as a sequence of its own, up to its last whole part; a later one is forked from
it, which shares its pages. What is kept longest without use goes first when pages are short.

Nothing of an answer may depend on what happens to be kept. So prompts are read in parts of one size whether or not
any of it is kept, and only whole parts are shared: what a token leaves in the cache depends on how prompts are cut.
And TVM's cache computes attention over the first run of a sequence and over the rest apart where it was ever forked,
and adds them up, which rounds differently: so each sequence is forked after its first part (`keep` does that), and
all have the same two runs. With that the logits are the same bits, which the tests hold it to.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class ForkingExecutor(Protocol):
    """What is needed of `runtime.executor.Executor`."""

    page_size: int

    def fork_sequence(self, parent: int, length: int | None = None, *, kept: bool = False) -> int:
        """Start a sequence with the first tokens of another."""
        ...

    def remove_sequence(self, sequence: int) -> None:
        """Forget a sequence and free its pages."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A beginning in the cache.

    Attributes:
        sequence: that holds it.
        names: of its parts, each by all tokens up to its end.
        runs: numbers of the pieces of cache that its parts lie in; beginnings that share pages share numbers.
    """

    sequence: int
    names: tuple[bytes, ...]
    runs: tuple[int, ...]


def names_of_parts(prompt: Sequence[int], part: int) -> tuple[bytes, ...]:
    """A name for each whole part of a prompt, which only a prompt with the same tokens up to its end shares."""
    names, digest = [], b""
    for end in range(part, len(prompt) + 1, part):
        tokens = np.asarray(prompt[end - part : end], np.int64).tobytes()
        digest = hashlib.sha256(digest + tokens).digest()
        names.append(digest)
    return tuple(names)


class PrefixCache:
    """Keeps beginnings and finds them; all by the thread that owns the executor.

    Args:
        executor: whose cache they are in.
        part: tokens of a part, a multiple of the executor's pages.

    Attributes:
        pages: of the cache that kept beginnings hold, shared ones once.
        evictions: beginnings given up because pages were short.
    """

    def __init__(self, executor: ForkingExecutor, part: int) -> None:
        self.part, self.pages, self.evictions = part, 0, 0
        self._executor = executor
        self._kept: OrderedDict[Kept, None] = OrderedDict()  # the one used last stands last
        self._holders: dict[bytes, list[Kept]] = {}
        self._users: Counter[int] = Counter()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """How many beginnings are kept."""
        return len(self._kept)

    def find(self, names: Sequence[bytes]) -> tuple[Kept, int] | None:
        """What shares most of a prompt, and how many tokens.

        Args:
            names: of its whole parts before the last token, which is always left to be read.
        """
        for count in range(len(names), 0, -1):
            holders = self._holders.get(names[count - 1])
            if holders:
                self._kept.move_to_end(holders[-1])
                return holders[-1], count * self.part
        return None

    def new_runs(self, count: int) -> tuple[int, ...]:
        """Numbers for parts that were read anew."""
        return tuple(itertools.islice(self._numbers, count))

    def keep(self, sequence: int, names: tuple[bytes, ...], runs: Sequence[int]) -> None:
        """Keep a sequence's whole parts.

        Args:
            sequence: that begins with them; it goes on as it was.
            names: of the parts, at least one.
            runs: of them, and maybe of more.
        """
        # Forked even if it is kept already: the fork is what makes this sequence one of two runs.
        fork = self._executor.fork_sequence(sequence, len(names) * self.part, kept=True)
        holders = self._holders.get(names[-1])
        if holders:
            self._executor.remove_sequence(fork)
            self._kept.move_to_end(holders[-1])
            return
        for older in {kept for name in names for kept in self._holders.get(name, ())}:
            if older.names[-1] in names:
                self._drop(older)
        kept = Kept(fork, names, tuple(runs[: len(names)]))
        self._kept[kept] = None
        for name in names:
            self._holders.setdefault(name, []).append(kept)
        self._users.update(kept.runs)
        self._count_pages()

    def give_up_oldest(self, spare: Kept | None = None) -> bool:
        """Free what was used longest ago, but for `spare`; return whether there was any."""
        oldest = next((kept for kept in self._kept if kept is not spare), None)
        if oldest is None:
            return False
        self._drop(oldest)
        self.evictions += 1
        return True

    def clear(self) -> None:
        """Free everything."""
        for kept in list(self._kept):
            self._drop(kept)

    def _drop(self, kept: Kept) -> None:
        del self._kept[kept]
        self._executor.remove_sequence(kept.sequence)
        for name in kept.names:
            self._holders[name].remove(kept)
            if not self._holders[name]:
                del self._holders[name]
        self._users -= Counter(kept.runs)
        self._count_pages()

    def _count_pages(self) -> None:
        self.pages = len(self._users) * (self.part // self._executor.page_size)
