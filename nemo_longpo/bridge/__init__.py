"""Training with Megatron-Bridge: its recipes, its `pretrain` loop and its checkpoints, with our model, data and loss.

Needs Megatron-Bridge, which needs Python 3.12; `nemo_longpo.nemo` is the same with NeMo 2. Importing it prepares this
process for the CPU where there is no accelerator, because Bridge cannot be imported there without.
"""

from nemo_longpo.megatron.backend import start_backend

start_backend("bridge")
