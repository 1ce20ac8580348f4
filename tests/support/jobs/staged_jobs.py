"""Jobs whose ranks share one device, over the `staged` backend: the recipe, and the backend's own collectives."""

import os
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

SETTINGS = {
    "trainer.devices": 1,
    "trainer.strategy.process_group_backend": "staged",
    # Lightning would want a device per rank of a node, so every rank is a node.
    "optim.config.use_distributed_optimizer": False,
    "trainer.strategy.ddp.overlap_grad_reduce": False,
    "trainer.strategy.ddp.overlap_param_gather": False,
    # Megatron-Core 0.15 shares the reading out with a function that NumPy 2 no longer has.
    "trainer.strategy.ckpt_parallel_load": False,
}


def get_ready() -> None:
    """Import everything, at the same time in all workers."""
    from support.jobs import callbacks  # noqa: F401

    from nemo_longpo.nemo import recipes  # noqa: F401


def finetune(overrides: dict[str, Any], **job: Any) -> list[int]:
    """`nemo_jobs.finetune` of as many ranks as `trainer.devices` says, each a node of its own."""
    from support import staged_backend  # noqa: F401 (registers the backend)
    from support.jobs import nemo_jobs

    from nemo_longpo.nemo import strategy

    rank, ranks = os.environ["RANK"], overrides["trainer.devices"]
    place = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": rank, "NODE_RANK": rank}
    with ExitStack() as patches:
        patches.enter_context(patch.dict(os.environ, {**place, "TORCHELASTIC_RUN_ID": "staged"}))
        patches.enter_context(patch.dict(strategy._WITHOUT_ACCELERATOR, process_group_backend="staged"))
        return nemo_jobs.finetune(overrides | SETTINGS | {"trainer.num_nodes": ranks}, **job)


def collectives(device: str) -> dict[str, np.ndarray]:
    """What this rank gets from each collective; rank r of W brings [10 r, 10 r + 1, … 10 r + 2 W − 1]."""
    from support import staged_backend  # noqa: F401

    dist.init_process_group("staged")
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def mine(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return 10 * rank + torch.arange(2 * ranks, device=device).to(dtype)

    found = {"sum": mine(), "mean": mine(torch.float32), "largest": mine(torch.int64), "from rank 1": mine()}
    dist.all_reduce(found["sum"])
    dist.all_reduce(found["mean"], op=dist.ReduceOp.AVG)
    dist.all_reduce(found["largest"], op=dist.ReduceOp.MAX)
    dist.broadcast(found["from rank 1"], src=1)
    found["all"] = torch.empty(ranks * 2 * ranks, dtype=torch.bfloat16, device=device)
    dist.all_gather_into_tensor(found["all"], mine())
    found["my share of the sum"] = torch.empty(2, dtype=torch.bfloat16, device=device)
    dist.reduce_scatter_tensor(found["my share of the sum"], mine())
    found["exchanged"] = torch.empty_like(mine())
    dist.all_to_all_single(found["exchanged"], mine())
    parts = [torch.empty_like(mine()) for _ in range(ranks)]
    dist.all_gather(parts, mine())
    found["all, as a list"] = torch.cat(parts)
    found["of my neighbour"] = torch.empty_like(mine())
    dist.barrier()
    works = [
        dist.isend(mine(), (rank + 1) % ranks),
        dist.irecv(found["of my neighbour"], (rank - 1) % ranks),
    ]
    found["of the other neighbour"] = torch.empty_like(mine())
    works += dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, mine(), (rank - 1) % ranks),
            dist.P2POp(dist.irecv, found["of the other neighbour"], (rank + 1) % ranks),
        ]
    )
    for work in works:
        work.wait()
    objects: list[Any] = [None] * ranks
    dist.all_gather_object(objects, rank)
    dist.destroy_process_group()
    return {name: tensor.float().cpu().numpy() for name, tensor in found.items()} | {"objects": np.array(objects)}
