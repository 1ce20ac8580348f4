"""Compare time and memory of conversion with NeMo's own, and with transformers' load and save.

    python -m benchmarks.conversion.convert --workers 1 2

Two models in bf16 with random weights: Qwen2.5-1.5B (tied embeddings, biases, more vocabulary rows than tokens) and
Mistral-7B (untied), each with the real shapes and as many layers as make `--gigabytes`. Each goes, in this order,
through `cp`, our import and export per number of workers, NeMo's importer and exporter (`convert_rivals`), and
transformers' load and save. Every command is a fresh process that finds its input in the page cache and a disk with
nothing left to write. Before, every command runs twice on a model of one small layer with the same tokenizer: the
second time is its start-up (libraries, tokenizer, configuration), and what it held then is what it takes without a
model. Takes about five minutes per model and round on two cores.

Exits with 1 if a model does not come out of ours byte for byte, or if our memory breaks its bounds, of which the one by
the size of the checkpoint means something from 3 GB on: below, the libraries alone exceed it.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from transformers import MistralConfig, PretrainedConfig, Qwen2Config

from .. import RESULTS
from ..common.differences import differences, files_of
from ..common.processes import THREADS, watch
from ..common.random_pairs import stream_model, tensor_shapes
from ..common.results import origin, parser, write_results

COMMON = {
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 32_768,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}
FILE_BYTES = 1_000_000_000
DISK_SHARE = 3.5
"""Of a model's size: the model, its checkpoint and the model again, with room for embeddings that NeMo unties."""

CHECKPOINT_SHARE = 1.25
TENSOR_SHARE = 2.0
"""Our bounds: of the checkpoint over the workers in all, and of the largest tensor per worker above the start-up."""

NAMES = {"qwen2": "Qwen2.5-1.5B", "mistral": "Mistral-7B"}
RIVAL = [sys.executable, "-m", "benchmarks.children.convert_rivals"]
LONGPO = [sys.executable, "-m", "nemo_longpo.cli", "convert"]


class Kind(NamedTuple):
    """A family to convert; `tokens` is what its tokenizer has."""

    config: type[PretrainedConfig]
    shape: dict[str, Any]
    tokens: int

    def configuration(self, **changes: Any) -> PretrainedConfig:
        return self.config(**(COMMON | self.shape | changes))

    def save(self, directory: Path, **changes: Any) -> Path:
        return stream_model(directory, self.configuration(**changes), self.tokens, FILE_BYTES)


KINDS = {"qwen2": Kind(Qwen2Config, QWEN, 151_665), "mistral": Kind(MistralConfig, MISTRAL, 32_768)}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--gigabytes", type=float, default=3.0, help="each model has at least so much (%(default)s)")
    flags.add_argument("--families", nargs="+", choices=KINDS, default=list(KINDS))
    flags.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of ours (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=1)
    flags.add_argument("--only-ours", action="store_true", help="without NeMo and transformers")
    flags.add_argument("--memory-limit", type=float, default=16, metavar="GB", help="where a command is stopped")
    flags.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help=f"where to work (default: %(default)s); needs {DISK_SHARE} times the size of one model",
    )
    flags.add_argument("--keep", action="store_true", help="leave models and outputs there; needs more room")
    flags.add_argument("--output", type=Path, default=RESULTS / "convert.json")
    arguments = flags.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convert_", dir=arguments.folder))
    try:
        measured = [Bench(folder / family, family, arguments).measure() for family in arguments.families]
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    result = origin(("torch", "transformers", "nemo-toolkit", "megatron-core")) | {"measured": measured}
    write_results(arguments.output.stem, result, report(measured, arguments.rounds), arguments.output.parent)
    broken = [problem for found in measured for problem in problems(found)]
    if broken:
        raise SystemExit("\n".join(broken))


