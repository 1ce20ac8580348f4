"""Where a run begins, and with what: checked on all ranks before Megatron-Bridge's loop does any work."""

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from megatron.bridge.training.config import ConfigContainer, runtime_config_update
from megatron.bridge.utils.common_utils import get_local_rank_preinit

from nemo_longpo.checkpoints import completeness, forms, run_directory, trust
from nemo_longpo.errors import InputError, one_line
from nemo_longpo.megatron import finite_steps, held_directory, loss, pair_data, run_inputs, topology
from nemo_longpo.run_log import LOG
from nemo_longpo.shards.fingerprint import tokenizer_fingerprint
from nemo_longpo.yaml_input import read_yaml_mapping

from . import architecture, run_checkpoints, run_settings, training_loop


@dataclass(frozen=True)
class Job:
    """What `pretrain` takes beside the configuration."""

    step: training_loop.PairStep
    callback: training_loop.RunCallback


def prepare(config: ConfigContainer, whole_run: ExitStack) -> Job:
    """Complete the configuration in place, open the data, and hold both to what the run began with.

    `whole_run` keeps other runs out of the run's directory, from before the first write until it is closed.

    Process groups of the whole job must exist; all ranks call this, and see the run's directory. Raises InputError on
    all ranks if the run cannot be as it is asked for.
    """
    places = _Places.find(config)
    is_first = dist.get_rank() == 0
    opened: list[pair_data.PairData] = []

    def check_and_open() -> None:
        architecture.adopt(config.model, places.loaded if places.start is None else places.start)
        run_settings.check(config)
        run_settings.complete(config)
        _check_by_bridge(config)
        places.check(trusted=config.checkpoint.trust_checkpoint)
        if places.resumed:
            _hold_order(config, places.resumed)
        opened.append(_open_data(config, places))

    topology.raise_on_all(check_and_open)
    (data,) = opened
    inputs = run_directory.beside_checkpoints(Path(config.checkpoint.save)).inputs
    whole_run.enter_context(held_directory.held(inputs, first=is_first))
    if config.dataset.check_hashes:
        run_inputs.check_shards(data.readers, inputs, local_rank=get_local_rank_preinit(), first=is_first)
    topology.raise_on_all(lambda: _hold_inputs(config, places, data, inputs), here=is_first)
    if places.of_bridge:
        run_inputs.check_checkpoint(places.loaded, hashes=config.checkpoint.check_hashes)
    if is_first:
        run_checkpoints.remove_unfinished(Path(str(config.checkpoint.save)))
    dist.barrier()
    return _job(config, places, data)


def _check_by_bridge(config: ConfigContainer) -> None:
    """Let Bridge check the settings as `pretrain` will, on a copy. Raises InputError if it refuses them."""
    try:
        runtime_config_update(copy.deepcopy(config))
    except (AssertionError, ValueError) as error:
        raise InputError(f"Megatron-Bridge refuses the settings: {one_line(error)}") from error


def _job(config: ConfigContainer, places: "_Places", data: pair_data.PairData) -> Job:
    model = config.model
    pair_loss = loss.PairLoss(model.chosen_objective, vars(model), model.pair_layout)
    finite = finite_steps.FiniteSteps(config.train.non_finite_steps, config.train.max_skipped_steps)
    step = training_loop.PairStep(pair_loss, finite)
    if not config.logger.tensorboard_dir:
        config.logger.tensorboard_dir = str(
            run_directory.beside_checkpoints(Path(config.checkpoint.save)).metrics.parent
        )
    metrics = Path(config.logger.tensorboard_dir) / run_directory.METRICS
    try:
        metrics.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{metrics.parent} cannot be made: {error.strerror}; give another directory.") from error
    start = None if places.resumed else places.start
    return Job(step, training_loop.RunCallback(step=step, data=data, metrics=metrics, start=start))


