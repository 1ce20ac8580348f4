"""Megatron-Bridge's names of settings, from NeMo's: in sentences of what both trainers share, and in plans."""

import re
from typing import Any

from nemo_longpo.errors import InputError

SECTIONS = {
    "trainer.strategy": "model",
    "trainer.strategy.ddp": "ddp",
    "trainer": "train",
    "data": "dataset",
    "optim.config": "optimizer",
    "resume": "checkpoint",
}
"""Where the settings of one of NeMo's objects lie; longer names count first."""

NAMES = {
    "data.global_batch_size": "train.global_batch_size",
    "data.micro_batch_size": "train.micro_batch_size",
    "trainer.max_steps": "train.train_iters",
    "trainer.strategy.non_finite_steps": "train.non_finite_steps",
    "trainer.strategy.max_skipped_steps": "train.max_skipped_steps",
    # Bridge overwrites `ddp.grad_reduce_in_fp32` with it.
    "trainer.plugins.grad_reduce_in_fp32": "mixed_precision.grad_reduce_in_fp32",
    "optim.lr_scheduler.warmup_ratio": "scheduler.lr_warmup_fraction",
    "optim.lr_scheduler.min_lr": "optimizer.min_lr",
    "resume.restore_config.path": "checkpoint.pretrained_checkpoint",
    "resume.resume_from_path": "checkpoint.load",
    "log.log_dir": "checkpoint.save",
    "log.ckpt.every_n_train_steps": "checkpoint.save_interval",
    "log.ckpt.save_top_k": "checkpoint.most_recent_k",
}
"""Settings that lie elsewhere, or have another name, than their section says."""

PHRASES: dict[str, Any] = {
    r"set resume\.resume_if_exists=True and leave resume\.resume_from_path unset": "leave checkpoint.load unset",
    r"import it with `longpo convert import --max-length (\d+)` or more \(and a --rope-theta or --rope-scaling": (
        r"set model.seq_length=\1 or more (and model.rotary_base or model.rope_scaling"
    ),
    r"import it again with `longpo convert import`": "take the model's Hugging Face directory",
    r"import the checkpoint with --full-attention": "take a model whose config.json has no sliding_window",
    r"([Ii])mport the model that scored": lambda found: (
        f"{'S' if found[1] == 'I' else 's'}tart from the model that scored"
    ),
}
"""Advice that is another here: patterns, and what replaces them."""

_NAME = re.compile(r"(?<![/.\w])(?:trainer|data|optim|resume|log)(?:\.[a-z_0-9]+)+")


def translate(sentence: str) -> str:
    """Return a sentence with Bridge's names of settings."""
    for theirs, ours in PHRASES.items():
        sentence = re.sub(theirs, ours, sentence)
    return _NAME.sub(lambda found: translate_name(found[0]), sentence)


def translate_name(name: str) -> str:
    """Return Bridge's name of one of NeMo's settings; what is no setting comes back as it is."""
    if name in NAMES:
        return NAMES[name]
    for theirs in sorted(SECTIONS, key=len, reverse=True):
        if name.startswith(theirs + "."):
            return SECTIONS[theirs] + name.removeprefix(theirs)
    return name


def translated(error: InputError) -> InputError:
    return InputError(translate(str(error)))
