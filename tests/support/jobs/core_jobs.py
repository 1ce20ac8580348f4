"""A job of a `WorkerPool` worker: one step with Megatron-Core alone, in twenty lines of a loop instead of a trainer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.parity_cases import Case

from nemo_longpo.conversion.model_on_disk import open_model
from nemo_longpo.logprobs import LogitBudget
from nemo_longpo.objective import Objective
from nemo_longpo.parallel.layout import lay_out_pair
from nemo_longpo.placement import Placement
from nemo_longpo.shards.reader import ShardReader


def train_one_step(model: str, weights: str, shards: str, objective: Objective, case: Case, gradients: str) -> Any:
    """One step over all pairs. `model` is a Hugging Face directory, `weights` the same as Megatron saves them.

    The gradients are written to `gradients`, each in fp32 under its parameter's key. Returns, on the last pipeline
    stage, the metrics as means over this rank's pairs, and the norm of the gradients.
    """
    from megatron.core import dist_checkpointing, distributed, optimizer, parallel_state, tensor_parallel
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from nemo_longpo.megatron import backend, loss, topology

    cp, tp, pp, _, more = case
    settings = dict(more)
    layout, chunk = settings.pop("pair_layout", "shared_prefix"), settings.pop("logprob_chunk_size", None)
    placement = Placement(**{"sequence_parallel": False} | settings, cp=cp, tp=tp, pp=pp)
    here = backend.start_backend("megatron")
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tp, pp, context_parallel_size=cp)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    try:
        stage = _load_stage(model, weights, placement, LogitBudget(1.0, chunk), here)
        settings = distributed.DistributedDataParallelConfig(grad_reduce_in_fp32=True)
        wrapped = distributed.DistributedDataParallel(stage.config, settings, stage)
        descent = optimizer.get_megatron_optimizer(optimizer.OptimizerConfig(lr=1e-3, clip_grad=0.0), [wrapped])
        stage.config.finalize_model_grads_func = distributed.finalize_model_grads

        groups, pair_loss = topology.current_topology(), loss.PairLoss(objective, vars(stage.config), layout)
        cp_rank, dp_rank = groups.cp_group.rank(), groups.dp_group.rank()

        def forward_step(records: Any, module: Any) -> Any:
            short = objective.reads_short_prompts
            rows = lay_out_pair(next(records), layout, cp, tp, short_prompts=short).on_rank(cp, cp_rank)
            return loss.logprobs_of(module, rows), partial(pair_loss, rows, cp_group=groups.cp_group)

        mine = [*ShardReader(shards)][dp_rank :: groups.dp_group.size()]
        wrapped.zero_grad_buffer()
        of_pairs = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(mine),
            model=[wrapped],
            num_microbatches=len(mine),
            seq_length=stage.config.seq_length,
            micro_batch_size=1,
            forward_only=False,
        )
        for weight in stage.parameters():
            weight.data = weight.main_grad.clone()
        dist_checkpointing.save(wrapped.sharded_state_dict(), gradients)
        _, norm, _ = descent.step()
        metrics = {name: sum(float(one[name]) for one in of_pairs) / len(mine) for name in (*of_pairs, {})[0]}
        return metrics and metrics | {"grad_norm": norm}
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _load_stage(model: str, weights: str, placement: Placement, budget: LogitBudget, here: Any) -> Any:
    """This rank's pipeline stage, with its weights."""
    from megatron.core import dist_checkpointing

    from nemo_longpo.megatron import gpt, job_settings

    config, rope = _architecture(model, placement)
    job_settings.put_on(config, placement)
    job_settings.complete(here.prepare(config), rope)
    stage = gpt.LogprobGPTModel(
        config,
        rope,
        budget,
        here,
        offload_layer_inputs=placement.offload_layer_inputs,
        mlp_tile_tokens=placement.mlp_tile_tokens,
    )
    stage.load_state_dict(dist_checkpointing.load(stage.sharded_state_dict(), weights), strict=False)
    return stage


def _architecture(model: str, placement: Placement) -> tuple[Any, Any]:
    """What trainers record for a model of this size and fp32, and its rotary settings."""
    from megatron.core.transformer import TransformerConfig

    @dataclass(kw_only=True)
    class GptConfig(TransformerConfig):
        vocab_size: int
        seq_length: int
        rotary_base: float
        share_embeddings_and_output_weights: bool
        position_embedding_type: str = "rope"
        scatter_embedding_sequence_parallel: bool = True

    found = open_model(Path(model))
    shape, config = found.model_shape, found.config
    sizes = GptConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_size,
        vocab_size=shape.vocab,
        seq_length=config.max_position_embeddings,
        rotary_base=config.rope.theta,
        share_embeddings_and_output_weights=shape.tied,
        add_qkv_bias=shape.bias,
        qk_layernorm=shape.qk_norm,
        normalization="RMSNorm",
        layernorm_epsilon=config.raw["rms_norm_eps"],
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=placement.tp,
        pipeline_model_parallel_size=placement.pp,
        context_parallel_size=placement.cp,
        sequence_parallel=bool(placement.sequence_parallel),
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
    )
    return sizes, config.rope
