"""Let stock NeMo and Megatron-Core use imported checkpoints. Run as a script, in a separate process, because the
CPU backend redirects torch for the whole process.

Usage: megatron_side.py NEMO_ROOT OUTPUT. NEMO_ROOT holds a checkpoint per case. In OUTPUT: `logits/CASE.pt`;
`saved/CASE`, the checkpoint that NeMo and Megatron write from the loaded model; `asked.json`, NeMo's version, and by
case the tensors (with shapes) and objects that the model asks for; `longpo`, a step of our recipe and two resumed ones.
"""

import json
import sys
from pathlib import Path

import torch
from support.conversion_cases import CASES

LEARNING_RATE = 1e-2


def load_model(checkpoint: Path):
    """The stock NeMo model, built for one rank with the layers that NeMo finds, weights loaded by Megatron itself."""
    from megatron.core import dist_checkpointing
    from nemo.lightning.io import load_context

    from nemo_longpo.backends import cpu

    model = load_context(checkpoint, subpath="model")
    config = cpu.without_cuda_kernels(model.config)
    config.fp16, config.bf16, config.params_dtype = False, False, torch.float32
    module = config.configure_model(model.tokenizer).eval()
    sharded = module.sharded_state_dict(prefix="module.")
    asked = {
        value.unique_key if hasattr(value, "unique_key") else value.key: list(getattr(value, "global_shape", ()))
        for value in sharded_values(sharded)
    }
    loaded = dist_checkpointing.load(module.sharded_state_dict(prefix="module."), str(checkpoint / "weights"))
    module.load_state_dict({name.removeprefix("module."): value for name, value in loaded.items() if "module." in name})
    return module, asked


def sharded_values(sharded: dict):
    """Sharded tensors and objects, with factories (gate and up projection) resolved to the tensor they stand for."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    for value in sharded.values():
        yield from value.build()[:1] if isinstance(value, ShardedTensorFactory) else [value]


def logits(module, ids: torch.Tensor) -> torch.Tensor:
    """[B, S, V] in fp32."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        return module(ids, positions, None).float()


def save_again(module, checkpoint: Path, target: Path) -> None:
    """As NeMo's checkpoint callback does: weights through Megatron, context through NeMo's io."""
    from megatron.core import dist_checkpointing
    from nemo.lightning.io import load_context

    (target / "weights").mkdir(parents=True)
    dist_checkpointing.save(module.sharded_state_dict(prefix="module."), str(target / "weights"))
    load_context(checkpoint).io_dump(target / "context", yaml_attrs=["model"])


def examine(nemo_root: Path, output: Path) -> None:
    """Every case in turn. The CPU backend is active."""
    import nemo
    import torch.distributed
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    (output / "logits").mkdir()
    asked = {}
    for case in CASES:
        module, asked[case] = load_model(nemo_root / case)
        torch.save(logits(module, torch.arange(40).reshape(2, 20)), output / "logits" / f"{case}.pt")
        save_again(module, nemo_root / case, output / "saved" / case)
    (output / "asked.json").write_text(json.dumps({"version": nemo.__version__, **asked}))


def train(checkpoint: Path, output: Path, steps: int) -> None:
    """Our recipe on pairs for the tiny Mistral; a run that is there already in `output/longpo` goes on."""
    from support import training_pairs as pairs
    from support.jobs.nemo_jobs import finetune
    from support.tiny_models import DEFAULT_STYLE, tiny_tokenizer

    from nemo_longpo.conversion.model_on_disk import open_checkpoint

    rows = open_checkpoint(checkpoint).model_shape.vocab
    shards = output / "shards"
    if not shards.exists():
        pairs.write_shards(shards, pairs.uneven_records(rows), tiny_tokenizer(DEFAULT_STYLE["mistral"]), rows)
    overrides = {
        "data.paths": str(shards),
        "resume.restore_config.path": str(checkpoint),
        "log.log_dir": str(output),
        "log.ckpt.every_n_train_steps": 1,
        "log.ckpt.save_optim_on_train_end": True,
        "optim.config.lr": LEARNING_RATE,
        "optim.lr_scheduler": None,
        "trainer.max_steps": steps,
    }
    finetune(overrides, checkpoints=True)


def main(nemo_root: Path, output: Path) -> None:
    import nemo.collections.llm  # noqa: F401  (before the redirections: torch.compile at import time trips over them)

    from nemo_longpo.backends import cpu

    cpu.activate()
    for steps in (1, 3):
        train(nemo_root / "mistral", output, steps)
    examine(nemo_root, output)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
