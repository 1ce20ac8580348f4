"""Jobs of a `WorkerPool` worker: what Megatron-Bridge itself makes of models and checkpoints."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

SET_BY_JOBS = {
    "transformer_layer_spec",
    "hf_model_id",
    "autocast_dtype",
    *(f"{kernel}_fusion" for kernel in ("bias_activation", "bias_dropout", "apply_rope", "masked_softmax")),
    *("persist_layer_norm", "gradient_accumulation_fusion", "cross_entropy_loss_fusion", "use_cpu_initialization"),
    "perform_initialization",
}
"""Fields of a provider that say how a job computes, not what the model is; and where Bridge found the model."""


def import_with_bridge(model: str, output: str) -> None:
    """AutoBridge's own import of a Hugging Face directory, with layers that exist on the CPU."""
    from megatron.bridge import AutoBridge

    started = _start()
    bridge = AutoBridge.from_hf_pretrained(model)
    provider = bridge.to_megatron_provider(load_weights=True)
    provider.transformer_layer_spec = started.layer_spec
    started.prepare(provider)
    provider.finalize()
    built = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    bridge.save_megatron_model(built, output, hf_tokenizer_path=model)


def load_with_bridge(checkpoint: str, record: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by Bridge's loader, in the model that the `record` of one describes."""
    from megatron.bridge.training import checkpointing, model_load_save

    started = _start()
    config: Any = model_load_save.load_model_config(record)[0]
    config.transformer_layer_spec = started.layer_spec
    started.prepare(config)
    config.finalize()
    model = config.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)
    found: Any = checkpointing._load_model_weights_from_checkpoint(checkpoint, model, return_state_dict=True)
    return {name: value for name, value in found["model"].items() if isinstance(value, torch.Tensor)}


def compare_records(checkpoint: str, model: str) -> dict[str, tuple[str, str]]:
    """Fields of the model in which a checkpoint's record and AutoBridge's own description of the model differ."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import load_model_config

    recorded, _ = load_model_config(checkpoint)
    described = AutoBridge.from_hf_pretrained(model).to_megatron_provider(load_weights=False)
    both = {
        item.name: (str(getattr(recorded, item.name)), str(getattr(described, item.name))) for item in fields(described)
    }
    return {name: pair for name, pair in both.items() if pair[0] != pair[1] and name not in SET_BY_JOBS}


def _start() -> Any:
    from megatron.core import tensor_parallel

    from nemo_longpo.megatron import backend, topology

    started = backend.start_backend()
    topology.become_single_process()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    return started


def export_and_compare(checkpoint: str, output: str) -> str | None:
    """`longpo convert export`, then `verify` with logits computed by this version of Megatron-Core."""
    from nemo_longpo.conversion.comparison import comparison_report, logits_jobs, verify
    from nemo_longpo.conversion.exporter import export_checkpoint

    export_checkpoint(Path(checkpoint), Path(output))
    verify.compute = lambda jobs: [logits_jobs.run_job(job) for job in jobs]
    report = verify.verify(Path(checkpoint), Path(output), strict=True)
    return None if report.equal else comparison_report.format_report(report)
