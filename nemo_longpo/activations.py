"""Two ways to keep fewer activations on a device: tensors for the backward in host memory, and tiles of rows.

Both are exact and know torch alone. `HostMemory` moves what autograd saves; `in_tiles` computes a function of rows so
many rows at a time and again in the backward, as activation recompute does for the whole of it.

Shape legend: R rows, B sequences, H hidden size.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE_BYTES = 2**26


class CopyStream:
    """A second CUDA stream, on which copies run beside the computation."""

    pinned = True

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    @contextmanager
    def beside(self) -> Iterator[Any]:
        """Within it, work goes to the copy stream, after all that the computation has queued so far. Yields an event:
        the end of that work."""
        done = torch.cuda.Event()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield done
            done.record()

    def wait(self, done: Any) -> None:
        """Let the computation wait for an event."""
        torch.cuda.current_stream().wait_event(done)


class NoStream:
    """A CPU, which does everything in the order of the program."""

    pinned = False

    def beside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def wait(self, done: Any) -> None:
        pass


class HostMemory:
    """Host memory for tensors that only the backward needs.

    It consists of pieces of one size, which are taken by a tensor, given back with it and taken again by the next one,
    of whatever length; their number only grows. Pieces rather than a buffer for each tensor, because pairs differ in
    length, pinning takes long, and torch pins the next power of two of every request, up to twice what is needed.

    Order on a GPU: one stream makes all copies, so a piece is overwritten after it was read. Copies out start after the
    computation has made the tensor, and the computation waits for them before it lets the tensor go; copies back start
    after what used their memory before, and the computation waits for them before it reads.
    """

    def __init__(self, copies: CopyStream | NoStream, piece_bytes: int = PIECE_BYTES):
        self.copies = copies
        self.piece_bytes = piece_bytes
        self.free: list[Tensor] = []
        self.pieces = 0

    def take(self, size: int) -> list[Tensor]:
        """Return pieces for `size` bytes."""
        count = -(-size // self.piece_bytes)
        while len(self.free) < count:
            self.free.append(torch.empty(self.piece_bytes, dtype=torch.uint8, pin_memory=self.copies.pinned))
            self.pieces += 1
        return [self.free.pop() for _ in range(count)]  # one by one: others may be given back at any moment


class KeptTensors:
    """Tensors of one pass through the layers, in the order in which the forward keeps them; the backward needs them
    from the last to the first, and the next one comes while one is used."""

    def __init__(self, memory: HostMemory):
        self.memory = memory
        self.last: _Kept | None = None

    @contextmanager
    def keep(self, tensor: Tensor) -> Iterator[None]:
        """Within it, autograd saves `tensor` in host memory. Afterwards nothing here refers to it, and its memory on
        the device may be used again."""
        kept = self.last = _Kept(tensor, self.last, self.memory)
        place = tensor.data_ptr()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved: kept if saved.data_ptr() == place else saved,
            lambda packed: packed.fetch() if isinstance(packed, _Kept) else packed,
        ):
            yield
        self.memory.copies.wait(kept.left)


class _Kept:
    """The copy of a tensor in host memory; its pieces are free again when autograd drops it."""

    def __init__(self, tensor: Tensor, before: "_Kept | None", memory: HostMemory):
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.before, self.copies = before, memory.copies
        self.pieces = memory.take(tensor.nbytes)
        self.coming: tuple[Tensor, Any] | None = None
        weakref.finalize(self, memory.free.extend, self.pieces)
        with memory.copies.beside() as self.left:
            for piece, part in self._parts(tensor.detach()):
                piece.copy_(part, non_blocking=True)

    def _parts(self, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for piece, part in zip(self.pieces, tensor.flatten().view(torch.uint8).split(len(self.pieces[0])), strict=True):
            yield piece[: len(part)], part

    def start(self) -> None:
        """Begin to copy it back; the memory for it is the computation's."""
        back = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        with self.copies.beside() as arrived:
            for piece, part in self._parts(back):
                part.copy_(piece, non_blocking=True)
        self.coming = back, arrived

    def fetch(self) -> Tensor:
        """Return it, and begin with the one before."""
        if self.coming is None:
            self.start()
        assert self.coming is not None
        (back, arrived), self.coming = self.coming, None
        self.copies.wait(arrived)
        if self.before is not None:
            self.before.start()
        return back


