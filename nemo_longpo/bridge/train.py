"""Train with Megatron-Bridge: `torchrun --nproc-per-node=8 -m nemo_longpo.bridge.train --recipe NAME key=value …`."""

import argparse
import copy
import difflib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import is_dataclass
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
import torch.distributed as dist
from megatron.bridge.training import callbacks as bridge_callbacks, config as bridge_config
from megatron.bridge.training.pretrain import pretrain
from megatron.bridge.training.utils.omegaconf_utils import OverridesError, process_config_with_overrides
from megatron.bridge.utils import common_utils, instantiate_utils

from nemo_longpo import atomic, run_log, setting_names, terminal
from nemo_longpo.checkpoints import run_directory
from nemo_longpo.errors import ERROR_MARK, InputError, one_line
from nemo_longpo.megatron import backend, full_disk
from nemo_longpo.placement import Precision

from . import recipes, run_start

# Classes that Bridge may build from a `run_config.yaml`, and the manager of checkpoints.
instantiate_utils.register_allowed_target_prefix("nemo_longpo.bridge.")

_EXAMPLE = """example:
  torchrun --nproc-per-node=8 -m nemo_longpo.bridge.train --recipe mistral_7b_longpo_128k --log-dir runs/128k \\
      checkpoint.pretrained_checkpoint=MISTRAL_HF dataset.paths=[SHARDS] model.rotary_base=1e7 model.seq_length=139264

recipes:
"""


def train(config: bridge_config.ConfigContainer, callbacks: Sequence[bridge_callbacks.Callback] = ()) -> None:
    """Run a configuration on this process's share of the job, from its newest complete checkpoint if there is one.

    `config` stays as it is given. The environment names the ranks, as `torchrun` or Slurm sets it. Raises InputError on
    all ranks if the run cannot be as it is asked for, or ends because of its input; the sentence has Bridge's names of
    settings.
    """
    config = copy.deepcopy(config)  # Bridge and `prepare` complete theirs
    with _process_groups(config), _in_words_of_bridge(config), ExitStack() as whole_run:
        run = run_start.prepare(config, whole_run)
        if dist.get_rank() == 0:
            command = run_directory.beside_checkpoints(Path(config.checkpoint.save)).command
            atomic.write_file(command, shlex.join(sys.argv))
        try:
            pretrain(config, run.step, callbacks=[run.callback, *callbacks])
        except BaseException as error:
            run.callback.end(error)
            if isinstance(error, SystemExit) and config.train.exit_signal_handler and not error.code:
                # Else whoever waits for the run would go on with what is half trained.
                error.code = 128 + config.train.exit_signal
            raise
        run.callback.end()


def build(
    recipe: str, overrides: Sequence[str] = (), log_dir: str | None = None, precision: Precision | None = None
) -> bridge_config.ConfigContainer:
    """Return a recipe's configuration with overrides such as `optimizer.lr=1e-6`, in Hydra's grammar.

    Raises InputError if there is no such recipe or setting.
    """
    if recipe not in recipes.RECIPES:
        raise InputError(f"there is no recipe {recipe}; choose one of {', '.join(recipes.RECIPES)}.")
    config = recipes.RECIPES[recipe]()
    if log_dir is not None:
        recipes.set_log_dir(config, log_dir)
    if precision is not None:
        recipes.set_precision(config, precision)
    for override in overrides:
        _require_setting(config, override)
    before = copy.deepcopy(config)
    try:
        config = process_config_with_overrides(config, cli_overrides=list(overrides))
    except OverridesError as error:
        raise InputError(f"{one_line(error)} (in {' '.join(overrides)})") from error
    for path in sorted((override.partition("=")[0] for override in overrides), key=lambda path: path.count(".")):
        _require_kind(before, config, path)
    return config


def _require_setting(config: bridge_config.ConfigContainer, override: str) -> None:
    """Raises InputError unless it names a setting that the configuration has."""
    path, equals, _ = override.partition("=")
    if not equals or path[:1] in ("+", "~"):
        raise InputError(f"{override!r} is no override; give section.name=value of a setting that the recipe has.")
    owner: Any = config
    for name in path.split("."):
        known = dict(owner) if isinstance(owner, dict) else vars(owner) if is_dataclass(owner) else {}
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            advice = f"did you mean {' or '.join(close)}?" if close else "--dryrun prints those that there are."
            if (here := setting_names.translate_name(path)) != path:  # one of NeMo's
                with suppress(InputError):
                    _require_setting(config, f"{here}=")
                    advice = f"with Megatron-Bridge it is {here}."
            raise InputError(f"there is no setting {path}; {advice}")
        owner = known[name]


