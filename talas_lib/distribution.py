"""Several processes that train one student together, or fill one cache: who does what, and how the parts come together.

Accelerate starts them (`accelerate launch`, `notebook_launcher`); `join` reads what it set. A step's batch is the same on every
process, in the order of the one seed: process r of W encodes sentences r, r + W, ... of it, the vectors are gathered, and every
process computes the whole loss on all of them. So W processes with batches of N sentences each take the step that one process
takes with W * N, in-batch terms included, and a run's parameters and its id say nothing of W.

Gradients: what reaches the student goes through a process's own sentences and is summed; the heads see all vectors on every
process and their gradients, equal but for rounding, are averaged. Norms over gradients are then norms of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from talas_lib.errors import TalasError

T = TypeVar("T")


def join(device: str = "auto") -> Ranks | None:
    """Meet the other processes of this launch; None where it is one alone. device: cpu, cuda or auto (cuda where there is one).

    On GPUs each process gets its own. TalasError for more processes than GPUs on a machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        on_cpu = device == "cpu" or not torch.cuda.is_available()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not on_cpu and here > torch.cuda.device_count():
            raise TalasError(
                f"{here} processes on a machine with {torch.cuda.device_count()} GPUs; launch as many as there"
                " are, or `-p device cpu`"
            )
        PartialState(cpu=on_cpu)
    return current()


def current() -> Ranks | None:
    """This process among those that have joined; None for one alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Ranks(dist.get_rank(), dist.get_world_size())


def is_first() -> bool:
    """Whether this process is the one that writes what all have made: the first, or the only one."""
    ranks = current()
    return ranks is None or ranks.number == 0


def first_says(value: Any) -> Any:
    """The first process's value, for all of them."""
    ranks = current()
    return value if ranks is None else ranks.exchange(value)[0]


def first_then_all(make: Callable[[], T]) -> T:
    """`make` by the first process, and by the others when it has finished there."""
    if is_first():
        made = make()
        wait()
        return made
    wait()
    return make()


def wait() -> None:
    """Until all processes are here; nothing for one alone."""
    if current() is not None:
        dist.barrier()


