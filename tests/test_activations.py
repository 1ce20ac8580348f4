"""Tensors in host memory and functions in tiles: the same numbers with less memory, in an order that CUDA keeps."""

import gc
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import pytest
import torch
from support.memory_watch import FakeStreams, LiveBytes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nemo_longpo.activations import CopyStream, HostMemory, KeptTensors, NoStream, in_tiles

ROWS, HIDDEN, LAYERS, WIDE = 11, 6, 5, 40
PIECE = 64  # bytes: a layer's input takes several, and does not fill the last


@pytest.fixture(autouse=True)
def old_objects_are_left_alone():
    """The collector looks only at what the test made; the imports of all tests would take it a second."""
    gc.freeze()
    yield
    gc.unfreeze()


class UnpinnedCopyStream(CopyStream):
    pinned = False


def layers(count: int = LAYERS) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Tanh()) for _ in range(count)]


def forward(through: list[nn.Module], hidden: Tensor, memory: HostMemory | None) -> Tensor:
    kept = None if memory is None else KeptTensors(memory)
    for layer in through:
        with nullcontext() if kept is None else kept.keep(hidden):
            hidden = checkpoint(layer, hidden, use_reentrant=True)
    return hidden.square().sum()


def gradients_of(through: list[nn.Module], rows: list[int], memory: HostMemory | None) -> list[Tensor]:
    """Of micro-batches of different length, all forwards before the first backward, as pipeline stages have them."""
    torch.manual_seed(1)
    inputs = [torch.randn(count, 1, HIDDEN, requires_grad=True) for count in rows]
    for layer in through:
        layer.zero_grad()
    losses = [forward(through, hidden * 1.0, memory) for hidden in inputs]
    while losses:
        losses.pop(0).backward()
    return [leaf.grad.clone() for leaf in (*inputs, *(weight for layer in through for weight in layer.parameters()))]


