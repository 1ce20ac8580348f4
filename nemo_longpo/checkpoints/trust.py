"""What a checkpoint may ask for, checked before NeMo, Megatron or PyTorch load it.

Their loaders do what a checkpoint says: NeMo imports and calls what `context/io.json` names, and unpickles files that
it refers to; PyTorch unpickles `.metadata` and the objects among the tensors; Megatron `common.pt`; a tokenizer may
bring code of its own. Of a Megatron-Bridge checkpoint nothing is built of what `run_config.yaml` names. So the part of
`io.json` that is built, every name in those pickles, and the tokenizer's settings are held to the lists below. An entry
is harmless with whatever arguments the lists allow: a configuration keeps its values, a tokenizer reads its files.
Nothing is listed by module.
"""

import io
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from nemo_longpo.errors import InputError
from nemo_longpo.json_input import read_json_object

from .completeness import COMMON_FILE, COMMON_OBJECT, WEIGHT_FILES, require_files
from .fiddle_record import Name, Recorded, read_recorded
from .integrity import COPY_AGAIN
from .pickled import DAMAGED, check_names, read_metadata

ADVICE = (
    "if you know who made the checkpoint and mean to run what it names, set resume.trust_checkpoint=True (with longpo "
    "convert verify: --trust-checkpoint)"
)
TRAINED_HERE = (
    "nemo_longpo trains Mistral (MistralConfig7B), Qwen2.5 (Qwen2Config), Qwen3 (Qwen3Config) and Llama 3 (LlamaConfig)"
)

_MODELS = "nemo.collections.llm.gpt.model"


def _names(module: str, symbols: str) -> set[Name]:
    return {Name(module, symbol) for symbol in symbols.split()}


ARCHITECTURES = (
    _names(f"{_MODELS}.mistral", "MistralConfig7B MistralNeMoConfig12B MistralNeMoConfig123B MistralSmall3Config24B")
    | _names(f"{_MODELS}.qwen2", "Qwen2Config Qwen2Config500M Qwen2Config1P5B Qwen2Config7B Qwen2Config72B")
    | _names(f"{_MODELS}.qwen2", "Qwen25Config500M Qwen25Config1P5B Qwen25Config3B Qwen25Config7B Qwen25Config14B")
    | _names(f"{_MODELS}.qwen2", "Qwen25Config32B Qwen25Config72B")
    | _names(f"{_MODELS}.qwen3", "Qwen3Config Qwen3Config600M Qwen3Config1P7B Qwen3Config4B Qwen3Config8B")
    | _names(f"{_MODELS}.qwen3", "Qwen3Config14B Qwen3Config32B")
    | _names(f"{_MODELS}.llama", "LlamaConfig Llama2Config7B Llama2Config13B Llama2Config70B Llama3Config")
    | _names(f"{_MODELS}.llama", "Llama3Config8B Llama3Config70B Llama31Config Llama31Config8B Llama31Config70B")
    | _names(f"{_MODELS}.llama", "Llama31Config405B Llama32Config1B Llama32Config3B CodeLlamaConfig7B")
    | _names(f"{_MODELS}.llama", "CodeLlamaConfig13B CodeLlamaConfig34B CodeLlamaConfig70B")
)
"""Model configurations: dataclasses."""

FIELD_VALUES = (
    _names("torch", "float32 float16 bfloat16 float64")
    | _names(f"{_MODELS}.base", "default_layer_spec local_layer_spec transformer_engine_layer_spec")
    | _names(f"{_MODELS}.base", "transformer_engine_full_layer_spec gpt_data_step gpt_forward_step")
    | _names("torch.nn.functional", "silu relu")
    | _names("torch._C._nn", "gelu")
    | _names("torch.nn.init", "normal_ zeros_ ones_ xavier_uniform_ xavier_normal_")
    | _names("megatron.core.transformer.enums", "AttnBackend.flash AttnBackend.fused AttnBackend.unfused")
    | _names("megatron.core.transformer.enums", "AttnBackend.local AttnBackend.auto")
    # Reads generation_config.json out of a directory.
    | _names("nemo.lightning.io.artifact.hf_auto", "from_pretrained")
    | _names("transformers.generation.configuration_utils", "GenerationConfig")
)
"""What their fields hold beside plain values."""

TOKENIZERS = _names("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer") | _names(
    "nemo.collections.common.tokenizers.sentencepiece_tokenizer", "SentencePieceTokenizer"
)
NAMES_OF_FILES = _names("nemo.lightning.io.artifact.file", "FileArtifact DirArtifact DirOrStringArtifact")
"""NeMo's wrapping of a name that was no file when the checkpoint was written, such as one on the Hub."""

LISTED = {"model.config": (ARCHITECTURES, FIELD_VALUES), "model.tokenizer": (TOKENIZERS, NAMES_OF_FILES)}

_FILE_FIELDS = (
    *("pretrained_model_name", "pretrained_model_name_or_path", "vocab_file", "merges_file", "model_path"),
    "tokenizer_file",
)

TENSOR_NAMES = {
    ("collections", "OrderedDict"),
    *(("torch._utils", f"_rebuild_{kind}") for kind in ("tensor", "tensor_v2", "parameter")),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Double", "Byte", "Int", "Long", "Bool")),
    ("torch.storage", "UntypedStorage"),
    *(("torch", kind) for kind in ("Size", "device", "float32", "float16", "bfloat16", "float64", "int64", "uint8")),
}
STATE_NAMES = TENSOR_NAMES | {
    *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
    *((module, kind) for module in ("builtins", "__builtin__") for kind in ("set", "frozenset", "complex")),
    *(("megatron.core.enums", "ModelType"), ("megatron.core.transformer.enums", "AttnBackend")),
    ("types", "SimpleNamespace"),
    # The state of NumPy's generator.
    *(("numpy", kind) for kind in ("ndarray", "dtype")),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("_core", "core")),
    ("_codecs", "encode"),
}
"""What the state of a run holds beside tensors: counters, settings, paths of checkpoints."""


