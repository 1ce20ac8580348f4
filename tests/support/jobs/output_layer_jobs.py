"""What a worker of `WorkerPool` runs to test the output layer: Megatron's, taken over, without a model."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from support.jobs.gloo_jobs import HIDDEN, ROWS, gloo_group, logprob_problem
from support.memory_use import peak_bytes
from torch.distributed.tensor.debug import CommDebugMode

from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError
from nemo_longpo.logprobs import LogitBudget

CHUNK = 3
USED, BATCH = 8, 2


def _config(dtype: torch.dtype, **settings: Any) -> Any:
    from megatron.core.transformer import TransformerConfig

    cpu.activate()
    return TransformerConfig(
        num_layers=1,
        num_attention_heads=2,
        hidden_size=HIDDEN,
        params_dtype=dtype,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        **settings,
    )


def _output_layer(config: Any, vocab: int, group: dist.ProcessGroup, **settings: Any):
    """A layer of ⌈vocab / ranks⌉ rows on each rank, whose padding rows hold large numbers."""
    from megatron.core.tensor_parallel import ColumnParallelLinear

    from nemo_longpo.megatron.gpt import LogprobOutputLayer

    rows = -(-vocab // group.size()) * group.size()
    layer = ColumnParallelLinear(
        HIDDEN,
        rows,
        config=config,
        init_method=lambda weight: torch.nn.init.constant_(weight, 9.0),
        bias=False,
        tp_group=group,
        **settings,
    )
    LogprobOutputLayer.take_over(layer, vocab, LogitBudget(1.0, rows=CHUNK))
    return layer


def score_with_tensor_parallelism(
    vocab: int, ignored: tuple[int, ...], sequence_parallel: bool
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Log-probs [N], gradients of this rank's hidden states and real vocabulary rows, and collectives of the backward.

    The first `USED` rows of the problem, in two sequences.
    """
    hidden, weight, labels, grad = (tensor.detach() for tensor in logprob_problem(vocab, ignored))
    with gloo_group() as group:
        size, rank = group.size(), group.rank()
        config = _config(torch.float32, tensor_model_parallel_size=size, sequence_parallel=sequence_parallel)
        layer = _output_layer(config, vocab, group)
        layer.weight.data[: layer.real_rows] = weight[layer.vocab_start :][: layer.real_rows]
        rows_RBH = hidden[:USED].view(-1, BATCH, HIDDEN)
        mine = rows_RBH.chunk(size)[rank].clone() if sequence_parallel else rows_RBH.clone()
        logprobs = layer(mine.requires_grad_(), labels=labels[:USED].view(-1, BATCH).T)
        with CommDebugMode() as collectives:
            logprobs.backward(grad[:USED].view(-1, BATCH).T)
        assert (layer.weight.grad[layer.real_rows :] == 0).all(), "padding rows have a gradient"
        found = logprobs.detach().T.flatten(), mine.grad.flatten(0, 1), layer.weight.grad[: layer.real_rows]
        counts = {str(operation): count for operation, count in collectives.get_comm_counts().items()}
        return [tensor.numpy() for tensor in found], counts


def _embedding_and_output(
    config: Any, weight: torch.Tensor, tied: bool, unused_rows: int
) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """A module of both, and their weights, or the one that they share."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import VocabParallelEmbedding

    vocab, whole = len(weight), parallel_state.get_tensor_model_parallel_group()
    model = torch.nn.Module()
    model.embedding = VocabParallelEmbedding(
        vocab, HIDDEN, init_method=torch.nn.init.normal_, config=config, tp_group=whole
    )
    model.output_layer = _output_layer(config, vocab, whole, skip_weight_param_allocation=tied)
    model.output_layer.real_rows -= unused_rows
    weights = [model.embedding.weight] if tied else [model.embedding.weight, model.output_layer.weight]
    weights[0].zero_out_wgrad = tied
    for tensor, shift in zip(weights, (0, 1), strict=False):
        tensor.data.copy_(weight.roll(shift, 0))
    return model, weights


def accumulate(
    vocab: int,
    tied: bool,
    micro_batches: int,
    reduce_in_fp32: bool = True,
    overlap: bool = False,
    distributed: bool = False,
    unused_rows: int = 0,
) -> dict[str, Any]:
    """A bfloat16 embedding and output layer in Megatron's data parallelism, several backwards with no step between.

    A tied weight has the mark that Megatron gives it, and the last `unused_rows` rows of both are padding. With
    `overlap`, gradients are reduced as soon as the hooks of the last backward say that they are ready; `distributed`,
    each rank gets its share of them as for a distributed optimizer, and the shares are put together here.

    Returns:
        `main_grad` of both weights (of the one, if tied), what this rank's gradients are in float64, how often the
        output layer was called, whether somebody says that a gradient was added to `main_grad` before the hook, whether
        any gradient is left in `grad`, and the bytes that the last backward held at most.
    """
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    generator = torch.Generator().manual_seed(vocab)
    weight = torch.randn(vocab, HIDDEN, generator=generator)
    labels = torch.randint(0, vocab - unused_rows, (ROWS,), generator=generator)
    grad = torch.randn(ROWS, generator=generator)
    with gloo_group() as group:
        parallel_state.initialize_model_parallel()
        config = _config(torch.bfloat16)
        model, weights = _embedding_and_output(config, weight, tied, unused_rows)
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=reduce_in_fp32, overlap_grad_reduce=overlap, use_distributed_optimizer=distributed
        )
        parallel = DistributedDataParallel(config, settings, model)

        calls: list[None] = []
        model.output_layer.register_forward_pre_hook(lambda *_: calls.append(None))
        precise = [tensor.detach().double().requires_grad_() for tensor in weights]
        for shift in range(micro_batches):
            tokens = labels.roll(shift + group.rank() * micro_batches)
            shared = weights[0] if tied else None
            last = shift == micro_batches - 1
            with nullcontext() if last else parallel.no_sync():
                hidden = model.embedding(tokens[None]).transpose(0, 1)
                logprobs = model.output_layer(hidden, shared, labels=labels[None])
                held = peak_bytes(lambda logprobs=logprobs: logprobs.backward(grad[None]))
            logits = precise[0][tokens] @ precise[-1][: vocab - unused_rows].T
            logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0].backward(grad.double())
        parallel.finish_grad_sync()
        for buffer in parallel.buffers if distributed else ():
            share = buffer.grad_data.chunk(group.size())[group.rank()].clone()
            dist.all_gather_into_tensor(buffer.grad_data, share, group=group)
        parallel_state.destroy_model_parallel()
        return {
            "found": [tensor.main_grad.float().numpy().copy() for tensor in weights],
            "expected": [tensor.grad.numpy() for tensor in precise],
            "calls": len(calls),
            "claimed": [tensor.grad_added_to_main_grad for tensor in weights],
            "left": [tensor.grad for tensor in weights if tensor.grad is not None],
            "held": held,
        }


def refusal_of_deferral() -> str:
    with gloo_group() as group:
        config = _config(torch.float32)
        config.defer_embedding_wgrad_compute = True
        try:
            _output_layer(config, 7, group, embedding_activation_buffer=[], grad_output_buffer=[])
        except InputError as error:
            return str(error)
    raise AssertionError("the setting was not refused")