def test_host_memory_changes_no_bit_and_is_used_again():
    through, memory = layers(), HostMemory(NoStream(), PIECE)
    for rows in ([ROWS, 3, 7], [2, ROWS, 8]):
        expected, found = gradients_of(through, rows, None), gradients_of(through, rows, memory)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert len(memory.free) == memory.pieces, "all pieces are free after the backward"
    sizes = [-(-count * HIDDEN * 4 // PIECE) * LAYERS for count in (ROWS, 3, 7)]
    assert memory.pieces == sum(sizes), "the second step needs no more than the first"


def test_host_memory_is_free_after_a_forward_without_backward():
    memory = HostMemory(NoStream(), PIECE)
    loss = forward(layers(), torch.randn(ROWS, 1, HIDDEN, requires_grad=True) * 1.0, memory)
    assert len(memory.free) < memory.pieces
    del loss
    gc.collect()
    assert len(memory.free) == memory.pieces


@pytest.mark.parametrize("offload", [False, True])
def test_two_layer_inputs_are_on_the_device(offload):
    """Of [R, B, H]: without host memory one for each layer at the end of the forward, with it two at any time; besides
    them what a layer computes with, and the gradients of weights (counted before the first step frees them)."""
    rows, memory = 1000, HostMemory(NoStream(), 1000) if offload else None
    one = rows * HIDDEN * 4
    peaks = []
    for count in (4, 8):
        through = layers(count)
        gradients_of(through, [rows], memory)  # pieces and gradients exist
        start = torch.randn(rows, 1, HIDDEN, requires_grad=True)
        with LiveBytes() as live:
            forward(through, start * 1.0, memory).backward()
        peaks.append(live.peak / one)
    grown = (peaks[1] - peaks[0]) / 4
    assert grown < 0.05 if offload else grown > 0.95
    if offload:
        assert peaks[1] < 6.1, "two inputs, and a layer's output with the gradients of both"


class WithoutWait(UnpinnedCopyStream):
    """Lacks one of the two waits."""

    def __init__(self, missing: str):
        super().__init__()
        self.missing = missing

    @contextmanager
    def beside(self):
        if self.missing != "before copies":
            with super().beside() as done:
                yield done
            return
        done = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            yield done
            done.record()

    def wait(self, done):
        if self.missing != "after copies":
            super().wait(done)


@pytest.mark.parametrize("missing", ["nothing", "before copies", "after copies"])
def test_copies_are_in_order_with_the_computation(missing):
    with FakeStreams() as streams, streams.as_cuda():
        memory = HostMemory(WithoutWait(missing), PIECE)
        gradients_of(layers(), [ROWS, 3], memory)
        gradients_of(layers(), [ROWS, 7], memory)
        gc.collect()
    assert bool(streams.races) == (missing != "nothing"), streams.races


def test_the_next_copy_starts_before_its_turn():
    """In the backward each layer's input but the first one asked for arrives during another's recompute."""
    kept = KeptTensors(HostMemory(NoStream(), PIECE))
    hidden = torch.randn(ROWS, 1, HIDDEN, requires_grad=True) * 1.0
    for layer in layers():
        with kept.keep(hidden):
            hidden = checkpoint(layer, hidden, use_reentrant=True)
    last, order = kept.last, []
    while last is not None:
        order.append(last)
        last = last.before
    assert [one.coming is None for one in order] == [True] * LAYERS
    order[0].fetch()
    assert [one.coming is None for one in order] == [True, False, *[True] * (LAYERS - 2)]


def test_sizes_beyond_32_bits():
    """A million rows of 4,096 are 2³² numbers and 2³³ bytes; without memory for them."""
    with torch.device("meta"):
        memory = HostMemory(NoStream())
        hidden = torch.empty(2**20, 1, 4096, dtype=torch.bfloat16, requires_grad=True)
        with KeptTensors(memory).keep(hidden):
            out = hidden.sin()
        assert memory.pieces == 2**33 // 2**26
        out.sum().backward()
        assert hidden.grad.shape == hidden.shape
        up = torch.empty(8, 4096, dtype=torch.bfloat16, requires_grad=True)
        down = torch.empty(4096, 8, dtype=torch.bfloat16, requires_grad=True)
        tiles: list[int] = []

        def run(tile: Tensor) -> Tensor:
            tiles.append(len(tile))
            return tile @ up.T @ down.T

        in_tiles(run, 300_000, hidden, [up, down]).sum().backward()
        assert tiles == [300_000] * 3 + [148_576] + [300_000] * 3 + [148_576]
        assert (up.grad.shape, down.grad.shape) == (up.shape, down.shape)


def feed_forward(dtype: torch.dtype = torch.float64) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    torch.manual_seed(2)
    gate, up = (torch.randn(WIDE, HIDDEN, dtype=dtype, requires_grad=True) for _ in range(2))
    down = torch.randn(HIDDEN, WIDE, dtype=dtype, requires_grad=True)
    return lambda rows: (nn.functional.silu(rows @ gate.T) * (rows @ up.T)) @ down.T, [gate, up, down]


@pytest.mark.parametrize("tile", [1, 4, ROWS, 100])
@pytest.mark.parametrize("value_is_used", [True, False])
def test_tiles_equal_the_whole(tile, value_is_used):
    run, weights = feed_forward()
    hidden = torch.randn(ROWS, 2, HIDDEN, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(ROWS, 2, HIDDEN, dtype=torch.float64)
    calls: list[int] = []
    expected = torch.autograd.grad(whole := run(hidden), [hidden, *weights], grad)

    def counted(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return run(rows)

    out = in_tiles(counted, tile, hidden, weights, value_is_used=value_is_used)
    assert sum(calls) == (ROWS if value_is_used else 0)
    torch.testing.assert_close(out, whole if value_is_used else torch.zeros_like(whole))
    torch.testing.assert_close(torch.autograd.grad(out, [hidden, *weights], grad), expected)
    assert max(calls) == min(tile, ROWS)


@pytest.mark.parametrize("frozen", ["hidden", "weights", "one weight"])
def test_only_what_is_trained_gets_a_gradient(frozen):
    run, weights = feed_forward()
    hidden = torch.randn(ROWS, 1, HIDDEN, dtype=torch.float64, requires_grad=frozen != "hidden")
    for weight in weights[: {"hidden": 0, "weights": 3, "one weight": 1}[frozen]]:
        weight.requires_grad_(False)
    run(hidden).square().sum().backward()
    leaves = [hidden, *weights]
    expected = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    in_tiles(run, 4, hidden, weights).square().sum().backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert (leaf.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(leaf.grad, gradient)


def test_a_weight_gets_one_gradient_summed_in_fp32():
    """Of bfloat16: each tile's part is rounded by the product, which adds little to the error of one product; a sum
    in bfloat16 would have several times that error."""
    run, weights = feed_forward(torch.bfloat16)
    precise, truths = feed_forward(torch.float64)
    for weight, truth in zip(weights, truths, strict=True):
        truth.data.copy_(weight)
    hidden = torch.randn(4096, 1, HIDDEN).bfloat16()
    grad = torch.randn(4096, 1, HIDDEN).bfloat16()
    arrived: list[int] = []
    for weight in weights:
        weight.register_post_accumulate_grad_hook(lambda weight: arrived.append(id(weight)))
    expected = torch.autograd.grad(precise(hidden.double()), truths, grad.double())
    whole = torch.autograd.grad(run(hidden), weights, grad)
    in_tiles(run, 16, hidden, weights).backward(grad)
    assert sorted(arrived) == sorted(map(id, weights))
    for weight, plain, truth in zip(weights, whole, expected, strict=True):
        error, plain_error = ((found.double() - truth).norm() for found in (weight.grad, plain))
        assert error <= 1.25 * plain_error


class FusedLinear(torch.autograd.Function):
    """As Megatron's linear layer with gradient accumulation fusion: adds to `main_grad`, and returns a dummy."""

    @staticmethod
    def forward(ctx, rows, weight):
        ctx.save_for_backward(rows, weight)
        return rows @ weight.T

    @staticmethod
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        weight.main_grad += grad.flatten(0, -2).T @ rows.flatten(0, -2)
        weight.grad_added_to_main_grad = True
        return grad @ weight, torch.full_like(weight, torch.nan)


def test_gradient_accumulation_fusion_adds_every_tile_once():
    weight = torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, requires_grad=True)
    weight.main_grad = torch.zeros_like(weight)
    weight.grad_added_to_main_grad = False
    hidden = torch.randn(ROWS, 1, HIDDEN, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(ROWS, 1, HIDDEN, dtype=torch.float64)
    expected = torch.autograd.grad(hidden @ weight.T, [hidden, weight], grad)
    seen: list[bool] = []
    weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad_added_to_main_grad))
    for times in (1, 2):
        in_tiles(lambda rows: FusedLinear.apply(rows, weight), 3, hidden, [weight]).backward(grad)
        torch.testing.assert_close(weight.main_grad, times * expected[1])
        torch.testing.assert_close(hidden.grad, times * expected[0])
    assert seen == [True, True], "the data-parallel hook runs once for each micro-batch, and knows that all is added"


def test_random_numbers_are_those_of_the_forward():
    run, weights = feed_forward()
    masks: list[Tensor] = []

    def with_dropout(rows: Tensor) -> Tensor:
        masks.append(nn.functional.dropout(torch.ones(len(rows))))
        return run(rows) * masks[-1].view(-1, 1, 1)

    state = torch.get_rng_state()

    @contextmanager
    def replay():
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            yield

    hidden = torch.randn(ROWS, 1, HIDDEN, dtype=torch.float64, requires_grad=True)
    state = torch.get_rng_state()
    out = in_tiles(with_dropout, 4, hidden, weights, replay)
    torch.rand(5)
    out.sum().backward()
    assert torch.equal(torch.cat(masks[:3]), torch.cat(masks[3:]))


def test_memory_of_tiles():
    """In the backward, as in the forward, the intermediate values of one tile: 4 of width F besides rows of width H."""
    run, weights = feed_forward(torch.float32)
    hidden = torch.randn(2048, 1, HIDDEN, requires_grad=True)
    run(hidden[:1]).sum().backward()
    for tile in (2048, 256, 64):
        with LiveBytes() as live:
            in_tiles(run, tile, hidden, weights).backward(torch.ones_like(hidden))
        rows = 4 * 2048 * HIDDEN * 4  # the result, and the gradients of result and rows, twice
        wide = live.peak - rows
        assert wide <= tile * (7 * WIDE + 4 * HIDDEN) * 4 + 4 * sum(weight.nbytes for weight in weights), tile
