"""NeMo with Megatron-Core 0.15 and 0.16: which versions were tried together, and what NeMo calls as 0.15 has it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import nemo
from megatron import core
from megatron.core import optimizer as megatron_optimizer
from nemo.utils import logging

from nemo_longpo import trainers
from nemo_longpo.errors import InputError


def refuse_untried(nemo_version: str = nemo.__version__, core_version: str = core.__version__) -> None:
    """Raises InputError if the tests never ran this release of NeMo, or of Megatron-Core, under NeMo.

    A later Megatron-Core may take what NeMo and we hand it, and compute something else. Two releases that were only
    tried with others are warned of: images hold builds between releases.
    """
    versions = {"nemo-toolkit": nemo_version, "megatron-core": core_version}
    (found,) = trainers.installed(versions, devices=())
    for rule in trainers.NEMO.rules:
        if rule.package in versions and (objection := rule.objection(versions)):
            raise InputError(f"{objection}; tested are NeMo and Megatron-Core {found.tested}.")
    if not found.is_tested:
        logging.warning(f"{found.pair} were not tested together; tested are {found.tested}")


@contextmanager
def optimizer_as_nemo_calls_it() -> Iterator[None]:
    """In it, NeMo's `setup_megatron_optimizer` (nemo/lightning/_strategy_lib.py:712) works on Megatron-Core 0.16 too.

    There, `config_overrides` replaced three arguments of `get_megatron_optimizer`, and NeMo 2.7 still passes them.
    Where none is set, both versions decay all weights but biases and norms.
    """
    build = megatron_optimizer.get_megatron_optimizer
    if "no_weight_decay_cond" not in signature(build).parameters:
        megatron_optimizer.get_megatron_optimizer = _without_conditions(build)
    try:
        yield
    finally:
        megatron_optimizer.get_megatron_optimizer = build


def _without_conditions(build: Callable[..., Any]) -> Callable[..., Any]:
    def as_in_015(*settings: Any, no_weight_decay_cond: Any, scale_lr_cond: Any, lr_mult: float, **more: Any) -> Any:
        for name, value in (("no_weight_decay_cond", no_weight_decay_cond), ("scale_lr_cond", scale_lr_cond)):
            if value is not None:
                raise InputError(
                    f"optim.{name} is set, which Megatron-Core dropped in 0.16 and NeMo does not translate; set it to "
                    "null, or use Megatron-Core 0.15."
                )
        return build(*settings, **more)

    return as_in_015
