"""The lists of what a checkpoint may name, and what is refused, without the loaders of NeMo, Megatron and PyTorch.

tests/nemo/test_trust.py shows that these exploits run if a loader reads them.
"""

import _compat_pickle
import ast
import dataclasses
import importlib.util
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from support.exploits import Payload, call, reference
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, save

from nemo_longpo.checkpoints import trust
from nemo_longpo.checkpoints.trust import check_context, check_tokenizer_files, check_weights
from nemo_longpo.errors import InputError
from nemo_longpo.moved_modules import MOVED
from nemo_longpo.objective import Objective

MISTRAL = "nemo.collections.llm.gpt.model.mistral", "MistralConfig7B"
AUTO = "nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"


def context(directory: Path, config: object = None, tokenizer: object = None, **more: object) -> Path:
    """With calls at model.config and model.tokenizer, and `more` objects."""
    objects = {
        "config": (config or call(*MISTRAL, num_layers=2)) | {"paths": ["<root>.model.config"]},
        "tokenizer": (tokenizer or call(*AUTO, pretrained_model_name="hf")) | {"paths": ["<root>.model.tokenizer"]},
        **more,
    }
    directory.mkdir(exist_ok=True)
    (directory / "io.json").write_text(json.dumps({"root": {"type": "ref", "key": "context"}, "objects": objects}))
    return directory


def leaf(value: object) -> dict[str, object]:
    return {"type": "leaf", "value": value}


def test_a_configuration_of_plain_values(tmp_path):
    dtype = reference("torch", "bfloat16")
    found = check_context(context(tmp_path, call(*MISTRAL, num_layers=leaf(2), params_dtype=dtype)), "model.config")
    assert str(found.target) == ".".join(MISTRAL)
    assert found.arguments["num_layers"] == 2
    assert str(found.arguments["params_dtype"]) == "torch.bfloat16"


def test_unbuilt_parts_are_not_checked(tmp_path):
    """A run's callbacks and data are the user's; only NeMo's own configuration and tokenizer are built."""
    callback = call("my.project", "Callback") | {"paths": ["<root>.trainer.callbacks[0]"]}
    directory = context(tmp_path, callback=callback)
    check_context(directory, "model.config")
    check_context(directory, "model.tokenizer")


BAD_CONFIGS = {
    "called": call("subprocess", "Popen", args=["true"]),
    "called within": call(*MISTRAL, num_layers=call("subprocess", "Popen", args=["true"])),
    "called in a list": call(*MISTRAL, window_size=[1, [call("subprocess", "Popen")]]),
    "referred to": call(*MISTRAL, num_layers={"type": "ref", "key": "popen"}),
    "passed on": call(*MISTRAL, activation_func=reference("subprocess", "Popen")),
    "as a tag": call(*MISTRAL)
    | {"metadata": call(*MISTRAL)["metadata"] | {"metadata": reference("subprocess", "Popen")}},
}


@pytest.mark.parametrize("place", BAD_CONFIGS)
def test_unlisted_name_is_refused(place, tmp_path):
    directory = context(tmp_path, BAD_CONFIGS[place], popen=call("subprocess", "Popen"))
    with pytest.raises(
        InputError, match=r"io\.json has subprocess\.Popen built for model\.config, .* nothing of it was"
    ):
        check_context(directory, "model.config")


def test_unreferenced_module_is_refused(tmp_path):
    """NeMo imports the type of each object that has no path, or one that begins like the subpath."""
    for paths in ({}, {"paths": ["<root>.model.config.unused"]}):
        stray = {"type": reference("own_code", "Own"), "items": [], "metadata": None} | paths
        with pytest.raises(InputError, match=r"own_code\.Own built for model\.config"):
            check_context(context(tmp_path, stray=stray), "model.config")