Replay = Callable[[], AbstractContextManager[Any]]


def in_tiles(
    run: Callable[[Tensor], Tensor],
    rows: int,
    hidden_RBH: Tensor,
    weights: Sequence[Tensor],
    replay: Replay = nullcontext,
    value_is_used: bool = True,
) -> Tensor:
    """`run(hidden_RBH)`, [R, B, H], for a function that treats every row by itself, `rows` of R at a time.

    Between forward and backward only `hidden_RBH` is kept; the backward runs each tile again, within `replay()`, which
    restores the random numbers of the first run. `weights` are all that `run` trains. They get one gradient each, as if
    no tiles were there: Megatron's data parallelism allows a weight one per micro-batch. It is summed over tiles in
    fp32 and rounded once (each tile's part is rounded before, by the product that makes it); or Megatron's and
    Transformer Engine's linear layers add every tile's to `main_grad` themselves, which they say by
    `grad_added_to_main_grad` (gradient accumulation fusion).

    Without `value_is_used` the result is zeros, computed by nobody, with the gradients of `run`: for a recompute that
    leads to no further value.
    """
    return _InTiles.apply(run, rows, replay, value_is_used, hidden_RBH, *weights)


class _InTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Tensor], Tensor],
        rows: int,
        replay: Replay,
        value_is_used: bool,
        hidden_RBH: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        ctx.run, ctx.rows, ctx.replay, ctx.weights = run, rows, replay, weights
        ctx.save_for_backward(hidden_RBH)
        if not value_is_used:
            return hidden_RBH.new_zeros(()).expand(hidden_RBH.shape)
        out_RBH = torch.empty_like(hidden_RBH)
        for tile_nBH, out_nBH in zip(hidden_RBH.split(rows), out_RBH.split(rows), strict=True):
            out_nBH.copy_(run(tile_nBH))
        return out_RBH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RBH: Tensor) -> tuple[Tensor | None, ...]:
        (hidden_RBH,) = ctx.saved_tensors
        needs_hidden = ctx.needs_input_grad[4]
        trained = [weight for weight in ctx.weights if weight.requires_grad]
        sums: list[Tensor | None] = [None] * len(trained)
        grad_hidden_RBH = torch.empty_like(hidden_RBH) if needs_hidden else None
        with ctx.replay():
            for start in range(0, len(hidden_RBH), ctx.rows):
                tile = slice(start, start + ctx.rows)
                # What a tile needs dies with the call, before the next tile.
                sums, grad_nBH = _tile_gradients(ctx.run, hidden_RBH[tile], grad_RBH[tile], trained, sums, needs_hidden)
                if grad_hidden_RBH is not None and grad_nBH is not None:
                    grad_hidden_RBH[tile] = grad_nBH
        rounded = {
            id(weight): None if sum_ is None else sum_.to(weight.dtype)
            for weight, sum_ in zip(trained, sums, strict=True)
        }
        return None, None, None, None, grad_hidden_RBH, *(rounded.get(id(weight)) for weight in ctx.weights)


def _tile_gradients(
    run: Callable[[Tensor], Tensor],
    hidden_nBH: Tensor,
    grad_nBH: Tensor,
    trained: Sequence[Tensor],
    sums: Sequence[Tensor | None],
    needs_hidden: bool,
) -> tuple[list[Tensor | None], Tensor | None]:
    """Return the weights' gradients with this tile's added, and that of its rows."""
    rows_nBH = hidden_nBH.detach().requires_grad_(needs_hidden)
    with torch.enable_grad():
        out_nBH = run(rows_nBH)
    wanted = [*trained, rows_nBH] if needs_hidden else trained
    grads = torch.autograd.grad(out_nBH, wanted, grad_nBH, allow_unused=True)
    added = [_add(*parts) for parts in zip(sums, grads, trained, strict=False)]
    return added, grads[-1] if needs_hidden else None


def _add(total: Tensor | None, grad: Tensor | None, weight: Tensor) -> Tensor | None:
    if grad is None or getattr(weight, "grad_added_to_main_grad", False):
        return grad  # of a weight whose gradient is where it belongs, a dummy
    if total is None:
        total = torch.zeros_like(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
    return total.add_(grad)
