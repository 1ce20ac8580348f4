"""What stock NeMo makes of Hugging Face models and of our checkpoints where it finds Transformer Engine (a stand-in):
its own import, export and fine-tuning, and all that `megatron_side` does. Run as a script, in a process of its own.

Usage: stock_nemo.py HF_ROOT NEMO_ROOT OUTPUT. Each root holds a directory per case. In OUTPUT, beside what
`megatron_side` writes: `imported/CASE` by `llm.import_ckpt`; `exported/CASE` by `llm.export_ckpt` from our checkpoint;
`finetuned`, a step of NeMo's fine-tuning from our Mistral checkpoint; `longpo`, a step of our recipe from NeMo's.
"""

import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

from support import te_stand_in
from support.megatron_side import LEARNING_RATE, examine, train

CONVERTED = {
    "mistral": "Mistral",
    "qwen2-untied-bf16": "Qwen2",
    "qwen3": "Qwen3",
    "llama": "Llama",
    "llama-tied-fp16": "Llama",
}
"""Case → NeMo's classes."""


def convert(case: str, hf: Path, nemo: Path, output: Path) -> None:
    """Both directions, by NeMo's own converters."""
    from nemo.collections import llm
    from support.jobs.nemo_jobs import leave_process_group

    config = getattr(llm, {"Mistral": "MistralConfig7B"}.get(CONVERTED[case], f"{CONVERTED[case]}Config"))
    sizes = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1}  # read from HF instead
    model = getattr(llm, f"{CONVERTED[case]}Model")(config(**sizes))
    llm.import_ckpt(model, f"hf://{hf}", output / "imported" / case)
    leave_process_group()
    llm.export_ckpt(nemo, "hf", output / "exported" / case)
    leave_process_group()


def finetune(checkpoint: Path, output: Path) -> None:
    """One step of next-token training on random tokens, set up as NeMo's recipes do."""
    from megatron.core.optimizer import OptimizerConfig
    from nemo import lightning as nl
    from nemo.collections import llm
    from nemo.lightning.io import load_context
    from support.jobs.nemo_jobs import leave_process_group

    config, tokenizer = (load_context(checkpoint, subpath=f"model.{part}") for part in ("config", "tokenizer"))
    llm.finetune(
        model=llm.MistralModel(config),
        data=llm.MockDataModule(
            seq_length=32,
            micro_batch_size=1,
            global_batch_size=1,
            num_workers=0,
            num_train_samples=4,
            tokenizer=tokenizer,
        ),
        trainer=nl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            strategy=nl.MegatronStrategy(
                process_group_backend="gloo",
                replace_progress_bar=False,
                ckpt_async_save=False,
                ckpt_torch_dist_multiproc=1,
            ),
            plugins=nl.MegatronMixedPrecision(precision="32"),
        ),
        log=nl.NeMoLogger(
            log_dir=str(output / "finetuned"),
            use_datetime_version=False,
            ckpt=nl.ModelCheckpoint(every_n_train_steps=1, save_last="link"),
        ),
        optim=nl.MegatronOptimizerModule(
            config=OptimizerConfig(optimizer="adam", lr=LEARNING_RATE, use_distributed_optimizer=False)
        ),
        resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=str(checkpoint), load_artifacts=True)),
        tokenizer="model",
    )
    leave_process_group()


def main(hf_root: Path, nemo_root: Path, output: Path) -> None:
    te_stand_in.install(output / "metadata")
    import nemo.collections.llm  # before the redirections: torch.compile at import time trips over them
    import nemo.lightning
    from nemo.lightning.io import ModelConnector

    from nemo_longpo.backends import cpu
    from nemo_longpo.nemo import strategy  # noqa: F401  (derives from the class that is replaced below)

    cpu.activate()
    at_once = partial(nemo.lightning.MegatronStrategy, ckpt_async_save=False, ckpt_torch_dist_multiproc=1)
    # NeMo collects the tokenizer's files in one fixed directory of the machine.
    collect = partial(ModelConnector.save_hf_tokenizer_assets, None, save_path=str(output / "nemo_tokenizer"))
    with (
        patch.object(nemo.lightning, "MegatronStrategy", at_once),
        patch.object(ModelConnector, "save_hf_tokenizer_assets", lambda self, name: collect(name)),
    ):
        for case in CONVERTED:
            convert(case, hf_root / case, nemo_root / case, output)
    finetune(nemo_root / "mistral", output)
    train(output / "imported" / "mistral", output, steps=1)
    examine(nemo_root, output)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