def test_a_pickle_beside_the_record(tmp_path):
    stored = {"type": reference(*MISTRAL), "items": [["", "leaf"]], "metadata": None}
    directory = context(tmp_path, call(*MISTRAL, num_layers=stored))
    with pytest.raises(InputError, match=r"has a .*MistralConfig7B in the place of a configuration, .* a pickle"):
        check_context(directory, "model.config")


def test_another_architecture(tmp_path):
    gemma = call("nemo.collections.llm.gpt.model.gemma", "GemmaConfig2B")
    with pytest.raises(InputError, match=r"holds a GemmaConfig2B; nemo_longpo trains Mistral"):
        check_context(context(tmp_path / "context", gemma), "model.config")


@pytest.mark.parametrize("value", [{"type": "ref", "key": "config"}, {"type": "ref", "key": "none"}, {"type": 3}, {}])
def test_a_damaged_record(value, tmp_path):
    with pytest.raises(InputError, match=r"io\.json is damaged \("):
        check_context(context(tmp_path, call(*MISTRAL, num_layers=value)), "model.config")


def test_nothing_recorded(tmp_path):
    """NeMo would build the whole file instead."""
    (tmp_path / "io.json").write_text('{"root": {"type": "ref", "key": "a"}, "objects": {}}')
    with pytest.raises(InputError, match=r"io\.json records no model\.tokenizer"):
        check_context(tmp_path, "model.tokenizer")


@pytest.mark.parametrize("name", ["/etc", "../elsewhere", "hf/../../elsewhere"])
def test_a_tokenizer_elsewhere(name, tmp_path):
    with pytest.raises(InputError, match=r"pretrained_model_name '.*' leads out of "):
        check_context(context(tmp_path, tokenizer=call(*AUTO, pretrained_model_name=leaf(name))), "model.tokenizer")


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [("tokenizer_config.json", ["own.Own", None]), ("config.json", {"AutoTokenizer": "own.Own"})],
)
def test_code_of_a_tokenizer(file, auto_map, tmp_path):
    """NeMo's importer of Qwen2 may record trust_remote_code: it does nothing where the files name no code."""
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / file).write_text("{}")
    directory = context(tmp_path, tokenizer=call(*AUTO, pretrained_model_name="hf", trust_remote_code=leaf(True)))
    check_context(directory, "model.tokenizer")
    (hf / file).write_text(json.dumps({"auto_map": auto_map}))
    for check in (lambda: check_context(directory, "model.tokenizer"), lambda: check_tokenizer_files(hf)):
        with pytest.raises(
            InputError, match=f"{file}: auto_map names code that comes with the tokenizer; nothing of it was run"
        ):
            check()


def test_code_from_the_hub(tmp_path):
    where = call("nemo.lightning.io.artifact.file", "DirOrStringArtifact", attr="someone/model", skip=True)
    check_context(context(tmp_path, tokenizer=call(*AUTO, pretrained_model_name=where)), "model.tokenizer")
    trusting = call(*AUTO, pretrained_model_name=where, trust_remote_code=leaf(True))
    with pytest.raises(InputError, match="records a tokenizer with trust_remote_code and without files"):
        check_context(context(tmp_path, tokenizer=trusting), "model.tokenizer")


@pytest.mark.distributed
def test_listed_names_exist():
    for name in trust.ARCHITECTURES | trust.FIELD_VALUES | trust.TOKENIZERS | trust.NAMES_OF_FILES:
        found = importlib.import_module(name.module)
        for part in name.symbol.split("."):
            found = getattr(found, part)
        assert (name in trust.ARCHITECTURES) == (dataclasses.is_dataclass(found) and "Config" in name.symbol), name


def test_listed_names_are_not_renamed():
    """In pickles of old protocols, Python maps some names to others."""
    kept = {name for name in trust.STATE_NAMES if name[0] != "__builtin__"}
    assert not kept & _compat_pickle.NAME_MAPPING.keys()
    assert not {module for module, _ in kept} & _compat_pickle.IMPORT_MAPPING.keys()