def check_context(context: Path, subpath: str) -> Recorded:
    """Return what NeMo would build of `subpath`, "model.config" or "model.tokenizer".

    Raises InputError if a name in it is not on the list, or if a tokenizer would load code.
    """
    path = context / "io.json"
    kinds, values = LISTED[subpath]

    def check(name: Name) -> None:
        if name in kinds or name in values:
            return
        if subpath == "model.config" and name.module.startswith("nemo.collections.") and "Config" in name.symbol:
            raise InputError(f"{context.parent} holds a {name.symbol}; {TRAINED_HERE}.")
        raise InputError(
            f"{path} has {name} built for {subpath}, which is not on the list of what is known to run no code; nothing "
            f"of it was run; {ADVICE}"
        )

    found = read_recorded(context, subpath, check)
    if not isinstance(found, Recorded) or found.target not in kinds:
        raise InputError(f"{path} records no {subpath}; {COPY_AGAIN}")
    for call in _calls(found):
        _check_file_names(call, path)
    if subpath == "model.tokenizer":
        _check_tokenizer(found, context)
    return found


def _calls(value: object) -> Iterator[Recorded]:
    if isinstance(value, Recorded):
        yield value
        value = list(value.arguments.values())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _calls(part)


def _check_file_names(call: Recorded, path: Path) -> None:
    for field in _FILE_FIELDS:
        name = call.arguments.get(field)
        if isinstance(name, str) and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
            raise InputError(f"{path}: {field} {name!r} leads out of {path.parent}; {COPY_AGAIN}")


def _check_tokenizer(tokenizer: Recorded, context: Path) -> None:
    name = tokenizer.arguments.get("pretrained_model_name")
    directory = context / name if isinstance(name, str) else None
    if isinstance(name, Recorded) and isinstance(name.arguments.get("attr"), str):
        directory = Path(name.arguments["attr"])
    if directory is not None and directory.is_dir():
        check_tokenizer_files(directory)
    elif tokenizer.arguments.get("trust_remote_code", False) is not False:
        raise InputError(
            f"{context / 'io.json'} records a tokenizer with trust_remote_code and without files, so code from the Hub "
            f"would run; nothing of it was run; {ADVICE}"
        )


def check_tokenizer_files(directory: Path) -> None:
    """Raises InputError if a tokenizer's settings name code, which transformers runs where it was once allowed to."""
    for name in ("tokenizer_config.json", "config.json"):
        path = directory / name
        if path.is_file() and read_json_object(path, COPY_AGAIN).get("auto_map"):
            raise InputError(
                f"{path}: auto_map names code that comes with the tokenizer; nothing of it was run; {ADVICE}"
            )


def check_weights(weights: Path) -> None:
    """Raises InputError if a pickle that loading `weights` would open asks for objects that no checkpoint holds.

    The sentence names the file and what it asks for.
    """
    require_files(weights, WEIGHT_FILES)
    settings = read_json_object(weights / "metadata.json", COPY_AGAIN)
    if (settings.get("sharded_backend"), settings.get("common_backend", "torch")) != ("torch_dist", "torch"):
        raise InputError(f"{weights / 'metadata.json'} is of another format than torch_dist; {COPY_AGAIN}")
    metadata = read_metadata(weights)
    for index, place in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            with (weights / place.relative_path).open("rb") as file:
                file.seek(place.offset)
                content = file.read(place.length)
            where = f"{weights / place.relative_path}, {index.fqn}"
            if "_extra_state" in index.fqn:
                _check_extra_state(content, where)
            else:
                _check_saved(content, where, STATE_NAMES)
    if COMMON_OBJECT not in metadata.state_dict_metadata:
        require_files(weights, [COMMON_FILE])
    for path in sorted(weights.glob("*.pt")):
        _check_saved(path.read_bytes(), str(path), STATE_NAMES)


def _check_extra_state(content: bytes, where: str) -> None:
    """Refuse bytes in the tensors here, which Transformer Engine would unpickle; without FP8 there are none."""
    _check_saved(content, where, TENSOR_NAMES)
    try:
        values = [torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)]
    except DAMAGED as error:
        raise InputError(f"{where} is damaged; {COPY_AGAIN}") from error
    values = values[0] if isinstance(values[0], list) else values
    if not all(value is None or (isinstance(value, torch.Tensor) and value.numel() == 0) for value in values):
        raise InputError(f"{where} holds a state of FP8, which is a pickle that is not looked into; {ADVICE}")


def _check_saved(content: bytes, where: str, allowed: Collection[tuple[str, str]]) -> None:
    """Check the names in a file of `torch.save`."""
    try:
        archive = torch._C.PyTorchFileReader(io.BytesIO(content))
        records, pickled = archive.get_all_records(), archive.get_record("data.pkl")
    except DAMAGED as error:
        raise InputError(f"{where} is damaged, or not of torch.save; {COPY_AGAIN}") from error
    # PyTorch takes what does not begin as an archive for its old format, and one with constants for a program.
    if not content.startswith(b"PK\x03\x04") or "constants.pkl" in records:
        raise InputError(f"{where} is not in the format of torch.save that checkpoints have; {COPY_AGAIN}")
    check_names(pickled, allowed, where, ADVICE, storages=True)