def _require_kind(before: Any, config: Any, path: str) -> None:
    """Raises InputError if a value is of another kind than the setting: Bridge takes any, and fails over it later."""
    *owners, name = path.split(".")
    for owner in owners:
        before, config = (part[owner] if isinstance(part, dict) else getattr(part, owner) for part in (before, config))
    if isinstance(config, dict):
        return
    value, hint = getattr(config, name), get_type_hints(type(config)).get(name, Any)
    if is_dataclass(getattr(before, name)) and not is_dataclass(value):
        raise InputError(f"{path} is a section of settings and {value!r} is none; give {path}.name=value.")
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(kind in _KINDS for kind in kinds):
        return
    if not any(isinstance(value, _KINDS[kind]) and (kind is bool or not isinstance(value, bool)) for kind in kinds):
        words = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
        raise InputError(f"{path} is {value!r}; give {words}.")


_KINDS: dict[Any, Any] = {bool: bool, int: int, float: int | float, str: str, NoneType: NoneType}
"""Kind of a setting -> what its value may be."""


@contextmanager
def _process_groups(config: bridge_config.ConfigContainer) -> Iterator[None]:
    """Begin the job before Bridge does: ranks agree on what they were given before any work."""
    if dist.is_initialized():
        yield
        return
    here, world = backend.current_backend(), common_utils.get_world_size_safe()
    if here.is_accelerated:
        torch.cuda.set_device(0 if config.dist.external_gpu_device_mapping else common_utils.get_local_rank_preinit())
    if world > 1:  # what Slurm knows, where no torchrun has said it
        os.environ.setdefault("MASTER_ADDR", common_utils.get_master_addr_safe())
        os.environ.setdefault("MASTER_PORT", str(common_utils.get_master_port_safe()))
    dist.init_process_group(
        config.dist.distributed_backend if here.is_accelerated else "gloo",
        rank=common_utils.get_rank_safe(),
        world_size=world,
        store=dist.HashStore() if world == 1 else None,
        timeout=timedelta(minutes=config.dist.distributed_timeout_minutes),
    )
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _in_words_of_bridge(config: bridge_config.ConfigContainer) -> Iterator[None]:
    """Send our log to this terminal, and errors out with Bridge's names; a full disk becomes one sentence."""
    run_log.send_to(_Terminal(is_first=dist.get_rank() == 0))
    full_disk.leave_to_main_thread()
    logging.getLogger(pretrain.__module__).addFilter(_is_no_refusal)
    try:
        yield
    except InputError as error:
        raise setting_names.translated(error) from error
    except Exception as error:
        if reason := full_disk.no_room(error):
            raise InputError(
                f"{config.checkpoint.save} cannot be written: {reason}; make room and run the same command again, "
                f"{run_directory.GOES_ON}"
            ) from error
        raise


class _Terminal:
    """Shows lines of our log on the first rank, with Bridge's names."""

    def __init__(self, is_first: bool):
        self.is_first = is_first

    def info(self, line: str) -> None:
        if self.is_first:
            terminal.note(f"longpo: {setting_names.translate(line)}")

    def warning(self, line: str) -> None:
        self.info(f"warning: {line}")

    error = warning


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Bridge logs a traceback of every exception; the sentence of an InputError is printed once, at the end."""
    return not (record.exc_info and isinstance(record.exc_info[1], InputError))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 if something is wrong with the input."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_longpo.bridge.train",
        description="Train a model on preference pairs with Megatron-Bridge.",
        epilog=_EXAMPLE + "".join(f"  {name}: {text}\n" for name, text in recipes.SUMMARIES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", required=True, metavar="NAME", help="one of those below")
    parser.add_argument("--log-dir", metavar="DIR", help="directory of the run (nemo_experiments)")
    parser.add_argument("--precision", choices=get_args(Precision), help="of weights, activations and optimizer")
    parser.add_argument("--dryrun", action="store_true", help="print the configuration and train nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, such as optimizer.lr=1e-6")
    given = parser.parse_args(arguments)
    try:
        # NeMo-Run puts words in quotes for a shell, and starts torchrun on this machine without one.
        overrides = [word[1:-1] if word[:1] == word[-1:] == "'" else word for word in given.overrides]
        config = build(given.recipe, overrides, given.log_dir, given.precision)
        if given.dryrun:
            config.print_yaml()
        else:
            train(config)
    except InputError as error:
        if common_utils.get_rank_safe() == 0:
            terminal.note(f"{ERROR_MARK}{error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
