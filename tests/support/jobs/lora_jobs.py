"""What a worker of `WorkerPool` runs to test LoRA: the real recipe with NeMo's adapters."""

from typing import Any

from support.jobs.nemo_jobs import finetune, refusal


def train_adapters(
    overrides: dict[str, Any],
    lora: dict[str, Any],
    save_to: str | None = None,
    stop_after: int | None = None,
) -> None:
    """`finetune` with `peft=LoRA(**lora)`."""
    import nemo_run as run
    from nemo.collections import llm
    from support.jobs.callbacks import SaveAdapters, StopAfter

    from nemo_longpo.nemo.callbacks import MetricsCallback

    callbacks = [run.Config(MetricsCallback)]
    if save_to is not None:
        callbacks.append(run.Config(SaveAdapters, save_to))
    if stop_after is not None:
        callbacks.append(run.Config(StopAfter, stop_after))
    adapters = {"peft": run.Config(llm.peft.LoRA, **lora), "trainer.callbacks": callbacks}
    finetune({**overrides, **adapters}, checkpoints=save_to is None)


def refusal_of_adapter(overrides: dict[str, Any]) -> str:
    import nemo_run as run
    from nemo.collections import llm

    return refusal({**overrides, "peft": run.Config(llm.peft.LoRA, target_modules=["output_layer"], dim=4)})
