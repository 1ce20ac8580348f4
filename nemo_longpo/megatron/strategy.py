"""NeMo's Megatron strategy, at home on machines with and without an accelerator."""

from typing import Any

from nemo import lightning as nl

from nemo_longpo.backends import cpu


class LongPOStrategy(nl.MegatronStrategy):
    """Every rank builds its strategy before it touches a device, so this is where the CPU backend switches itself on.

    Takes what `nemo.lightning.MegatronStrategy` takes. Without an accelerator, process groups run over gloo and
    checkpoints are written by the rank itself: the asynchronous writer forks helpers, which pays off on GPUs only.
    """

    def __init__(self, **kwargs: Any):
        if cpu.activate():
            kwargs |= {"process_group_backend": "gloo", "ckpt_async_save": False, "ckpt_torch_dist_multiproc": 1}
        super().__init__(**kwargs)
