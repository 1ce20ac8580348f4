"""The shipped files of `longpo evolve` are read, and their commands are those of the tools."""

import json
import re
from pathlib import Path

from support import small_evolution

from nemo_longpo.cli import build_parser
from nemo_longpo.evaluation import sources
from nemo_longpo.evolution.evolution_file import load_evolution
from nemo_longpo.evolution.evolution_settings import Evolution
from nemo_longpo.evolution.forecast import forecast
from nemo_longpo.evolution.rounds import evolution_steps
from nemo_longpo.recipe_table import LONG_RUNS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def check_commands(evolution: Evolution) -> None:
    """Parse every command of `longpo`; the trainer's recipes are looked up by name."""
    for step in evolution_steps(evolution):
        if step.command and Path(step.command[0]).name == "longpo":
            build_parser().parse_args(step.command[1:])
        elif step.command:
            name = step.command[step.command.index("--factory") + 1]
            assert name in {*LONG_RUNS, "tiny_longpo"}


def test_large_example(tmp_path, monkeypatch):
    """In a folder with a model of Mistral's sizes and environments of stand-ins."""
    model = tmp_path / "models/Mistral-7B-Instruct-v0.2"
    model.mkdir(parents=True)
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    rest = {"num_key_value_heads": 8, "vocab_size": 32000, "rope_theta": 1e6, "max_position_embeddings": 32768}
    config = {"model_type": "mistral", "sliding_window": None, "torch_dtype": "bfloat16", **sizes, **rest}
    (model / "config.json").write_text(json.dumps(config))
    for name in ("books", ".venv-vllm"):
        (tmp_path / name).mkdir()
    (tmp_path / "papers.jsonl.zst").touch()
    small_evolution.programs(tmp_path / ".venv-vllm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "require", lambda *_: None)  # the files of the paper's benchmarks are not here
    evolution = load_evolution(EXAMPLES / "evolve.yaml")
    assert [(own.length, own.max_length) for own in evolution.rounds] == [
        (131072, 139264),
        (262144, 270336),
        (524288, 532480),
    ]
    check_commands(evolution)
    assert all(own.gpu_hours for own in forecast(evolution))


def test_small_example(tmp_path, monkeypatch):
    """From a checkout's root, behind the command that writes its documents."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    (writing,) = re.findall(r"python -c \"(.+?)\"", (EXAMPLES / "evolve_small.yaml").read_text(), re.DOTALL)
    monkeypatch.setattr("nemo_longpo.recipes.demo.corpus.write_corpus", lambda path, *_, **__: path.touch())
    exec(re.sub(r"\\\n#\s*", "", writing), {})
    evolution = load_evolution(EXAMPLES / "evolve_small.yaml")
    assert [own.length for own in evolution.rounds] == [1536, 4096]
    check_commands(evolution)