@dataclass(frozen=True)
class _Places:
    """`start` is what a new run begins with, `resumed` the checkpoint that it goes on from; one of them is there."""

    start: Path | None
    resumed: Path | None

    @property
    def loaded(self) -> Path:
        """The one whose weights are loaded."""
        loaded = self.resumed or self.start
        assert loaded is not None
        return loaded

    @property
    def of_bridge(self) -> bool:
        """Whether that is a checkpoint of Bridge, and no Hugging Face directory."""
        return forms.form_of(self.loaded) is forms.BRIDGE

    @classmethod
    def find(cls, config: ConfigContainer) -> "_Places":
        """Point the configuration at the checkpoints, and return them. Raises InputError on all ranks."""
        found: list[_Places] = []
        topology.raise_on_all(lambda: found.append(cls._find(config.checkpoint)))
        (places,) = found
        chosen = topology.gather_from_all(str(places.resumed))
        other = next((rank for rank, one in enumerate(chosen) if one != chosen[0]), None)
        if other is not None:
            raise InputError(
                f"Rank 0 begins with checkpoint {chosen[0]} and rank {other} with {chosen[other]}; checkpoint.save "
                "must be a directory that all ranks share."
            )
        return places

    @classmethod
    def _find(cls, checkpoint: Any) -> "_Places":
        if not checkpoint.save:
            raise InputError("checkpoint.save is not set; give the directory of the run's checkpoints.")
        folder = Path(checkpoint.save)
        if checkpoint.load:
            resumed: Path | None = run_directory.find_checkpoint(Path(checkpoint.load))
        else:
            resumed = run_directory.find_resume_point(folder)
        run_directory.refuse_to_start_beside(folder, resumed)
        for line in run_directory.list_checkpoints(folder).describe_left_out():
            LOG.warning(line)
        start = checkpoint.pretrained_checkpoint
        if start is None and resumed is None:
            raise InputError(
                "checkpoint.pretrained_checkpoint is not set; give the model to start from: its Hugging Face "
                "directory, or a checkpoint of Megatron-Bridge."
            )
        taken = None if start is None else run_directory.find_checkpoint(Path(start))
        for path in filter(None, (taken, resumed)):
            if not (path / "config.json").is_file() and forms.form_of(path) is not forms.BRIDGE:
                what = "is a checkpoint of NeMo" if forms.form_of(path) else "is no model"
                raise InputError(
                    f"{path} {what}; give a Hugging Face directory, or a checkpoint of Megatron-Bridge (`longpo "
                    "convert` makes them of other forms)."
                )
        checkpoint.load = None if resumed is None else str(resumed)
        checkpoint.pretrained_checkpoint = None if taken is None else str(taken)
        return cls(taken, resumed)

    def check(self, *, trusted: bool) -> None:
        """Check what Bridge loads. Raises InputError if a file is missing, or names what may run code."""
        if not self.of_bridge:
            if not any(self.loaded.glob("*.safetensors")):
                raise InputError(f"{self.loaded} holds no .safetensors file; take a model that is saved as such.")
            return
        completeness.require_complete(self.loaded)
        if not trusted:
            trust.check_weights(self.loaded)


def _hold_order(config: ConfigContainer, resumed: Path) -> None:
    """Raises InputError if documents would come in another order than in the run that is resumed."""
    begun = read_yaml_mapping(resumed / forms.RUN_CONFIG, "take another checkpoint")
    past = {**_section(begun, "dataset"), **_section(begun, "train")}
    now = vars(config.dataset) | {"global_batch_size": config.train.global_batch_size}
    names = [name for name in pair_data.ORDER_SETTINGS if name in past]
    pair_data.refuse_another_order({name: past[name] for name in names}, now)


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _open_data(config: ConfigContainer, places: _Places) -> pair_data.PairData:
    directory = _tokenizer_directory(config, places)
    config.tokenizer.tokenizer_model = str(directory)
    try:
        known = tokenizer_fingerprint(transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True))
    except (ValueError, OSError, KeyError) as error:
        raise InputError(f"{directory}: the tokenizer cannot be read ({one_line(error)}).") from error
    opened: pair_data.PairData = config.dataset.open(config.model, known, config.train.global_batch_size)
    return opened


def _tokenizer_directory(config: ConfigContainer, places: _Places) -> Path:
    """The tokenizer that was given, or that of the checkpoint that a run starts from or goes on from."""
    if config.tokenizer.tokenizer_model:
        return Path(config.tokenizer.tokenizer_model)
    checkpoints = [path for path in (places.start, places.resumed) if path]
    found = [path / room for path in checkpoints for room in ("", forms.SMALL_FILES, "tokenizer")]
    for path in found:
        if (path / "tokenizer_config.json").is_file():
            return path
    raise InputError(f"{found[0]} holds no tokenizer; set tokenizer.tokenizer_model to its directory.")


def _hold_inputs(config: ConfigContainer, places: _Places, data: pair_data.PairData, inputs: Path) -> None:
    run_inputs.hold_inputs(
        inputs,
        places.start,
        data.readers,
        config.model.chosen_objective,
        resumed=places.resumed,
        accept_changes=config.checkpoint.accept_changes,
    )
