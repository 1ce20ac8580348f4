"""What a computation does with memory: bytes that live at once, and whether streams use it in a safe order."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class LiveBytes(TorchDispatchMode):
    """Within it, `peak` is the largest number of bytes of tensors that were made in it and lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class FakeStream:
    """Knows, of every stream, up to which of its operations all that comes next here has to wait."""

    def __init__(self) -> None:
        self.seen: dict[FakeStream, int] = {self: 0}

    def wait_event(self, event: "FakeEvent") -> None:
        for stream, count in event.seen.items():
            self.seen[stream] = max(count, self.seen.get(stream, 0))

    def wait_stream(self, stream: "FakeStream") -> None:
        event = FakeEvent()
        event.seen = dict(stream.seen)
        self.wait_event(event)


class FakeEvent:
    """Until it is recorded, nobody waits for anything, as with CUDA."""

    def __init__(self) -> None:
        self.seen: dict[FakeStream, int] = {}

    def record(self) -> None:
        self.seen = dict(torch.cuda.current_stream().seen)


class FakeStreams(TorchDispatchMode):
    """Within it, operations belong to the current fake stream, and `races` names those that another stream's may
    overtake: that use memory another one writes, write what another one reads, or free what another one still uses.

    As in CUDA's caching allocator, freed memory goes at once to the next operation of the stream that allocated it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = FakeStream()
        self.races: list[str] = []
        self._uses: dict[int, list[tuple[FakeStream, int, bool]]] = {}

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def running(self) -> FakeStream:
        return self.current

    @contextmanager
    def as_cuda(self) -> Iterator[None]:
        with (
            mock.patch("torch.cuda.Stream", FakeStream),
            mock.patch("torch.cuda.Event", FakeEvent),
            mock.patch("torch.cuda.stream", self.on),
            mock.patch("torch.cuda.current_stream", self.running),
        ):
            yield

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _tensors((args, kwargs))
        result = func(*args, **kwargs or {})
        if func.is_view:
            return result
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        written = {
            value.untyped_storage()._cdata
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        self.current.seen[self.current] += 1
        for storage in storages:
            self._use(storage, storage in written, str(func))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                weakref.finalize(storage, self._free, storage._cdata, self.current)
                self._uses[storage._cdata] = []
                if "empty" not in str(func):
                    self._use(storage._cdata, True, str(func))
        return result

    def _use(self, storage: int, writes: bool, name: str) -> None:
        stream = self.current
        uses = self._uses.setdefault(storage, [])
        if any((writes or wrote) and stream.seen.get(other, 0) < count for other, count, wrote in uses):
            self.races.append(name)
        uses.append((stream, stream.seen[stream], writes))

    def _free(self, storage: int, owner: FakeStream) -> None:
        if any(owner.seen.get(other, 0) < count for other, count, _ in self._uses.pop(storage, [])):
            self.races.append("free")