def saved(value: object, **options: bool) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def write(weights: Path, extra_state: object) -> Path:
    """A tensor, and an object that Transformer Engine would take, in the form that Megatron's have."""
    state = {"weight": torch.ones(2), "layer._extra_state": [extra_state]}
    writer, planner = FileSystemWriter(weights, overwrite=True), DefaultSavePlanner(flatten_state_dict=False)
    save(state, storage_writer=writer, planner=planner, no_dist=True)
    (weights / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    torch.save({"step": 1, "best": Path("x"), "lr": torch.ones(1)}, weights / "common.pt")
    return weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "weights", torch.empty(0, dtype=torch.uint8))


def program() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"N.")
        archive.writestr("archive/constants.pkl", b"N.")
        archive.writestr("archive/version", b"3")
    return content.getvalue()


def test_a_checkpoint_of_plain_state(weights):
    check_weights(weights)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved({"x": Payload(Path("trap"))}), r"common\.pt asks for posix\.mkdir, .*set resume\.trust_checkpoint=True"),
        (saved({"x": torch.nn.Linear}), r"common\.pt asks for torch\.nn\.modules\.linear\.Linear"),
        (saved({"x": Payload(Path("trap"))}, _use_new_zipfile_serialization=False), "damaged, or not of torch.save"),
        (saved({"x": Payload(Path("trap"))}, _use_new_zipfile_serialization=False) + saved({}), "of torch.save"),
        (program(), "not in the format of torch.save"),
        (saved({})[:100], "damaged, or not of torch.save"),
    ],
)
def test_other_state_is_refused(content, message, weights):
    (weights / "common.pt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_weights(weights)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.frombuffer(bytearray(pickle.dumps(Payload(Path("trap")))), dtype=torch.uint8), "holds a state of FP8"),
        (io.BytesIO(pickle.dumps(Payload(Path("trap")))), r"asks for _io\.BytesIO, which a checkpoint does not need"),
        (Payload(Path("trap")), r"_extra_state asks for posix\.mkdir"),
    ],
)
def test_pickles_that_transformer_engine_would_open(state, message, tmp_path):
    check_weights(write(tmp_path, None))
    with pytest.raises(InputError, match=message):
        check_weights(write(tmp_path, state))


def test_another_format(weights):
    (weights / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(InputError, match="of another format than torch_dist"):
        check_weights(weights)


def test_configurations_and_tokenizers_have_separate_lists(tmp_path):
    for config in (call(*AUTO, pretrained_model_name="hf"), call(*MISTRAL, num_layers=call(*AUTO))):
        with pytest.raises(InputError, match=r"AutoTokenizer built for model\.config, which is not on the list"):
            check_context(context(tmp_path, config), "model.config")


def test_field_value_is_not_a_configuration(tmp_path):
    with pytest.raises(InputError, match=r"io\.json records no model\.config"):
        check_context(context(tmp_path, call("torch.nn.init", "normal_")), "model.config")


def in_mapping(value: object) -> dict[str, object]:
    return {"type": reference("builtins", "dict"), "items": [["", value]], "metadata": ["key"]}


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], in_mapping])
def test_files_elsewhere_within_a_configuration(wrap, tmp_path):
    reading = call("nemo.lightning.io.artifact.hf_auto", "from_pretrained", pretrained_model_name_or_path="/etc")
    with pytest.raises(InputError, match=r"pretrained_model_name_or_path '/etc' leads out of "):
        check_context(context(tmp_path, call(*MISTRAL, generation_config=wrap(reading))), "model.config")


@pytest.mark.parametrize("value", [1, "no", [], None])
def test_trust_remote_code_must_be_false(value, tmp_path):
    trusting = call(*AUTO, pretrained_model_name=leaf("someone/model"), trust_remote_code=leaf(value))
    with pytest.raises(InputError, match="records a tokenizer with trust_remote_code and without files"):
        check_context(context(tmp_path, tokenizer=trusting), "model.tokenizer")


