"""Imports Megatron-Bridge where packages are missing that it asks for without need, as on a machine without a GPU.

Megatron-Bridge 0.6.2 imports Transformer Engine, ModelOpt and the resiliency extension at the top of a few files and
guards against their absence everywhere else. For the time of the import, those few files are given stand-ins; all
others find nothing and note that the package is not there. Nothing is left in `sys.modules`, and a package that is
installed is imported as ever.
"""

import builtins
import importlib
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

from nemo_longpo import trainers
from nemo_longpo.errors import InputError

UNGUARDED = {
    "transformer_engine": {
        "megatron.bridge.peft.lora_layers": 20,  # classes for annotations and isinstance
    },
    "nvidia_resiliency_ext": {
        "megatron.bridge.training.pretrain": 19,  # the class of a parameter
        "megatron.bridge.training.inprocess_restart": 22,  # asked for by a setting only
    },
    "modelopt": {
        "megatron.bridge.training.checkpointing": 56,
        "megatron.bridge.training.eval": 29,
        "megatron.bridge.training.train": 65,
        "megatron.bridge.training.gpt_step": 19,
        "megatron.bridge.training.post_training.distillation": 17,
        "megatron.bridge.models.distillation_provider": 19,
    },
}
"""Package -> modules that import it unguarded, each with the line (Megatron-Bridge 0.6.2)."""

# ModelOpt's, called in every training: with a model that ModelOpt has not changed, these have nothing to do.
_NOTHING_TO_DO = {
    "get_tensor_shapes_adjust_fn_for_distillation",  # training/train.py:905, training/eval.py:153
    "restore_modelopt_state",  # training/checkpointing.py:2218
    "save_modelopt_state",  # training/checkpointing.py:1392
    "save_sharded_modelopt_state",  # training/checkpointing.py:1383
}


class Absent(type):
    """The type of what stands in for a missing package, its modules and its classes: a class without instances."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return (lambda *args, **kwargs: None) if name in _NOTHING_TO_DO else Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"{cls.__name__} was called, but {cls.__name__.partition('.')[0]} is not installed here")


# Megatron-Core defines its layers of Transformer Engine in any case, as mocks where that is missing. Who asks for one
# by name (megatron/bridge/utils/import_utils.py:324) would take it for the layer, and isinstance() raises at a mock.
_MEGATRONS_TE_LAYERS = "megatron.core.extensions.transformer_engine"


def import_bridge() -> None:
    """Import Megatron-Bridge and the modules of `UNGUARDED`. Call it before any other import of Megatron-Bridge.

    Raises InputError if Megatron-Bridge is not installed.
    """
    if not trainers.is_installed("megatron.bridge"):
        raise InputError(
            "Megatron-Bridge is not installed here: use an image or an environment that has it, for example that of "
            "`make bridge-env`."
        )
    import_with_stand_ins(UNGUARDED)


def import_with_stand_ins(unguarded: Mapping[str, Collection[str]]) -> None:
    """Import all modules that a table like `UNGUARDED` names, and give them stand-ins for what is missing of it."""
    missing = {package for package in unguarded if not trainers.is_installed(package)}
    import_statement, import_module = builtins.__import__, importlib.import_module

    def import_or_stand_in(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        package, importer = name.partition(".")[0], (globals or {}).get("__name__", "")
        if level == 0 and package in missing and importer in unguarded[package]:
            return Absent(name if fromlist else package, (), {})
        return import_statement(name, globals, locals, fromlist, level)

    def import_by_name(name: str, package: str | None = None) -> ModuleType:
        if name == _MEGATRONS_TE_LAYERS and "transformer_engine" in missing:
            raise ModuleNotFoundError(f"No Transformer Engine for {name}", name="transformer_engine")
        return import_module(name, package)

    builtins.__import__, importlib.import_module = import_or_stand_in, import_by_name
    try:
        for importers in unguarded.values():
            for module in importers:
                import_module(module)
    finally:
        builtins.__import__, importlib.import_module = import_statement, import_module
