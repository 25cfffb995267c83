"""The part of the runtime that runs what TVM compiled: tokens in, logits out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from awq_tvm.bundle.weights import map_weights
from awq_tvm.errors import BundleError, ResourceError, UsageError
from awq_tvm.runtime.candidate_finder import CandidateFinder
from awq_tvm.runtime.tvm_library import TvmRuntime

if TYPE_CHECKING:
    from awq_tvm.bundle.manifest import Manifest
    from awq_tvm.runtime.logit_row import DeviceRow

GRAPHS_VARIABLE = "AWQ_TVM_CUDA_GRAPHS"
OVERLAP_VARIABLE = "AWQ_TVM_LAUNCH_OVERLAP"


class Executor:
    """A loaded bundle and its paged KV cache.

    Args:
        library: the compiled library, verified by the caller.
        weights: safetensors file with the manifest's parameters.
        manifest: of the bundle.
        threads: CPU threads, None for one a processor. TVM's pool starts once in a process, so the first executor
            decides.
        device_library: what brings the GPU, in place of TVM's part for it.
        graphs: launch the kernels of a token as CUDA graphs, where the bundle can and ``AWQ_TVM_CUDA_GRAPHS`` in the
            environment is not 0.

    On GPUs from Hopper on, kernels may begin before the launch before them has ended; none does with
    ``AWQ_TVM_LAUNCH_OVERLAP=0`` in the environment.

    Raises:
        BundleError: the library or the weights are not the manifest's.

    Attributes:
        graphs: whether the kernels of a token are launched as CUDA graphs.
    """

    def __init__(
        self,
        library: Path,
        weights: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        device_library: Path | None = None,
        graphs: bool = True,
    ) -> None:
        # Read when the pool starts, at the first parallel loop; left alone, TVM uses every second processor.
        os.environ["TVM_NUM_THREADS"] = str(threads or _processors())
        self._tvm = TvmRuntime(manifest.target.kind, device_library)
        model = manifest.model
        self.context_length, self.max_sequences = model.context_length, model.max_sequences
        self.prefill_chunk_size, self._vocab_size = model.prefill_chunk_size, model.vocab_size
        overlap = os.environ.get(OVERLAP_VARIABLE) != "0"
        self._vm = self._tvm.load_machine(library, overlap=overlap)
        facts = json.loads(str(self._vm["metadata"]()))
        if facts["fingerprint"] != manifest.target.fingerprint:
            raise BundleError(
                "the library is not the one the manifest describes",
                where=str(library),
                why=f"it was built for {facts['fingerprint']}, the manifest says {manifest.target.fingerprint}",
                fix="build the bundle again with `python -m awq_tvm compile`",
            )
        self._logit_rows = int(facts["max_logit_rows"])
        self._weights = self._load_weights(weights, manifest.parameters)
        self._forward = self._vm["forward"]
        self._cache = self._vm["create_kv_cache"]()
        self.graphs = bool(facts.get("graphs")) and graphs and os.environ.get(GRAPHS_VARIABLE) != "0"
        self._decode = self._bind_decode() if facts.get("decode") else None
        count = int(facts.get("candidates", 0))
        self._finder = CandidateFinder(self._tvm, self._vm["candidates"], count) if count else None
        self._call = {
            name: self._tvm.function(f"vm.builtin.kv_state_{name}")
            for name in ("add_sequence", "remove_sequence", "fork_sequence", "begin_forward", "end_forward")
        }
        self._free_pages = self._tvm.function("vm.builtin.attention_kv_cache_get_num_available_pages")
        self.page_size = int(facts["page_size"])
        self._lengths: dict[int, int] = {}
        self._kept: set[int] = set()
        self._next_id = 0

    def _load_weights(self, path: Path, parameters: Sequence[str]) -> Any:
        arrays = map_weights(path, parameters)
        self.weight_bytes = sum(array.nbytes for array in arrays)
        # On a CPU used where they lie: nothing is read before a kernel touches it. In a list of the runtime's own,
        # which it need not make of a Python list on every call.
        return self._tvm.sequence([self._tvm.constant(array) for array in arrays])

    def _bind_decode(self) -> Any:
        """The function for one token of one sequence, which computes in memory that is allocated here, once.

        So what it is given stays where it is, as graphs need it.
        """
        name = "decode_in_graphs" if self.graphs else "decode"
        workspace = self._vm["decode_workspace"]()
        self._token = self._tvm.tensor(np.zeros(1, np.int32))
        bound = "bound_decode"
        self._vm["save_function"](name, bound, True, self._token, self._cache, *self._weights, *workspace)
        return self._vm[bound]

    def new_sequence(self) -> int:
        """Start a sequence and return its id.

        Raises:
            ResourceError: as many sequences as the bundle has room for are under way.
        """
        self._check_room()
        sequence, self._next_id = self._next_id, self._next_id + 1
        self._call["add_sequence"](self._cache, sequence)
        self._lengths[sequence] = 0
        return sequence

    def fork_sequence(self, parent: int, length: int | None = None, *, kept: bool = False) -> int:
        """Start a sequence with the first tokens of another; whole pages of them are shared, not copied.

        Args:
            parent: the other sequence, which goes on as it was.
            length: how many of its tokens, at least 1; None for all.
            kept: it will only be forked from, never read or written, so it takes up none of the bundle's places.

        Raises:
            UsageError: the parent has fewer tokens than that.
            ResourceError: as for `new_sequence`.
        """
        known = self._lengths[parent]
        length = known if length is None else length
        if not 1 <= length <= known:
            raise UsageError(
                f"{length} tokens of a sequence of {known} cannot be shared", where=f"sequence {parent}"
            )
        if not kept:
            self._check_room()
        sequence, self._next_id = self._next_id, self._next_id + 1
        self._call["fork_sequence"](self._cache, parent, sequence, length)
        self._lengths[sequence] = length
        if kept:
            self._kept.add(sequence)
        return sequence

    @property
    def free_pages(self) -> int:
        """Pages of the cache that no sequence holds."""
        return int(self._free_pages(self._cache))

    def remove_sequence(self, sequence: int) -> None:
        """End a sequence and free its pages."""
        del self._lengths[sequence]
        self._kept.discard(sequence)
        self._call["remove_sequence"](self._cache, sequence)

    def forward(
        self,
        sequences: Sequence[int],
        tokens: Sequence[Sequence[int]],
        *,
        logits: Literal["last", "all"] = "last",
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Append tokens to sequences.

        Args:
            sequences: ids, each once.
            tokens: the new tokens of each, at least one.
            logits: "last" for the logits after each sequence's last token, [len(sequences), vocab_size]; "all"
                for those after every token, in order, [total tokens, vocab_size].

        Raises:
            UsageError: no tokens, a token outside the vocabulary, or a sequence that would outgrow the context.
        """
        self._check(sequences, tokens)
        if len(sequences) > 1 and sum(map(len, tokens)) > self._step(logits):
            # Too long for one call: each sequence for itself.
            parts = [self.forward([s], [t], logits=logits) for s, t in zip(sequences, tokens, strict=True)]
            return np.concatenate(parts)
        results = [self._tvm.array(result) for result in self._results(sequences, tokens, logits)]
        return results[0] if len(results) == 1 else np.concatenate(results)

    def step(
        self, sequences: Sequence[int], tokens: Sequence[Sequence[int]], temperatures: Sequence[float]
    ) -> Sequence[np.ndarray[Any, np.dtype[np.float32]] | DeviceRow]:
        """Append tokens to sequences, of whose logits tokens are to be drawn.

        Args:
            sequences: ids, each once.
            tokens: the new tokens of each, at least one.
            temperatures: at which each is drawn from, 0 for greedily.

        Returns:
            The logits after each sequence's last token, [vocab_size]; where the bundle finds candidates, those, and
            the logits on the device until the next call.

        Raises:
            UsageError: as for `forward`.
        """
        if self._finder is None or (len(sequences) > 1 and sum(map(len, tokens)) > self._step("last")):
            return list(self.forward(sequences, tokens))
        self._check(sequences, tokens)
        (result,) = self._results(sequences, tokens, "last")
        return self._finder.rows(result, temperatures)

    def _results(
        self, sequences: Sequence[int], tokens: Sequence[Sequence[int]], logits: str
    ) -> Iterator[Any]:
        """What calls of the model leave on the device, of rows that are wanted; each read before the next call."""
        if len(sequences) > 1:
            yield self._call_forward(sequences, tokens, logits)
            return
        step = self._step(logits)
        starts = range(0, len(tokens[0]), step)
        for start in starts:
            result = self._call_forward(sequences, [tokens[0][start : start + step]], logits)
            if logits == "all" or start == starts[-1]:
                yield result

    def _check_room(self) -> None:
        if len(self._lengths) - len(self._kept) >= self.max_sequences:
            raise ResourceError(
                f"all {self.max_sequences} sequences of this bundle are in use",
                fix="wait for one to finish, or compile for more",
            )

    def _step(self, logits: str) -> int:
        return self.prefill_chunk_size if logits == "last" else min(self.prefill_chunk_size, self._logit_rows)

    def _check(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        for sequence, new in zip(sequences, tokens, strict=True):
            if not new:
                raise UsageError("there are no tokens to read", where=f"sequence {sequence}")
            # The compiled lookup does not check its indices.
            if min(new) < 0 or max(new) >= self._vocab_size:
                raise UsageError(
                    "a token id is outside the vocabulary",
                    where=f"sequence {sequence}",
                    why=f"ids run from {min(new)} to {max(new)}, the vocabulary has {self._vocab_size}",
                )
            length = self._lengths[sequence] + len(new)
            if length > self.context_length:
                raise UsageError(
                    f"the sequence would be {length} tokens long",
                    why=f"the bundle was compiled for a context of {self.context_length}",
                    fix="shorten the prompt, or compile with a larger --context-length",
                )

    def _call_forward(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]], logits: str) -> Any:
        lengths = [len(new) for new in tokens]
        shape = self._tvm.shape
        self._call["begin_forward"](self._cache, shape(list(sequences)), shape(lengths))
        if self._decode is not None and lengths == [1]:
            self._tvm.write(self._token, np.array(tokens[0], np.int32))
            result = self._decode()
        else:
            result = self._forward_any(lengths, tokens, logits)
        self._call["end_forward"](self._cache)
        for sequence, length in zip(sequences, lengths, strict=True):
            self._lengths[sequence] += length
        return result

    def _forward_any(self, lengths: Sequence[int], tokens: Sequence[Sequence[int]], logits: str) -> Any:
        flat = np.fromiter((token for new in tokens for token in new), np.int32, sum(lengths))
        positions = np.arange(len(flat)) if logits == "all" else np.cumsum(lengths) - 1
        result, _ = self._forward(
            self._tvm.tensor(flat), self._tvm.tensor(positions.astype(np.int32)), self._cache, self._weights
        )
        return result


def _processors() -> int:
    """Processors this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
