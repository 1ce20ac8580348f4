"""Find and check the checkpoint that a run takes its weights and architecture from."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fiddle as fdl
import lightning.pytorch as pl
from nemo.collections import llm
from nemo.lightning import AutoResume, ModelCheckpoint, io
from nemo.utils import AppState, logging

from nemo_longpo.checkpoints import completeness, integrity, run_directory, trust
from nemo_longpo.errors import InputError
from nemo_longpo.megatron import backend
from nemo_longpo.model_directory import model_config, nemo_names, rope_settings
from nemo_longpo.yaml_input import read_yaml_mapping

from . import callbacks, strategy
from .model import ArchitectureFromCheckpoint, LongPOModel


def load_architecture(checkpoint: Path, trusted: bool = False) -> llm.GPTConfig:
    """Return the model config of a NeMo checkpoint; `trusted` allows building any object that it names.

    A record without `vocab_size`, which is what NeMo's own Mistral importer writes, is completed by the tokenizer's.

    Raises:
        InputError: no such directory, not a NeMo checkpoint, an architecture that is not trained here, or a config that
            names other objects.
    """
    context = checkpoint / "context"
    if not (context / "io.json").is_file():
        raise InputError(
            f"{checkpoint} is not a NeMo checkpoint (no context/io.json); "
            "make one with `longpo convert import --model HF_DIR --output NEMO_DIR`."
        )
    recorded = _load_context(context, "model.config", trusted, build=False)
    if not _is_trained_here(recorded.__fn_or_cls__):
        raise InputError(f"{checkpoint} holds a {recorded.__fn_or_cls__.__name__}; {trust.TRAINED_HERE}.")
    if recorded.vocab_size is None:
        recorded.vocab_size = _vocabulary_rows(context, recorded.make_vocab_size_divisible_by, trusted)
    # A config of a GPU run may not be constructible on a CPU; settings of a CPU run must not get into checkpoints.
    settings = copy.deepcopy(recorded)
    config = fdl.build(backend.current_backend().prepare(settings))
    if config.window_size is not None:
        raise InputError(
            f"{checkpoint} limits attention to a sliding window of {config.window_size[0]} tokens, and nemo_longpo "
            "trains full attention; import the model with `longpo convert import --full-attention`."
        )
    config.__io__ = recorded
    return config


def _load_context(
    context: Path, subpath: Literal["model.config", "model.tokenizer"], trusted: bool, build: bool
) -> Any:
    if not trusted:
        trust.check_context(context, subpath)
    return io.load_context(context, subpath=subpath, build=build)


def _vocabulary_rows(context: Path, multiple: int, trusted: bool) -> int:
    """Return the embedding rows for the tokenizer of a checkpoint; rows that tensor parallelism adds do not count."""
    tokens = _load_context(context, "model.tokenizer", trusted, build=True).vocab_size
    return -(-tokens // multiple) * multiple


def _is_trained_here(config: type) -> bool:
    """Return false for Llama 4 and the mixtures of experts, in the modules of Llama 3 and Qwen3, and for configs from
    other modules: their layers differ."""
    bases = (llm.MistralConfig7B, llm.Qwen2Config, llm.Qwen3Config, llm.LlamaConfig)
    known = issubclass(config, bases) and config.__module__ in {base.__module__ for base in bases}
    return known and not issubclass(config, (llm.Llama4Config, llm.gpt.model.qwen3.Qwen3MoEConfig))


def load_rope_scaling(checkpoint: Path) -> dict[str, Any] | None:
    """Return the complete RoPE scaling of a NeMo checkpoint; None if it has none.

    Our training records it with the model. A checkpoint that we imported keeps Hugging Face's `config.json`, because
    NeMo's configurations support only some scalings; one that NeMo imported has only those.

    Raises InputError if there is no record of the model.
    """
    record = checkpoint / "context" / "model.yaml"
    if not record.is_file():
        raise InputError(
            f"{record} does not exist, so the checkpoint is incomplete; take another one, or import again."
        )
    model = read_yaml_mapping(record, "take another checkpoint, or import again")
    if "rope_scaling" in model:
        return model["rope_scaling"]
    kept = checkpoint / "context" / "hf"
    if (kept / "config.json").is_file():
        return rope_settings.scaling_settings(model_config.ModelConfig.read(kept).scaling)
    return nemo_names.nemo_scaling_settings(model["config"])


@dataclass(kw_only=True)
class LongPOResume(AutoResume):
    """NeMo's resume; it also gives a model without a config the architecture of `restore_config.path`.

    It resumes from the newest complete checkpoint of the run, ignoring links, and refuses to start a new run beside
    one. `restore_config.path` and `resume_from_path` may be the directory of another run.

    Args:
        trust_checkpoint: build and unpickle anything that checkpoints name, even if it may run code.
        check_hashes: compare the files of a recorded checkpoint with their hashes before loading, not only with their
            sizes. Costs 0.6 s of a core per GB, shared by all ranks.
        accept_changes: let a run resume with other shards, or another `restore_config.path`, than it started with.
    """

    resume_from_path: str | None = None
    trust_checkpoint: bool = False
    check_hashes: bool = True
    accept_changes: bool = False

    def setup(self, trainer: pl.Trainer, model: LongPOModel) -> None:
        if self.restore_config and self.restore_config.path:
            self.restore_config.path = _take_checkpoint(self.restore_config.path, "resume.restore_config.path")
        if self.resume_from_path:
            self.resume_from_path = _take_checkpoint(self.resume_from_path, "resume.resume_from_path")
        origin = Path(self.restore_config.path) if self.restore_config and self.restore_config.path else None
        if isinstance(model.config, ArchitectureFromCheckpoint):
            if origin is None:
                raise InputError("resume.restore_config.path is not set; give the imported checkpoint to start from.")
            if (origin / "context").is_dir():
                self._check_files(origin)
            model.adopt_architecture(load_architecture(origin, self.trust_checkpoint), load_rope_scaling(origin))
        self._check_beside(trainer, model)
        if resumed := self.get_trainer_ckpt_path(model):
            self._check_files(run_directory.checkpoint_of(resumed))
        if not self.trust_checkpoint:
            self._check_what_loads(model, origin)
        super().setup(trainer, model)
        if isinstance(trainer.strategy, strategy.LongPOStrategy):
            trainer.strategy.check_hashes = self.check_hashes
        ours = callbacks.KeepInputs(origin, self.accept_changes), callbacks.ReferenceGuard(origin)
        trainer.callbacks[:0] = ours  # type: ignore[attr-defined]
        if trainer.ckpt_path and origin and self.restore_config.load_artifacts:
            _take_tokenizer(model, origin, self.trust_checkpoint)

    def get_context_path(self, model: LongPOModel | None = None) -> Path | None:
        """Return where the tokenizer comes from: `resume_from_path` too, which NeMo's own method does not look at."""
        context = run_directory.checkpoint_of(self.resume_from_path) / "context" if self.resume_from_path else None
        return context if context and context.is_dir() else super().get_context_path(model)

    def _check_beside(self, trainer: pl.Trainer, model: LongPOModel) -> None:
        if not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            return
        start = self.get_trainer_ckpt_path(model)
        folder = Path(str(trainer.checkpoint_callback.dirpath))
        run_directory.refuse_to_start_beside(folder, Path(start) if start else None)
        for line in run_directory.list_checkpoints(folder).describe_left_out():
            logging.warning(line)

    def _check_what_loads(self, model: LongPOModel, origin: Path | None) -> None:
        """Check what NeMo loads: tokenizer and weights of the checkpoint that the run resumes or starts from.

        Adapters name their base; its weights are loaded too.
        """
        resumed = self.get_trainer_ckpt_path(model)
        found = [Path(resumed), getattr(resumed, "base_model_path", None)] if resumed else []
        for weights in filter(None, [*found, origin]):
            checkpoint = run_directory.checkpoint_of(weights)
            if not checkpoint.is_dir():
                continue
            trust.check_weights(checkpoint / self.WEIGHTS_PATH)
            if self.restore_config and self.restore_config.load_artifacts:
                trust.check_context(checkpoint / "context", "model.tokenizer")

    def _check_files(self, checkpoint: Path) -> None:
        """Check the files that every rank reads now; weights are checked later, when all ranks can share the work."""
        integrity.check(checkpoint, hashes=self.check_hashes, below="context/")
        completeness.require_complete(checkpoint)

    def _find_trainer_ckpt_path(self) -> Path | None:
        """Return the newest complete checkpoint; NeMo's own method only finds links to checkpoints."""
        place = self.resume_from_directory or Path(AppState().log_dir, run_directory.CHECKPOINTS)
        if "://" in str(place):
            return super()._find_trainer_ckpt_path()
        newest = run_directory.find_resume_point(Path(place))
        if newest is None and not self.resume_ignore_no_checkpoint and not self.restore_config:
            raise InputError(f"{place} holds no checkpoint, and resume.resume_ignore_no_checkpoint is False; set it.")
        return newest


def _take_checkpoint(path: str, setting: str) -> str:
    """Return the newest checkpoint of a run's directory; other paths and addresses unchanged."""
    taken = path if "://" in path else str(run_directory.find_checkpoint(Path(path)))
    if Path(taken) != Path(path):
        logging.info(f"{setting} is a run's directory; using its newest complete checkpoint, {taken}")
    return taken


def _take_tokenizer(model: LongPOModel, origin: Path, trusted: bool) -> None:
    """Let the run copy the tokenizer of its start checkpoint into its own checkpoints.

    A resumed run would copy that of the checkpoint it resumes from. That one is deleted once the next is saved, so
    later checkpoints would hold no tokenizer and none of the model's Hugging Face files.
    """
    if (origin / "context" / "io.json").is_file():
        model.tokenizer = _load_context(origin / "context", "model.tokenizer", trusted, build=True)
        model.__io__.tokenizer = model.tokenizer.__io__
