"""How context-parallel ranks exchange the trunk's keys and values, and what each way requires of a model.

The conditions are Transformer Engine 2.9's (pytorch/attention/dot_product_attention/context_parallel.py:
attn_forward_func_with_cp and the three autograd functions that it calls). They are checked before a run starts, not in
the first layer.

| cp_comm_type | what is sent                                              | requires                                |
|--------------|-----------------------------------------------------------|-----------------------------------------|
| `p2p`        | keys and values around a ring, while attention computes   | no sliding window                       |
| `a2a`        | heads for rows: a rank gets all rows of some heads        | heads divisible by cp, head size by 8   |
| `all_gather` | all keys and values to every rank, before attention       | head size divisible by 8, memory        |
| `a2a+p2p`    | `a2a` among a neighbours, `p2p` around rings of cp / a    | heads divisible by a, no sliding window |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import get_args

from nemo_longpo.errors import InputError
from nemo_longpo.placement import CpCommType


@dataclass(frozen=True)
class AttentionShape:
    """The attention sizes of a model. `window` is (left, right) rows as in Megatron; −1 means no limit."""

    heads: int
    kv_heads: int
    head_size: int
    window: tuple[int, int] | None = None

    @property
    def slides(self) -> bool:
        return self.window is not None and self.window[0] != -1


def check_cp_comm(
    shape: AttentionShape,
    comm_type: CpCommType,
    cp_size: int,
    tp_size: int = 1,
    hierarchical_sizes: Sequence[int] | None = None,
) -> None:
    """Check that Transformer Engine can run `comm_type` for this model and these sizes.

    `hierarchical_sizes` are those of `a2a+p2p`: ranks that exchange heads (neighbours), then ranks of a ring.

    Raises InputError, naming the setting and what to choose instead, if it cannot.
    """
    setting = f"trainer.strategy.cp_comm_type={comm_type}"
    if comm_type not in get_args(CpCommType):
        raise InputError(
            f"trainer.strategy.cp_comm_type is {comm_type!r}; choose one of {', '.join(get_args(CpCommType))}."
        )
    _check_hierarchical_sizes(comm_type, cp_size, hierarchical_sizes)
    if cp_size == 1:
        return
    if shape.window and shape.slides and comm_type in ("p2p", "a2a+p2p"):
        raise InputError(
            f"The model attends within a sliding window of {shape.window[0]} tokens, which {setting} cannot do under "
            "context parallelism; choose a2a or all_gather, or import the checkpoint with --full-attention."
        )
    if shape.head_size % 8 and comm_type in ("a2a", "all_gather"):
        raise InputError(
            f"The model's heads have {shape.head_size} channels and {setting} needs a multiple of 8; choose p2p."
        )
    # Heads that a rank has after tensor parallelism must divide among the ranks that exchange them.
    exchanging = {"a2a": cp_size, "a2a+p2p": (hierarchical_sizes or [1])[0]}.get(comm_type, 1)
    heads, kv_heads = shape.heads // tp_size, shape.kv_heads // tp_size
    if heads % exchanging or kv_heads % exchanging:
        most = gcd(heads, kv_heads, cp_size)
        nested = f", or a2a+p2p with hierarchical_context_parallel_sizes=[{most},{cp_size // most}]" if most > 1 else ""
        raise InputError(
            f"{setting} divides the {heads} attention heads and {kv_heads} key/value heads of a rank "
            f"(tensor_model_parallel_size={tp_size}) among {exchanging} ranks, which is not possible; choose "
            f"p2p, which takes any number of heads{nested}."
        )


def _check_hierarchical_sizes(comm_type: CpCommType, cp_size: int, sizes: Sequence[int] | None) -> None:
    name = "trainer.strategy.hierarchical_context_parallel_sizes"
    if comm_type != "a2a+p2p":
        if sizes is not None:
            raise InputError(f"{name} belongs to cp_comm_type=a2a+p2p; leave it out with cp_comm_type={comm_type}.")
    elif sizes is None or len(sizes) != 2 or prod(sizes) != cp_size or min(sizes) < 1:
        raise InputError(
            f"{name} is {None if sizes is None else list(sizes)}; cp_comm_type=a2a+p2p needs two sizes whose product "
            f"is context_parallel_size={cp_size}: ranks that exchange heads, then ranks of a ring."
        )
