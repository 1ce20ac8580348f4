"""Checkpoints of Megatron-Bridge are found, held complete and kept from running code as NeMo's are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.exploits import Payload
from torch.distributed import checkpoint as dcp

from nemo_longpo.checkpoints import completeness, forms, integrity, run_directory, run_inputs, trust
from nemo_longpo.errors import InputError

COMMON = {"iteration": 4, "optimizer": {"state": {"common_step": torch.tensor(4.0)}}}


def save(folder: Path, iteration: int, **objects: object) -> Path:
    """A checkpoint with the objects that Megatron-Core 0.19 keeps among the tensors."""
    checkpoint = folder / forms.iteration_name(iteration)
    saved = {completeness.COMMON_OBJECT: [COMMON], **{name: [value] for name, value in objects.items()}}
    tensors = {"embedding.word_embeddings.weight": torch.ones(4)}
    whole = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save({**tensors, **saved}, checkpoint_id=checkpoint, planner=whole, no_dist=True)
    (checkpoint / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    torch.save({"step": torch.tensor(iteration)}, checkpoint / "train_state.pt")
    (checkpoint / "run_config.yaml").write_text("model: {}\n")
    for name in forms.TRACKERS:
        (folder / name).write_text(str(iteration))
    return checkpoint


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that was killed while it wrote its third checkpoint; the trackers know that one already."""
    folder = tmp_path / "checkpoints"
    for iteration in (8, 10, 12):
        killed = save(folder, iteration)
    (killed / "run_config.yaml").unlink()
    return folder


def test_the_newest_complete_checkpoint_of_a_run(run):
    found = run_directory.list_checkpoints(run)
    assert [path.name for path in found.complete] == ["iter_0000008", "iter_0000010"]
    assert [path.name for path in found.unfinished] == ["iter_0000012"]
    for place in (run, run.parent, run / "iter_0000010"):
        assert run_directory.find_checkpoint(place) == run / "iter_0000010"
    with pytest.raises(InputError, match=r"iter_0000012 is not finished: .*run_config.yaml, which is written last"):
        run_directory.find_checkpoint(run / "iter_0000012")


def test_a_folder_of_iterations_may_have_any_name(run):
    assert run_directory.find_checkpoint(run.rename(run.with_name("kept"))).name == "iter_0000010"


@pytest.mark.parametrize("part", [".metadata", "metadata.json", "train_state.pt", "*.distcp"])
def test_a_missing_part_makes_it_damaged(run, part):
    newest = run / "iter_0000010"
    for file in newest.glob(part):
        file.unlink()
    found = run_directory.list_checkpoints(run)
    assert (found.newest, found.damaged) == (run / "iter_0000008", [newest])
    assert completeness.missing_part(newest) == part


def test_a_copy_under_another_name_is_one(run, tmp_path):
    copy = (run / "iter_0000008").rename(tmp_path / "kept")
    assert forms.form_of(copy) is forms.BRIDGE
    assert run_directory.find_checkpoint(copy) == copy


def test_what_is_no_checkpoint_has_no_form(tmp_path):
    (tmp_path / "run_config.yaml").touch()  # a trainer's settings, saved elsewhere
    assert forms.form_of(tmp_path) is None
    assert forms.form_of(tmp_path / "nothing") is None


def test_a_damaged_train_state_is_named(run):
    file = run / "iter_0000008" / "train_state.pt"
    completeness.require_complete(file.parent)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"train_state.pt is damaged"):
        completeness.require_complete(file.parent)


def test_the_record_holds_every_file(run):
    checkpoint = run / "iter_0000008"
    integrity.write_record(checkpoint)
    recorded = integrity.read_record(checkpoint)
    assert {".metadata", "__0_0.distcp", "metadata.json", "run_config.yaml", "train_state.pt"} == set(recorded or ())


def test_notes_lie_in_the_checkpoint_itself(run):
    checkpoint = run / "iter_0000008"
    run_inputs.write_origin(checkpoint, "abc")
    assert (checkpoint / run_inputs.ORIGIN_FILE).is_file()
    assert run_inputs.read_origin(checkpoint) == "abc"


def test_small_files_are_carried_from_either_form(run, tmp_path):
    start = tmp_path / "start"
    (start / "context" / "hf").mkdir(parents=True)
    (start / "context" / "hf" / "config.json").write_text("{}")
    first, second, third = (run / forms.iteration_name(iteration) for iteration in (8, 10, 12))
    forms.carry_small_files(start, first)
    forms.carry_small_files(first, second)
    assert (second / "hf" / "config.json").read_text() == "{}"
    (second / "hf" / "config.json").write_text('{"rope_theta": 1}')
    forms.carry_small_files(first, second)
    assert (second / "hf" / "config.json").read_text() == "{}"
    forms.carry_small_files(tmp_path / "elsewhere", third)
    assert not (third / "hf").exists()


def test_small_files_of_a_hugging_face_directory_are_carried(tmp_path):
    """Without its weights and their index."""
    model, checkpoint = tmp_path / "model", tmp_path / "iter_0000001"
    small = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")
    for path in (model, checkpoint):
        path.mkdir()
    for name in (*small, "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        (model / name).write_text(name)
    (checkpoint / forms.RUN_CONFIG).touch()
    (checkpoint / ".metadata").touch()
    assert forms.carry_small_files(model, checkpoint)
    assert {path.name for path in (checkpoint / "hf").iterdir()} == {*small}


def test_the_state_of_a_run_is_trusted(tmp_path):
    """Megatron's random state holds NumPy's and torch's; Bridge's counters are tensors."""
    state = {"np_rng_state": np.random.get_state(), "torch_rng_state": torch.get_rng_state()}
    trust.check_weights(save(tmp_path, 1, **{"rng_state/shard_0.0_1.1": [state]}))


def test_common_state_is_somewhere(tmp_path):
    checkpoint = save(tmp_path, 1)
    dcp.save({"embedding.word_embeddings.weight": torch.ones(4)}, checkpoint_id=checkpoint, no_dist=True)
    with pytest.raises(InputError, match=r"common.pt is missing"):
        trust.check_weights(checkpoint)
    torch.save(COMMON, checkpoint / "common.pt")
    trust.check_weights(checkpoint)


@pytest.mark.parametrize("place", ["among the tensors", "train_state.pt"])
def test_pickles_that_run_code_are_refused(place, tmp_path):
    trap = tmp_path / "trap"
    more = {"rng_state/shard_0.0_1.1": Payload(trap)} if place == "among the tensors" else {}
    checkpoint = save(tmp_path, 1, **more)
    if not more:
        torch.save({"step": Payload(trap)}, checkpoint / place)
    with pytest.raises(InputError, match=r"asks for .*, which a checkpoint does not need"):
        trust.check_weights(checkpoint)
    assert not trap.exists()