def test_tokenizer_code_outside_the_checkpoint(tmp_path):
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text('{"auto_map": {"AutoTokenizer": "own.Own"}}')
    where = call("nemo.lightning.io.artifact.file", "DirOrStringArtifact", attr=str(hf), skip=True)
    directory = context(tmp_path / "context", tokenizer=call(*AUTO, pretrained_model_name=where))
    with pytest.raises(InputError, match=r"config\.json: auto_map names code"):
        check_context(directory, "model.tokenizer")


def with_target(target: object, names: list[str]) -> dict[str, object]:
    made = call(*MISTRAL, num_layers=2)
    made["metadata"]["items"][:2] = [["", target], ["", names]]
    return made


@pytest.mark.parametrize(
    "config",
    [
        with_target(leaf("os.system"), ["num_layers"]),
        with_target(reference(*MISTRAL), ["num_layers", "one_more"]),
        with_target(reference(*MISTRAL), []),
        call(*MISTRAL, num_layers=2) | {"type": reference("fiddle._src.config", "Config") | {"type": "leaf"}},
    ],
)
def test_a_damaged_call(config, tmp_path):
    with pytest.raises(InputError, match=r"io\.json is damaged \("):
        check_context(context(tmp_path, config), "model.config")


def test_objects_among_the_tensors(weights):
    writer, planner = FileSystemWriter(weights, overwrite=True), DefaultSavePlanner(flatten_state_dict=False)
    for value, message in ((Path("x"), None), (Payload(Path("trap")), r"rng asks for posix\.mkdir")):
        save({"best": [1], "rng": [value]}, storage_writer=writer, planner=planner, no_dist=True)
        if message is None:
            check_weights(weights)
            continue
        with pytest.raises(InputError, match=message):
            check_weights(weights)


@pytest.mark.parametrize(("state", "message"), [(Path("x"), r"asks for pathlib.*\.PosixPath"), (3, "a state of FP8")])
def test_te_state_is_a_tensor_or_none(state, message, tmp_path):
    with pytest.raises(InputError, match=message):
        check_weights(write(tmp_path, state))


def test_another_format_of_the_common_state(weights):
    (weights / "metadata.json").write_text('{"sharded_backend": "torch_dist", "common_backend": "pickle"}')
    with pytest.raises(InputError, match="of another format than torch_dist"):
        check_weights(weights)


def test_a_file_that_is_missing(weights):
    (weights / "common.pt").unlink()
    with pytest.raises(InputError, match=r"common\.pt is missing"):
        check_weights(weights)


# What context/io.json of checkpoints names of ours, since 0.1.0.
RECORDED = {
    "nemo_longpo.megatron.data": "LongPODataModule",
    "nemo_longpo.megatron.metrics": "MetricsCallback",
    "nemo_longpo.megatron.model": "LongPOModel",
    "nemo_longpo.megatron.schedule": "WarmupCosine",
    "nemo_longpo.megatron.strategy": "LongPOStrategy",
    "nemo_longpo.nemo.data_module": "LongPODataModule",
    "nemo_longpo.nemo.callbacks": "MetricsCallback",
    "nemo_longpo.nemo.model": "LongPOModel",
    "nemo_longpo.nemo.schedule": "WarmupCosine",
    "nemo_longpo.nemo.strategy": "LongPOStrategy",
    "nemo_longpo.objective": "Objective",
}


@pytest.mark.parametrize("module", RECORDED)
def test_old_checkpoints_find_our_classes(module):
    """Read, not imported: most of them import NeMo."""
    spec = importlib.util.find_spec(MOVED.get(module, module))
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    assert RECORDED[module] in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_a_moved_module_gives_the_same_classes(monkeypatch):
    monkeypatch.setitem(MOVED, "nemo_longpo.megatron.old_name", "nemo_longpo.objective")
    assert importlib.import_module("nemo_longpo.megatron.old_name").Objective is Objective
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nemo_longpo.never_was")
