"""Old names of modules: checkpoints of earlier versions record in `context/io.json` which classes made them."""

import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "nemo_longpo.megatron.data": "nemo_longpo.nemo.data_module",
    "nemo_longpo.megatron.metrics": "nemo_longpo.nemo.callbacks",
    "nemo_longpo.megatron.model": "nemo_longpo.nemo.model",
    "nemo_longpo.megatron.schedule": "nemo_longpo.nemo.schedule",
    "nemo_longpo.megatron.strategy": "nemo_longpo.nemo.strategy",
}


class _OldNames(MetaPathFinder, Loader):
    """Gives a module of an old name the contents of the new one: the same classes, not copies."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = partial(getattr, import_module(MOVED[module.__name__]))  # type: ignore[method-assign]


def keep_old_names() -> None:
    sys.meta_path.append(_OldNames())
