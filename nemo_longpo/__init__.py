"""Short-to-long preference optimization (LongPO) on Megatron-Core, with NeMo 2 or Megatron-Bridge.

The names of `__all__` are the stable interface, described in docs/api.md. Each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.branches import branch_attention as branch_attention
    from .conversion.exporter import export_checkpoint as export_checkpoint
    from .conversion.importer import import_checkpoint as import_checkpoint
    from .costs.model_shape import ModelShape as ModelShape, load_shape as load_shape
    from .errors import InputError as InputError
    from .logprobs import token_logprobs as token_logprobs
    from .nemo.recipes import longpo_recipe as longpo_recipe
    from .objective import Objective as Objective, PairSums as PairSums, longpo_loss as longpo_loss
    from .parallel.layout import PairRows as PairRows, lay_out_pair as lay_out_pair
    from .placement import Placement as Placement
    from .shards.manifest import Provenance as Provenance, ReferenceModel as ReferenceModel
    from .shards.reader import ShardReader as ShardReader
    from .shards.schema import PairRecord as PairRecord
    from .shards.writer import ShardWriter as ShardWriter

__version__ = "0.1.0"

_MODULES = {
    "attention.branches": ("branch_attention",),
    "conversion.exporter": ("export_checkpoint",),
    "conversion.importer": ("import_checkpoint",),
    "costs.model_shape": ("ModelShape", "load_shape"),
    "errors": ("InputError",),
    "logprobs": ("token_logprobs",),
    "nemo.recipes": ("longpo_recipe",),
    "objective": ("Objective", "PairSums", "longpo_loss"),
    "parallel.layout": ("PairRows", "lay_out_pair"),
    "placement": ("Placement",),
    "shards.manifest": ("Provenance", "ReferenceModel"),
    "shards.reader": ("ShardReader",),
    "shards.schema": ("PairRecord",),
    "shards.writer": ("ShardWriter",),
}
__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
