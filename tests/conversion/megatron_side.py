"""What stock NeMo and Megatron-Core make of an imported checkpoint. Run as a script, in a process of its own, because
the CPU backend redirects torch for the whole process.

Usage: megatron_side.py REPORT CHECKPOINT... For each checkpoint, beside it: `NAME.logits.pt` and `NAME.saved`, the
checkpoint that NeMo and Megatron write from the loaded model. REPORT is JSON: per checkpoint, the keys and shapes that
the model asks for.
"""

import json
import sys
from pathlib import Path

import torch


def load_model(checkpoint: Path):
    """The stock NeMo model, built for one rank with Megatron's local layers, weights loaded by Megatron itself."""
    from megatron.core import dist_checkpointing
    from nemo.lightning.io import load_context

    from nemo_longpo.backends import cpu

    model = load_context(checkpoint, subpath="model")
    config = cpu.without_cuda_kernels(model.config)
    config.bf16, config.params_dtype = False, torch.float32
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
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1]).tril() < 0.5
    with torch.no_grad():
        return module(ids, positions, mask).float()


def save_again(module, checkpoint: Path, target: Path) -> None:
    """As NeMo's checkpoint callback does: weights through Megatron, context through NeMo's io."""
    from megatron.core import dist_checkpointing
    from nemo.lightning.io import load_context

    (target / "weights").mkdir(parents=True)
    dist_checkpointing.save(module.sharded_state_dict(prefix="module."), str(target / "weights"))
    load_context(checkpoint).io_dump(target / "context", yaml_attrs=["model"])


def main(report: Path, checkpoints: list[Path]) -> None:
    import nemo.collections.llm  # noqa: F401  (before the redirections: torch.compile at import time trips over them)
    import torch.distributed
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from nemo_longpo.backends import cpu

    cpu.activate()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)
    asked = {}
    for checkpoint in checkpoints:
        module, asked[checkpoint.name] = load_model(checkpoint)
        torch.save(logits(module, torch.arange(40).reshape(2, 20)), checkpoint.parent / f"{checkpoint.name}.logits.pt")
        save_again(module, checkpoint, checkpoint.parent / f"{checkpoint.name}.saved")
    report.write_text(json.dumps(asked))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