class Bench:
    """One model, and everything that it goes through."""

    def __init__(self, folder: Path, family: str, arguments: argparse.Namespace):
        self.folder, self.family, self.arguments = folder, family, arguments
        self.kind = KINDS[family]
        one, two = (self.tensor_bytes(num_hidden_layers=layers) for layers in (1, 2))
        layer = sum(two) - sum(one)
        self.layers = max(1, -(-int(arguments.gigabytes * 1e9 - sum(one) + layer) // layer))
        every = self.tensor_bytes(num_hidden_layers=self.layers)
        self.bytes, self.largest = sum(every), max(every)

    def tensor_bytes(self, **changes: Any) -> list[int]:
        return [2 * shape.numel() for shape in tensor_shapes(self.kind.configuration(**changes)).values()]

    def measure(self) -> dict[str, Any]:
        free = shutil.disk_usage(self.arguments.folder).free
        if free < DISK_SHARE * self.bytes:
            raise SystemExit(
                f"{self.arguments.folder} has {free / 1e9:.0f} GB free, this takes "
                f"{DISK_SHARE * self.bytes / 1e9:.0f}; pass another --folder, or fewer --gigabytes"
            )
        small = self.kind.save(self.folder / "small", **SMALL)
        self.all_trips(small)  # brings libraries into the page cache
        start_up = self.all_trips(small)
        model = self.kind.save(self.folder / "model", num_hidden_layers=self.layers)
        rounds = [self.all_trips(model) for _ in range(self.arguments.rounds)]
        if not self.arguments.keep:
            shutil.rmtree(self.folder)
        sizes = {"layers": self.layers, "bytes": self.bytes, "largest_tensor_bytes": self.largest}
        return {"family": self.family} | sizes | {"start_up": start_up, "rounds": rounds}

    def all_trips(self, model: Path) -> dict[str, dict[str, Any]]:
        """What each command took, and how the model at the end of each trip differs from what went in."""
        return {name: self.trip(name, commands, model) for name, commands in self.trips().items()}

    def trip(self, name: str, commands: dict[str, list[str]], model: Path) -> dict[str, Any]:
        outputs = self.folder / f"{model.name}-{name.replace(' ', '-')}"
        shutil.rmtree(outputs, ignore_errors=True)
        source, steps = model, {}
        try:
            for step, words in commands.items():
                target = outputs / step / "model"
                target.parent.mkdir(parents=True)
                read_once(source)
                log = self.folder / f"{outputs.name}-{step}.log"
                command = [word.format(source=source, target=target) for word in words]
                steps[step] = watch(command, target, log, self.arguments.memory_limit * 1e3)
                print(f"{self.family}, {model.name} model, {name} {step}: {steps[step]}", file=sys.stderr, flush=True)
                if steps[step]["stopped"]:
                    return {"steps": steps, "differences": None}
                steps[step]["written_bytes"] = sum(path.stat().st_size for path in files_of(target).values())
                source = target
            return {"steps": steps, "differences": differences(model, source)}
        finally:
            if not self.arguments.keep:
                shutil.rmtree(outputs)

    def trips(self) -> dict[str, dict[str, list[str]]]:
        """The words of each command, by trip and step."""
        trips: dict[str, dict[str, list[str]]] = {"cp": {"copy": ["cp", "-r", "{source}", "{target}"]}}
        for workers in self.arguments.workers:
            options = ["--output", "{target}", "--workers", str(workers)]
            trips[f"longpo {workers}"] = {
                "import": [*LONGPO, "import", "--model", "{source}", *options],
                "export": [*LONGPO, "export", "--checkpoint", "{source}", *options],
            }
        if not self.arguments.only_ours:
            paths = [self.family, "{source}", "{target}"]
            trips["NeMo"] = {step: [*RIVAL, f"nemo-{step}", *paths] for step in ("import", "export")}
            trips["transformers"] = {"load and save": [*RIVAL, "transformers", *paths]}
        return trips


def read_once(directory: Path) -> None:
    """Into the page cache."""
    for path in files_of(directory).values():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One per command: medians of times and maxima of memory over the rounds, beside the same command's start-up."""
    result: list[dict[str, Any]] = []
    for trip, small in found["start_up"].items():
        for step, start_up in small["steps"].items():
            steps = [round_[trip]["steps"][step] for round_ in found["rounds"] if step in round_[trip]["steps"]]
            if steps:
                times = {name: median(taken[name] for taken in steps) for name in steps[0] if name.endswith("seconds")}
                memory = {name: max(taken[name] for taken in steps) for name in steps[0] if name.endswith("_mb")}
                row = {"trip": trip, "step": step} | times | memory
                row["stopped"] = any(taken["stopped"] for taken in steps)
                row["above_mb"] = row["held_mb"] - start_up["held_mb"]
                beyond = row["stored_seconds"] - start_up["stored_seconds"]
                row["weights_seconds"] = row["writing_seconds"] if is_ours(trip) else beyond
                result.append(row)
    copied = result[0]["weights_seconds"]
    return [row | {"speed_of_cp": copied / row["weights_seconds"]} for row in result]


def is_ours(trip: str) -> bool:
    return trip.startswith("longpo")


def problems(found: dict[str, Any]) -> list[str]:
    """Where ours is not what it says: the model as it was, and memory within its bounds."""
    broken = []
    for round_ in found["rounds"]:
        for trip, taken in round_.items():
            if is_ours(trip) and any(taken["differences"].values()):
                broken.append(f"{found['family']}, {trip}: differs after the round trip: {taken['differences']}")
    for row in rows(found):
        if not is_ours(row["trip"]):
            continue
        workers = int(row["trip"].split()[1])
        bounds = {
            "the checkpoint over its workers": (row["peak_mb"], CHECKPOINT_SHARE * found["bytes"] / workers / 1e6),
            "its largest tensor": (row["above_mb"], TENSOR_SHARE * workers * found["largest_tensor_bytes"] / 1e6),
        }
        broken += [
            f"{found['family']}, {row['trip']}, {row['step']}: {taken:,.0f} MB, {bound:,.0f} allowed by {what}"
            for what, (taken, bound) in bounds.items()
            if taken > bound
        ]
    return broken


def report(measured: list[dict[str, Any]], rounds: int) -> list[str]:
    lines = [
        f"{THREADS} threads per process; of {rounds} rounds the median time and the largest memory. On disk: the "
        "seconds until everything written has reached it. Weights: for ours, which put a complete model that is on the "
        "disk into its place, from the first file of weights until then; for the others what is beyond the same "
        "command on a model of one small layer, on disk. Speed: that of `cp` is 100 %, weights on disk. Peak: what the "
        "largest process had in memory, mapped files included. Held: what all its processes had to themselves; above: "
        "more than on the small model.",
    ]
    for found in measured:
        layers, size, largest = found["layers"], found["bytes"] / 1e9, found["largest_tensor_bytes"] / 1e6
        lines += [
            "",
            f"{NAMES[found['family']]}, {layers} layers: {size:.2f} GB in bf16, largest tensor {largest:,.0f} MB",
            "",
            "| | seconds | on disk | weights | speed | CPU seconds | peak MB | held MB | above MB |",
            "|---|---|---|---|---|---|---|---|---|",
            *(line(row) for row in rows(found)),
            "",
            *(changed(trip, taken["differences"]) for trip, taken in found["rounds"][-1].items() if trip != "cp"),
            f"- bounds of ours, {CHECKPOINT_SHARE} x checkpoint / workers for the peak and {TENSOR_SHARE:g} x largest "
            f"tensor x workers for what is above: {'; '.join(problems(found)) or 'kept'}",
        ]
    return lines


def line(row: dict[str, Any]) -> str:
    label = f"{row['trip']} {row['step']}{', stopped' if row['stopped'] else ''}"
    times = " | ".join(f"{row[name]:.1f}" for name in ("seconds", "stored_seconds"))
    measurable = row["weights_seconds"] > 0  # what other work on the machine adds to a start-up may exceed it
    weights = f"{row['weights_seconds']:.1f} | {row['speed_of_cp']:.0%}" if measurable else "not measurable | "
    memory = " | ".join(f"{row[name]:,.0f}" for name in ("peak_mb", "held_mb", "above_mb"))
    return f"| {label} | {times} | {weights} | {row['cpu_seconds']:.1f} | {memory} |"


def changed(trip: str, found: dict[str, list[str]] | None) -> str:
    if found is None:
        return f"- {trip}: did not finish"
    if not any(found.values()):
        return f"- {trip}: every file as it was, byte for byte"
    fields = f"fields of config.json changed: {', '.join(found['fields']) or 'none'}"
    return f"- {trip}: {fields}; tensors that differ: {', '.join(found['tensors']) or 'none'}"


if __name__ == "__main__":
    main()
