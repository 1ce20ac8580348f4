"""NeMo's Megatron strategy, at home on machines with and without an accelerator."""

from typing import Any

from nemo import lightning as nl

from nemo_longpo.backends import cpu


class LongPOStrategy(nl.MegatronStrategy):
    """Every rank builds its strategy before it touches a device, so this is where the CPU backend switches itself on.

    Takes what `nemo.lightning.MegatronStrategy` takes. Without an accelerator, process groups run over gloo, checkpoints
    are written at once by the rank itself (the asynchronous writer spawns helpers), and progress is Lightning's bar:
    NeMo's printer gathers timers on rank 0 alone, which NCCL lets pass for zero timers and gloo waits for forever.
    """

    def __init__(self, **kwargs: Any):
        if cpu.activate():
            kwargs |= {
                "process_group_backend": "gloo",
                "ckpt_async_save": False,
                "ckpt_torch_dist_multiproc": 1,
                "replace_progress_bar": False,
            }
        super().__init__(**kwargs)
