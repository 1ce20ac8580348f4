"""A setup as the settings that `nemo llm finetune` takes."""

from .job import Job, Setup
from .speed import Machine


def overrides(job: Job, setup: Setup, machine: Machine) -> list[str]:
    """`key=value` arguments behind `nemo llm finetune --factory NAME`, quoted for a shell where they need it.

    Everything that a setup decides is named, also where it says "off": the recipe may say something else. Values are
    spelt as in Python, which NeMo-Run's parser understands also where it knows no type.
    """
    devices = min(setup.gpus, machine.gpus_per_node)
    strategy = {
        "tensor_model_parallel_size": setup.tp,
        "pipeline_model_parallel_size": setup.pp,
        "context_parallel_size": setup.cp,
        "sequence_parallel": setup.tp > 1,
        **_recompute(job, setup),
    }
    return [
        f"trainer.num_nodes={-(-setup.gpus // devices)}",
        f"trainer.devices={devices}",
        *(f"trainer.strategy.{name}={value}" for name, value in strategy.items()),
        f"trainer.plugins.grad_reduce_in_fp32={setup.precision.gradient == 4}",
        *(f"optim.config.{name}={value}" for name, value in _optimizer(setup).items()),
        f"data.global_batch_size={job.pairs}",
        f"data.seq_length={job.trunk + max(job.chosen, job.rejected)}",
        f"model.pair_layout={job.layout}",
    ]


def _recompute(job: Job, setup: Setup) -> dict[str, object]:
    if setup.recompute == "none":
        return {"recompute_granularity": None, "recompute_modules": None}
    if setup.recompute != "full":
        return {"recompute_granularity": "selective", "recompute_modules": f"'[\"{setup.recompute}\"]'"}
    layers = setup.stage_layers(job.shape)
    again = setup.recompute_layers or layers
    return {
        "recompute_granularity": "full",
        "recompute_modules": None,
        # One layer at a time, all of them; or the first few of every pipeline stage.
        "recompute_method": "uniform" if again == layers else "block",
        "recompute_num_layers": 1 if again == layers else again,
    }


def _optimizer(setup: Setup) -> dict[str, object]:
    if not setup.offload_optimizer:
        return {"optimizer_cpu_offload": False}
    # Megatron-Core takes an offloaded optimizer only as a precision-aware one.
    return {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": 1.0,
        "use_precision_aware_optimizer": True,
    }
