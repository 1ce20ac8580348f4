"""The paper's models as files of `longpo evolve`: read, planned and priced; its released script as one line."""

import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from support import small_evolution

from nemo_longpo import evaluation, recipes
from nemo_longpo.cli import build_parser, main
from nemo_longpo.evaluation import sources
from nemo_longpo.evolution.evolution_file import load_evolution
from nemo_longpo.evolution.rounds import evolution_steps

FOLDER = Path(recipes.__file__).parent / "replication"
SHARED = {"max_position_embeddings": 32768, "rope_theta": 1e6, "sliding_window": None, "torch_dtype": "bfloat16"}
MODELS = {
    "mistral_7b": SHARED
    | {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000},
    "qwen25_7b": SHARED
    | {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
}
NAMES = {"mistral_7b": "Mistral-7B-Instruct-v0.2", "qwen25_7b": "Qwen2.5-7B-Instruct"}
# Of the paper: tokens, pairs of one epoch in batches of 8, and the recipe.
ROUNDS = {
    "mistral_7b": [
        (131072, 45_000, "mistral_7b_longpo_128k"),
        (262144, 16_000, "mistral_7b_longpo_256k"),
        (524288, 2_500, "mistral_7b_longpo_512k"),
    ],
    "qwen25_7b": [(131072, 32_000, "qwen25_7b_longpo_128k")],
}
PAPERS = ("Mistral-7B-LongPO-128K", "Mistral-7B-LongPO-256K", "Mistral-7B-LongPO-512K", "Qwen2.5-7B-LongPO-128K")


@pytest.fixture(params=MODELS)
def name(request, tmp_path, monkeypatch):
    """A file's name, in a folder with a model of its sizes, documents, and environments of stand-ins."""
    model = tmp_path / "models" / NAMES[request.param]
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(MODELS[request.param]))
    for folder in ("documents", ".venv-vllm"):
        (tmp_path / folder).mkdir()
    small_evolution.programs(tmp_path / ".venv-vllm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "require", lambda *_: None)  # the files of the paper's benchmarks are not here
    return request.param


def test_rounds_are_those_of_the_paper(name):
    evolution = load_evolution(FOLDER / f"{name}.yaml")
    found = [(own.length, own.train.settings["trainer.max_steps"], own.train.factory) for own in evolution.rounds]
    assert found == [(length, pairs // 8, recipe) for length, pairs, recipe in ROUNDS[name]]
    for own in evolution.rounds:
        assert own.rope_theta == 1e7
        settings = {key.rpartition(".")[2]: value for key, value in own.train.settings.items()}
        assert (settings["beta"], settings["preference_weight"], settings["lr"]) == (0.1, 0.01, 5e-7)
        assert (settings["global_batch_size"], settings["weight_decay"], settings["warmup_ratio"]) == (8, 0.0, 0.1)
        chunk, instruct, respond = (own.data["stages"][stage] for stage in ("chunk", "instruct", "respond"))
        assert (chunk["min_document_tokens"], chunk["max_document_tokens"]) == (65536, own.length)
        assert (instruct["pool_size"], instruct["temperature"], instruct["top_p"]) == (4, 0.7, 0.9)
        assert respond["temperature"] == 0.0


def test_dry_run(name, capsys):
    assert main(["evolve", str(FOLDER / f"{name}.yaml"), "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert all(own["gpu_hours"] for own in said["rounds"])
    for step in evolution_steps(load_evolution(FOLDER / f"{name}.yaml")):
        if step.command and Path(step.command[0]).name == "longpo":
            build_parser().parse_args(step.command[1:])


def script_settings(name, folder):
    """What a round trains with when the line that says so is changed."""
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.count("settings: { <<: *paper }") == 1
    (folder / "script.yaml").write_text(text.replace("settings: { <<: *paper }", "settings: { <<: *script }"))
    return load_evolution(folder / "script.yaml").rounds[0].train.settings


def test_one_line_takes_the_settings_of_the_released_script(name, tmp_path):
    paper, script = load_evolution(FOLDER / f"{name}.yaml").rounds[0].train.settings, script_settings(name, tmp_path)
    assert {key: value for key, value in script.items() if paper.get(key) != value} == {
        "model.objective.beta": 0.01,
        "optim.config.adam_beta1": 0.0,
        "optim.config.adam_beta2": 0.99,
        "optim.config.adam_eps": 1e-8,
    }


def test_stand_in_for_rmsprop_differs_in_its_first_steps_alone():
    weights = [torch.nn.Parameter(torch.zeros(64, dtype=torch.float64)) for _ in range(2)]
    adam = torch.optim.Adam(weights[:1], lr=1.0, betas=(0.0, 0.99))
    rmsprop = torch.optim.RMSprop(weights[1:], lr=1.0)
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for _ in range(600):
        gradient = torch.randn(64, generator=generator, dtype=torch.float64)
        before = [weight.detach().clone() for weight in weights]
        for weight, optimizer in zip(weights, (adam, rmsprop), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
        ours, theirs = (weight.detach() - old for weight, old in zip(weights, before, strict=True))
        sizes.append(float(theirs.norm() / ours.norm()))
    assert sizes[0] == pytest.approx(10, rel=1e-6)
    assert sizes[-1] == pytest.approx(1, rel=2e-3)


def test_page_on_results_has_the_papers_numbers():
    paper = yaml.safe_load((Path(evaluation.__file__).parent / "paper.yaml").read_text())
    scores = {model["name"]: model["scores"] for model in paper["models"]}
    page = (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text()
    rows = page.partition("| the paper's |")[2].split("\n")[2:]
    columns = [cell.strip() for cell in page.partition("| the paper's |")[2].split("\n")[0].split("|")[:5]]
    assert columns == ["∞Bench", "RULER", "MMLU", "Short", "ours"]
    for name in PAPERS:
        (row,) = [row for row in rows if row.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert cells == [*(f"{scores[name][column]:.2f}" for column in columns[:4]), "not run"]


@pytest.mark.slow
def test_recipes_take_the_settings():
    """Megatron-Core knows Adam and SGD, and neither is called RMSprop."""
    import fiddle
    from megatron.core import optimizer as megatron_optimizer

    from nemo_longpo.nemo.recipes import RECIPES

    assert "rmsprop" not in inspect.getsource(megatron_optimizer).lower(), "say RMSprop in recipes/replication"
    settings = {"optim.config.adam_beta1": 0.0, "optim.config.adam_beta2": 0.99, "model.objective.beta": 0.01}
    for owner in (RECIPES["mistral_7b_longpo_128k"](), RECIPES["qwen25_7b_longpo_128k"]()):
        for path, value in settings.items():
            *owners, last = path.split(".")
            target = owner
            for part in owners:
                target = getattr(target, part)
            setattr(target, last, value)
        built = fiddle.build(owner.optim.config)
        assert (built.optimizer, built.adam_beta1, built.adam_beta2) == ("adam", 0.0, 0.99)
        assert fiddle.build(owner.model.objective).beta == 0.01
