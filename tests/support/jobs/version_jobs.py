"""Jobs of a `WorkerPool` worker about the versions of NeMo and Megatron-Core."""

import inspect
from collections.abc import Sequence

from nemo_longpo.errors import InputError


def installed() -> tuple[str, str]:
    import megatron.core
    import nemo

    return nemo.__version__, megatron.core.__version__


def refusals(pairs: Sequence[tuple[str, str]]) -> list[str | None]:
    """What is said to each pair of versions; None if it is taken."""
    from nemo_longpo.nemo.core_versions import refuse_untried

    said: list[str | None] = []
    for pair in pairs:
        try:
            said.append(refuse_untried(*pair))
        except InputError as error:
            said.append(str(error))
    return said


def arguments_of_the_optimizer() -> tuple[set[str], set[str], set[str]]:
    """Conditions that NeMo passes, and that Megatron-Core takes: as it is, and as NeMo meets it."""
    from megatron.core import optimizer
    from nemo.lightning import _strategy_lib

    from nemo_longpo.nemo.core_versions import optimizer_as_nemo_calls_it

    conditions = {"no_weight_decay_cond", "scale_lr_cond", "lr_mult"}
    passed = {name for name in conditions if f"{name}=" in inspect.getsource(_strategy_lib.setup_megatron_optimizer)}
    bare = optimizer.get_megatron_optimizer
    with optimizer_as_nemo_calls_it():
        met = optimizer.get_megatron_optimizer
    assert optimizer.get_megatron_optimizer is bare, "others find it as it was"
    return passed, *(conditions & set(inspect.signature(function).parameters) for function in (bare, met))


def decays_nothing(name: str, weight: object) -> bool:
    return True
