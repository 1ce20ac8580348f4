"""Readers of runs and checkpoints, as rows like those of `fuzz_readers`."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import yaml
from support.exploits import call
from support.fuzz_readers import Prepared, Reader, Workshop, read_corpus, read_published, write_and
from support.mutations import mutated_bytes, mutated_json, mutated_lines
from support.published_pairs import published_row, text_pair
from support.small_corpus import make_document

from nemo_longpo.checkpoints import integrity, run_inputs
from nemo_longpo.checkpoints.run_directory import keep_steps
from nemo_longpo.checkpoints.run_inputs import Given, RunInputs
from nemo_longpo.checkpoints.trust import check_context
from nemo_longpo.conversion.nemo_checkpoint.context import read_model
from nemo_longpo.costs import rates
from nemo_longpo.costs.devices import GPUS
from nemo_longpo.costs.model_shape import MODELS, load_shape
from nemo_longpo.placement import Placement
from nemo_longpo.planning import rates_file, speed
from nemo_longpo.planning.job import Job
from nemo_longpo.shards.manifest import read_known, write_known

MISTRAL = "nemo.collections.llm.gpt.model.mistral", "MistralConfig7B"
AUTO = "nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"
IO_JSON = {
    "root": {"type": "ref", "key": "context"},
    "objects": {
        "config": call(*MISTRAL, num_layers={"type": "leaf", "value": 2}) | {"paths": ["<root>.model.config"]},
        "tokenizer": call(*AUTO, pretrained_model_name={"type": "leaf", "value": "hf"})
        | {"paths": ["<root>.model.tokenizer"]},
    },
}
RATES = {
    "version": rates_file.VERSION,
    "device": "NVIDIA H100 80GB HBM3",
    "date": "2026-01-01",
    "software": {"torch": "2"},
    "measured": {"matrices": "a product"},
    "rates": dict.fromkeys(rates.KINDS, 500000000000000.0) | {"source": "measured"},
}
MODEL_YAML = {
    "_target_": "nemo.collections.llm.gpt.model.mistral.MistralModel",
    "rope_scaling": None,
    "config": {
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 16,
        "vocab_size": 421,
        "share_embeddings_and_output_weights": False,
        "rotary_base": 1e4,
    },
}
BEGUN = RunInputs(Given("start", "a" * 64), (Given("shards", "b" * 64),), {"model.objective.beta": 0.1})
METRICS = [{"step": step, "loss": 1.5 / step, "lr": 1e-6} for step in (1, 2, 3)]


def json_file(name: str, content: Any, read: Callable[[Path], object]) -> Callable[[Workshop], Prepared]:
    def prepare(shop: Workshop) -> Prepared:
        path = shop.folder(f"checkpoint {name}") / name
        return mutated_json(content), write_and(read, path)

    return prepare


def plan_with_rates(path: Path) -> None:
    machine = speed.Machine(GPUS["h100-80gb"], measured=rates_file.measured_rates(str(path), "h100-80gb"))
    pair = Job(shape=MODELS["mistral-7b"], trunk=4096, chosen=500, rejected=500)
    found = speed.estimate_speed(pair, Placement(cp=8, offload_layer_inputs=True).recomputing("full"), machine)
    assert 0 < found.tokens_per_second < math.inf


def read_context(path: Path) -> None:
    for subpath in ("model.config", "model.tokenizer"):
        check_context(path.parent, subpath)


def model_yaml(shop: Workshop) -> Prepared:
    context = shop.folder("model yaml") / "context"
    context.mkdir(exist_ok=True)

    def read(path: Path) -> None:
        read_model(context)
        load_shape(str(context.parent))

    return mutated_bytes(yaml.safe_dump(MODEL_YAML).encode()) | mutated_json(MODEL_YAML), write_and(
        read, context / "model.yaml"
    )


def record_of_files(shop: Workshop) -> Prepared:
    checkpoint = shop.folder("recorded")
    (checkpoint / "file").write_bytes(b"content")
    entry = {"size": 7, "sha256": hashlib.sha256(b"content").hexdigest()}
    content = {"version": 1, "files": {"file": entry}}
    return mutated_json(content), write_and(
        lambda path: integrity.check(path.parent, hashes=True), checkpoint / integrity.RECORD
    )


def read_begun(path: Path) -> None:
    begun = run_inputs.read_inputs(path.parent)
    if begun is not None:
        list(BEGUN.changes_from(begun)), list(BEGUN.loss_changes_from(begun))


def inputs_of_a_run(shop: Workshop) -> Prepared:
    directory = shop.folder("inputs of a run")
    run_inputs.write_inputs(directory, BEGUN)
    path = directory / run_inputs.FILE
    return mutated_json(json.loads(path.read_text())), write_and(read_begun, path)


def weights_of_an_import(shop: Workshop) -> Prepared:
    context = shop.folder("imported") / "context"
    context.mkdir(exist_ok=True)
    return mutated_json({"weights_sha256": "a" * 64}), write_and(
        lambda path: run_inputs.read_origin(context.parent), context / run_inputs.ORIGIN_FILE
    )


def remember_shards(path: Path) -> None:
    write_known(path, read_known(path), {})


def metrics(shop: Workshop) -> Prepared:
    path = shop.folder("metrics") / "metrics.jsonl"
    return mutated_lines(METRICS), write_and(lambda path: keep_steps(path, 2), path)


def saved_dataset(name: str, published: bool) -> Callable[[Workshop], Prepared]:
    """One file of a directory that `datasets` saved: what describes it, not the Arrow file, which `datasets` maps."""

    def prepare(shop: Workshop) -> Prepared:
        directory = shop.folder(f"saved {name} {published}") / "data"
        rows = [published_row(shop.chat, text_pair(0, 2))] if published else [{"text": make_document(0, 1)}]
        datasets.Dataset.from_list(rows).save_to_disk(directory)
        read = read_published(shop) if published else read_corpus
        path = directory / name
        return mutated_json(json.loads(path.read_text())), write_and(lambda path: read(path.parent), path)

    return prepare


CHECKPOINT_READERS = [
    Reader("context", json_file("io.json", IO_JSON, read_context), 1),
    Reader("model.yaml", model_yaml, 6),
    Reader("record of files", record_of_files, 1),
    Reader("inputs of a run", inputs_of_a_run, 1),
    Reader("weights of an import", weights_of_an_import, 1),
    Reader("hashed shards", json_file("checked_shards.json", {"node": {"/a": [1, 2, 3, 4, "c"]}}, remember_shards), 1),
    Reader("metrics", metrics, 1),
    Reader("rates of a GPU", json_file("rates.json", RATES, plan_with_rates), 1),
    Reader("saved corpus, state", saved_dataset("state.json", published=False), 15),
    Reader("saved corpus, description", saved_dataset("dataset_info.json", published=False), 15),
    Reader("saved pairs, state", saved_dataset("state.json", published=True), 30),
]
