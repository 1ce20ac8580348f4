"""Short-to-long preference optimization (LongPO) for Megatron-Core and NeMo 2.x.

The names of `__all__` are the stable interface, described in docs/api.md. Each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.branches import branch_attention
    from .conversion.exporter import export_checkpoint
    from .conversion.importer import import_checkpoint
    from .costs.model_shape import ModelShape, load_shape
    from .errors import InputError
    from .logprobs import token_logprobs
    from .objective import Objective, PairSums, longpo_loss
    from .parallel.layout import PairRows, lay_out_pair
    from .placement import Placement
    from .recipes.base import longpo_recipe
    from .shards.manifest import Provenance, ReferenceModel
    from .shards.reader import ShardReader
    from .shards.schema import PairRecord
    from .shards.writer import ShardWriter

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "ModelShape",
    "Objective",
    "PairRecord",
    "PairRows",
    "PairSums",
    "Placement",
    "Provenance",
    "ReferenceModel",
    "ShardReader",
    "ShardWriter",
    "branch_attention",
    "export_checkpoint",
    "import_checkpoint",
    "lay_out_pair",
    "load_shape",
    "longpo_loss",
    "longpo_recipe",
    "token_logprobs",
]

_MODULES = {
    "attention.branches": ("branch_attention",),
    "conversion.exporter": ("export_checkpoint",),
    "conversion.importer": ("import_checkpoint",),
    "costs.model_shape": ("ModelShape", "load_shape"),
    "errors": ("InputError",),
    "logprobs": ("token_logprobs",),
    "objective": ("Objective", "PairSums", "longpo_loss"),
    "parallel.layout": ("PairRows", "lay_out_pair"),
    "placement": ("Placement",),
    "recipes.base": ("longpo_recipe",),
    "shards.manifest": ("Provenance", "ReferenceModel"),
    "shards.reader": ("ShardReader",),
    "shards.schema": ("PairRecord",),
    "shards.writer": ("ShardWriter",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
