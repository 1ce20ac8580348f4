"""A process group for several ranks on one GPU, where NCCL refuses: tensors travel through host memory and gloo.

Importing this registers the backend `staged`. It is for exactness, not for speed: nearly every operation gathers the
tensors of all ranks on the host and takes from them what it needs. Sums of low precision are formed in fp32 and rounded
once. The device is synchronised before a tensor is read and after one is written, so streams need no events.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ReduceOp

REDUCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    ReduceOp.SUM: lambda parts: parts.sum(0),
    ReduceOp.AVG: lambda parts: parts.mean(0),
    ReduceOp.MAX: lambda parts: parts.amax(0),
    ReduceOp.MIN: lambda parts: parts.amin(0),
    ReduceOp.PRODUCT: lambda parts: parts.prod(0),
}


class Done(dist._Work):
    """Work that is finished, or that `finish` completes when somebody waits for it."""

    def __init__(self, result: Any = None, finish: Callable[[], Any] = lambda: None):
        super().__init__()
        self._result, self._finish, self._waited = result, finish, False

    def wait(self, timeout: Any = None) -> bool:
        if not self._waited:
            self._waited = True
            self._finish()
            _synchronize()
        return True

    synchronize = wait

    def is_completed(self) -> bool:
        return self._waited

    def is_success(self) -> bool:
        return True

    def result(self) -> Any:
        return self._result

    def get_future(self) -> torch.futures.Future:
        self.wait()
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(self._result)
        return future


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bytes_on_host(tensor: Tensor) -> Tensor:
    _synchronize()
    return tensor.detach().contiguous().to("cpu", copy=True).reshape(-1).view(torch.uint8)


def _done(operation: Callable[..., Any]) -> Callable[..., Done]:
    @functools.wraps(operation)
    def run(self: "Staged", *args: Any, **kwargs: Any) -> Done:
        work = Done(operation(self, *args, **kwargs))
        work.wait()
        return work

    return run


class Staged(dist.ProcessGroup):
    def __init__(self, store: dist.Store, rank: int, size: int, timeout: Any):
        super().__init__(rank, size)
        self._gloo, self._rank, self._size = dist.ProcessGroupGloo(store, rank, size, timeout), rank, size

    def getBackendName(self) -> str:
        return "staged"

    def _of_all(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor of this shape, on the host."""
        if not tensor.numel():
            return [tensor.detach().cpu() for _ in range(self._size)]
        mine = _bytes_on_host(tensor)
        found = [torch.empty_like(mine) for _ in range(self._size)]
        self._gloo.allgather([found], [mine]).wait()
        return [part.view(tensor.dtype).view(tensor.shape) for part in found]

    def _reduced(self, tensor: Tensor, op: Any) -> Tensor:
        parts = torch.stack(self._of_all(tensor))
        low = parts.dtype in (torch.bfloat16, torch.float16)
        (reduce,) = (function for known, function in REDUCTIONS.items() if op == known)
        return reduce(parts.float() if low else parts)

    @_done
    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> list[Tensor]:
        for tensor in tensors:
            tensor.copy_(self._reduced(tensor, opts.reduceOp if opts else ReduceOp.SUM))
        return tensors

    allreduce_coalesced = allreduce
    reduce = allreduce  # the other ranks' tensors are undefined afterwards

    @_done
    def broadcast(self, tensors: list[Tensor], opts: Any) -> list[Tensor]:
        for tensor in tensors:
            tensor.copy_(self._of_all(tensor)[opts.rootRank])
        return tensors

    @_done
    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> list[list[Tensor]]:
        for places, tensor in zip(outputs, inputs, strict=True):
            for place, part in zip(places, self._of_all(tensor), strict=True):
                place.copy_(part.view(place.shape))
        return outputs

    @_done
    def _allgather_base(self, output: Tensor, tensor: Tensor, opts: Any = None) -> Tensor:
        output.copy_(torch.cat([part.reshape(-1) for part in self._of_all(tensor)]).view(output.shape))
        return output

    @_done
    def allgather_into_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, tensor in zip(outputs, inputs, strict=True):
            self._allgather_base(output, tensor)
        return outputs

    @_done
    def _reduce_scatter_base(self, output: Tensor, tensor: Tensor, opts: Any) -> Tensor:
        mine = self._reduced(tensor, opts.reduceOp).reshape(-1).chunk(self._size)[self._rank]
        output.copy_(mine.view(output.shape))
        return output

    @_done
    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> list[Tensor]:
        for output, parts in zip(outputs, inputs, strict=True):
            self._reduce_scatter_base(output, torch.stack(parts), opts)
        return outputs

    @_done
    def reduce_scatter_tensor_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> Any:
        for output, tensor in zip(outputs, inputs, strict=True):
            self._reduce_scatter_base(output, tensor, opts)
        return outputs

    @_done
    def alltoall_base(
        self, output: Tensor, tensor: Tensor, to: list[int], sizes: list[int], opts: Any = None
    ) -> Tensor:
        assert len({*to, *sizes}) <= 1, "every rank sends every rank as much"
        parts = [part.reshape(self._size, -1)[self._rank] for part in self._of_all(tensor)]
        output.copy_(torch.cat(parts).view(output.shape))
        return output

    @_done
    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> list[Tensor]:
        for output, parts in zip(outputs, self._of_all(torch.stack(inputs)), strict=True):
            output.copy_(parts[self._rank])
        return outputs

    @_done
    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any) -> Any:
        for place, part in zip(outputs[0] if outputs else [], self._of_all(inputs[0]), strict=False):
            place.copy_(part)
        return outputs

    @_done
    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any) -> list[Tensor]:
        (output,) = outputs
        parts = torch.stack(inputs[0]) if inputs else output.new_empty(self._size, *output.shape)
        output.copy_(self._of_all(parts)[opts.rootRank][self._rank])
        return outputs

    def send(self, tensors: list[Tensor], to: int, tag: int = 0) -> Done:
        (tensor,) = tensors
        sent = _bytes_on_host(tensor)
        return Done(tensors, self._gloo.send([sent], to, tag).wait)

    def recv(self, tensors: list[Tensor], source: int, tag: int = 0) -> Done:
        (tensor,) = tensors
        received = torch.empty(tensor.nbytes, dtype=torch.uint8)
        work = self._gloo.recv([received], source, tag)

        def finish() -> None:
            work.wait()
            tensor.copy_(received.view(tensor.dtype).view(tensor.shape))

        return Done(tensors, finish)

    def barrier(self, opts: Any = None) -> Done:
        self._gloo.barrier().wait()
        return Done()

    # As torch 2.13 names them.
    all_gather_single, reduce_scatter_single, all_to_all_single = _allgather_base, _reduce_scatter_base, alltoall_base


def _create(store: dist.Store, rank: int, size: int, timeout: Any) -> Staged:
    return Staged(store, rank, size, timeout)


if "staged" not in dist.Backend.backend_list:
    dist.Backend.register_backend("staged", _create, devices=["cpu", "cuda"])
