"""What stock NeMo and Megatron-Core make of imported checkpoints. Run as a script, in a process of its own, because the
CPU backend redirects torch for the whole process.

Usage: megatron_side.py NEMO_ROOT OUTPUT. NEMO_ROOT holds a checkpoint per case. In OUTPUT: `logits/CASE.pt`,
`saved/CASE`, the checkpoint that NeMo and Megatron write from the loaded model, and `asked.json`: NeMo's version, and
by case the tensors (with shapes) and objects that the model asks for.
"""

import json
import sys
from pathlib import Path

import torch
from conversion_cases import CASES


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


def main(nemo_root: Path, output: Path) -> None:
    import nemo.collections.llm  # noqa: F401  (before the redirections: torch.compile at import time trips over them)

    from nemo_longpo.backends import cpu

    cpu.activate()
    examine(nemo_root, output)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