@dataclass(frozen=True)
class Ranks:
    """This process (number, from 0) of `count`, at least two. Every method that exchanges is called by all of them alike."""

    number: int
    count: int

    # ---- the same beginning

    def start(self, modules: Iterable[nn.Module]) -> Ranks:
        """Weights and buffers of the first process for all."""
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
        return self

    def seed(self, seed: int) -> int:
        """Another dropout seed for each process, the run's own for the first."""
        return (seed + 0x9E3779B1 * self.number) % (1 << 32)

    @contextmanager
    def common_randomness(self, device: torch.device) -> Iterator[None]:
        """Inside, all processes draw the same numbers: what a method draws belongs to the whole batch."""
        seed = torch.randint(1 << 62, (1,), dtype=torch.int64).to(device)
        dist.broadcast(seed, 0)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            yield

    def state(self) -> dict[str, Tensor]:
        """The random states of the other processes, for the first one's checkpoint."""
        found: list[Any] = [None] * self.count
        mine = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            mine["cuda"] = torch.cuda.get_rng_state()
        dist.all_gather_object(found, mine)
        return {f"rng.{n}.{kind}": s for n, states in enumerate(found) if n for kind, s in states.items()}

    def load_state(self, state: Mapping[str, Tensor], seed: int) -> None:
        """Go on from `state`; from another number of processes, with fresh dropout masks."""
        if self.number == 0:
            return
        if f"rng.{self.number}.cpu" not in state:
            torch.manual_seed(self.seed(seed))
            return
        torch.set_rng_state(state[f"rng.{self.number}.cpu"])
        if f"rng.{self.number}.cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state[f"rng.{self.number}.cuda"])

    # ---- a batch

    def part(self, batch: Any) -> tuple[Tensor, Any]:
        """Of a methods.base.Batch: packed ids and layout of this process's sentences; of all where they are too few."""
        if len(batch.rows) < self.count:
            return batch.ids, batch.layout
        ids, layout = batch.tokens_of_every(self.count, self.number)
        return ids, layout

    def gather(self, states: Any, sentences: int) -> Any:
        """methods.base.StudentStates of the whole batch of `sentences` from those of this process's part, differentiable."""
        both = [*states.layers, *([] if states.second is None else [states.second])]
        pooled = self._rows(torch.stack(both, 1), sentences).unbind(1)
        return type(states)(
            pooled[: len(states.layers)],
            None if states.second is None else pooled[-1],
            {layer: self._rows(h, sentences) for layer, h in states.tokens.items()},
            {block: self._rows(a, sentences) for block, a in states.attention.items()},
        )

    def _rows(self, rows: Tensor, sentences: int) -> Tensor:
        if sentences < self.count:
            return _Repeated.apply(rows, self.count)
        return _Gathered.apply(rows, self.number, self.count, sentences)

    # ---- gradients

    def reduce(self, student: Sequence[Tensor], heads: Sequence[Tensor]) -> None:
        """The gradients of these parameters, in place, become those of the whole batch."""
        summed = [p for p in student if p.grad is not None]
        for p, grad in zip(summed, self.total([p.grad for p in summed if p.grad is not None]), strict=True):
            p.grad = grad
        shared = [p.grad for p in heads if p.grad is not None]
        for grad, mean in zip(shared, self.total(shared), strict=True):
            grad.copy_(mean / self.count)

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the processes; dense ones of a kind travel as one, of sparse ones the rows in use."""
        out = [self._sparse_total(t) if t.is_sparse else t for t in tensors]
        kinds = {t.dtype for t in out if not t.is_sparse}
        for kind in sorted(kinds, key=str):
            here = [i for i, t in enumerate(out) if not t.is_sparse and t.dtype == kind]
            flat = torch.cat([out[i].reshape(-1) for i in here])
            dist.all_reduce(flat)
            for i, piece in zip(here, flat.split([out[i].numel() for i in here]), strict=True):
                out[i] = piece.view_as(out[i])
        return out

    def _sparse_total(self, tensor: Tensor) -> Tensor:
        tensor = tensor.coalesce()
        rows, values = tensor.indices()[0], tensor.values()
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.count)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        longest = max(int(n) for n in counts)
        every_row = _all_gather(_filled(rows, longest), self.count)
        every_value = _all_gather(_filled(values, longest), self.count)
        cuts = [slice(r * longest, r * longest + int(n)) for r, n in enumerate(counts)]
        indices = torch.cat([every_row[cut] for cut in cuts])[None]
        joined = torch.cat([every_value[cut] for cut in cuts])
        return torch.sparse_coo_tensor(indices, joined, tensor.shape, check_invariants=False).coalesce()

    # ---- anything

    def exchange(self, value: Any) -> list[Any]:
        """What each process gave, in their order."""
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


class _Gathered(torch.autograd.Function):
    """This process's rows `[n, ...]`, being r, r + W, ... of all, to all rows `[N, ...]`. Every process computes the same loss
    from them, so the gradient of its own rows is a part of what it has, and nothing is exchanged backwards."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, number: int, count: int, sentences: int) -> Tensor:
        ctx.taken = slice(number, None, count)
        each = -(-sentences // count)
        every = _all_gather(_filled(rows, each), count).view(count, each, *rows.shape[1:])
        return every.transpose(0, 1).reshape(count * each, *rows.shape[1:])[:sentences].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0][ctx.taken], None, None, None


class _Repeated(torch.autograd.Function):
    """Rows that every process has computed: a share of the gradient for each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        ctx.count = count
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] / ctx.count, None


def _filled(rows: Tensor, length: int) -> Tensor:
    """Rows of zeros behind, up to `length`; contiguous."""
    missing = rows.new_zeros(length - len(rows), *rows.shape[1:])
    return torch.cat([rows, missing]) if len(missing) else rows.contiguous()


def _all_gather(rows: Tensor, count: int) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(count)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)
