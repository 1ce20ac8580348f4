"""The comparison of objectives: its plan, what it says of made-up results, and runs with stand-ins for programs."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import small_evolution

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.replication import comparison_tables, experiment, learning_curves, replicate  # noqa: E402
from nemo_longpo.errors import InputError  # noqa: E402
from nemo_longpo.evaluation.results.results_json import FORMAT  # noqa: E402

OBJECTIVES = ["longpo", "longpo_no_nll", "sft_chosen", "sft_rejected", "dpo", "sft_chosen_constraint"]


@pytest.fixture
def told() -> dict[str, Any]:
    """The settings as they are shipped."""
    return yaml.safe_load(replicate.SETTINGS.read_text())


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def load(folder: Path, told: dict[str, Any]) -> experiment.Settings:
    (folder / "settings.yaml").write_text(yaml.safe_dump(told))
    return experiment.load_settings(folder / "settings.yaml")


@pytest.fixture
def place(tmp_path) -> experiment.Place:
    small_evolution.programs(tmp_path)
    return experiment.Place(output=tmp_path / "out", programs=tmp_path / "bin")


def overrides(command: tuple[str, ...]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if "=" in word)


def plan_of(folder: Path, told: dict[str, Any], place: experiment.Place, seeds=(0, 1)) -> dict[str, Any]:
    return {step.name: step for step in experiment.replication_steps(load(folder, told), seeds, place)}


def test_objectives_share_data_and_start(tmp_path, told, place):
    plan = plan_of(tmp_path, told, place)
    trained = {name: overrides(plan[f"seed-1-train-{name}"].command) for name in OBJECTIVES}
    assert {own["model.objective.loss_type"] for own in trained.values()} == set(OBJECTIVES)
    assert {own["resume.restore_config.path"] for own in trained.values()} == {f"{place.seed(1)}/round-1/start"}
    data = {name: Path(own["data.paths"]).parent.name for name, own in trained.items()}
    assert data == dict.fromkeys(OBJECTIVES, "data") | {"dpo": "data-long"}
    score = plan["seed-1-score-long"]
    assert score.command[-2:] == ("--ref-context", "long")
    assert score.reads(place.seed(1) / "round-1" / "data")
    same = {
        key: value
        for key, value in trained["dpo"].items()
        if key not in ("data.paths", "log.log_dir") and not key.startswith("model.objective.")
    }
    assert same.items() <= trained["sft_chosen"].items()
    assert same["data.seed"] == "1"


def test_settings_of_an_objective_are_its_own(tmp_path, told, place):
    told["objectives"]["dpo"] = {"optim.config.lr": 1e-6}
    plan = plan_of(tmp_path, told, place)
    of_dpo, of_sft = (overrides(plan[f"seed-0-train-{name}"].command) for name in ("dpo", "sft_chosen"))
    assert (of_dpo["optim.config.lr"], "model.objective.preference_weight" in of_dpo) == ("1e-06", False)
    assert float(of_sft["optim.config.lr"]) == told["evolution"]["train"]["settings"]["optim.config.lr"]
    further = overrides(plan["seed-0-train-2"].command)
    assert further["model.objective.loss_type"] == "longpo"
    assert further["resume.restore_config.path"] == f"{place.seed(0)}/round-2/start"
    assert str(place.seed(0) / "round-1" / "model") in plan["seed-0-import-2"].command


def test_every_checkpoint_is_measured(tmp_path, told, place):
    told["evolution"]["train"]["settings"] |= {"trainer.max_steps": 25, "log.ckpt.every_n_train_steps": 10}
    plan = plan_of(tmp_path, told, place)
    models = overrides(plan["seed-0-evaluate-longpo"].command)
    assert [name for name in models if name.startswith("step-")] == ["step-0", "step-10", "step-20", "step-25"]
    assert models["step-25"] == f"{place.seed(0)}/round-1/models/global_step=25"
    assert list(overrides(plan["seed-0-evaluate-dpo"].command)) == ["step-10", "step-20", "step-25"]
    questions = [plan[f"seed-0-evaluate-{name}"].command for name in ("longpo", "dpo", "base")]
    assert len({command[command.index("--seed") + 1] for command in questions}) == 1
    assert "--every" in plan["seed-0-export-dpo"].command


def test_programs_of_another_folder_serve_every_stage(tmp_path, told, place, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "without_programs" / "python"))
    programs = {name: step.command for name, step in plan_of(tmp_path, told, place, [0]).items() if step.command}
    assert {command[0] for command in programs.values()} <= {str(place.programs / name) for name in ("longpo", "nemo")}
    stages = experiment.seed_evolution(load(tmp_path, told), 0, place).rounds[0].data["stages"]
    assert {stage["command"] for stage in stages.values()} == {f"{place.programs}/python -m nemo_longpo.cli"}


def test_a_gpu_changes_settings_of_training_and_shows_itself(tmp_path, told, place):
    (on_cpu, on_gpu) = (
        plan_of(tmp_path, told, experiment.Place(output=place.output, programs=place.programs, cuda=cuda))
        for cuda in (False, True)
    )
    precision = "trainer.plugins.precision=bf16-mixed"
    assert precision in on_gpu["seed-0-train-dpo"].command
    assert precision not in on_cpu["seed-0-train-dpo"].command
    assert on_cpu["seed-0-data-1"].env["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in on_gpu["seed-0-data-1"].env


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "field 'seeds' should be a whole number from 1"),
        ({"seed": 3}, "unknown key 'seed'; did you mean 'seeds'"),
        (
            {"documents": [{"count": 1, "short": 2}]},
            "documents of round 1: unknown key 'short'; did you mean 'shortest'",
        ),
        ({"documents": 3}, "field 'documents' should be a list, not 3"),
        ({"documents": [{"count": 10}]}, "there are documents for 1 rounds, and 2 rounds"),
        ({"documents": [{"count": 0}, {"count": 1}]}, r"field 'documents\[0\].count' should be a whole number from 1"),
        ({"objectives": {"longpo": {}, "orpo": {}}}, "objectives.orpo is none of those compared here"),
        ({"objectives": {"dpo": {}}}, "objectives lack longpo"),
        ({"evolution": {}}, "evolution.base is missing"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, told, change, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, told | change)


# Of the whole command, with a change of one value in the shipped settings, by its path.
WRONG = {
    "evolution.data": (["chunk"], "evolution: field 'data' should be an object, not ['chunk']; see benchmarks/"),
    "evolution.data.chunk": ("x", "evolution.data.chunk should be a mapping of settings, not 'x'; see benchmarks/"),
    "evolution.train": ({"factory": "x"}, "evolution.train.settings should be a mapping of settings, not None; see"),
    "evolution.train.settings": (["x"], "evolution.train.settings should be a mapping of settings, not ['x']; see"),
    "evolution.evaluate": (["x"], "evolution: field 'evaluate' should be an object, not ['x']; see benchmarks/"),
    "evolution.env": (["x"], "evolution: field 'env' should be an object, not ['x']; see benchmarks/"),
    "evolution.rounds": ({"length": 1}, "evolution: field 'rounds' should be a list, not {'length': 1}; see"),
    "evolution.rounds.0": (1536, "evolution: field 'rounds[0]' should be an object, not 1536; see benchmarks/"),
    "evolution.output": ("out", "evolution.output is another one for each seed; remove it"),
    "evolution.epochs": (1, "evolution of seed 0: unknown key 'epochs'; the keys are base, output,"),
    "evolution.base": ("/nowhere", "evolution of seed 0: base: /nowhere is not a Hugging Face model directory"),
    "evolution.gate.short": (
        1,
        "evolution of seed 0: gate: unknown key 'short'; the keys are most_lost, short_tokens,",
    ),
    "evolution.rounds.1.length": (1536, "evolution of seed 0: round 2: its length of 1,536 tokens is not above"),
    "evolution.evaluate.suite": (
        ["mt_bench"],
        "evolution of seed 0: round 1: evaluate: these benchmarks read mt_bench",
    ),
    "documents.0.shortest": (2000, "documents of round 1: 'shortest' is 2,000, and the round has a length of 1,536;"),
    "short_tokens": (32, "round 1: evaluate: 'lengths' should have one up to the short_tokens, 32, and one above"),
}


@pytest.mark.parametrize("place_of_change", WRONG)
def test_command_names_file_and_field_and_writes_nothing(tmp_path, told, place, capsys, monkeypatch, place_of_change):
    *path, last = place_of_change.split(".")
    target: Any = told
    for name in path:
        target = target[int(name) if isinstance(target, list) else name]
    value, sentence = WRONG[place_of_change]
    target[int(last) if isinstance(target, list) else last] = value
    (file := tmp_path / "settings.yaml").write_text(yaml.safe_dump(told))
    words = ["--output", str(place.output), "--settings", str(file), "--programs", str(place.programs)]
    monkeypatch.setattr(sys, "argv", ["replicate", *words, "--device", "cpu"])
    assert replicate.main() == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"longpo: error: {file}: {sentence}" in said
    assert not place.output.exists()


def test_environment_without_programs_is_refused(tmp_path, monkeypatch, capsys):
    words = ["--output", str(tmp_path / "out"), "--programs", "/nowhere/bin", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["replicate", *words])
    assert replicate.main() == 2
    assert capsys.readouterr().err == (
        "longpo: error: --programs /nowhere/bin holds no python; give an environment's bin directory\n"
    )


def test_every_is_a_whole_number(tmp_path, told):
    told["evolution"]["train"]["settings"]["log.ckpt.every_n_train_steps"] = 0
    with pytest.raises(InputError, match="every_n_train_steps should be a whole number from 1, not 0"):
        load(tmp_path, told)


def test_what_rounds_refuse_is_refused_before_anything_runs(tmp_path, told, place):
    told["evolution"]["rounds"][1]["length"] = 512
    with pytest.raises(InputError, match="evolution of seed 0: round 2: its length of 512 tokens is not above"):
        plan_of(tmp_path, told, place)
    assert not place.output.exists()


def evaluation(place: experiment.Place, seed: int, part: str, **accuracy: dict[int, float]) -> None:
    """Write the part of a results.json that is read: percent by length of every model."""
    lengths = {length for by_length in accuracy.values() for length in by_length}
    tasks = [
        {
            "length": length,
            "models": {
                name.replace("_", "-"): {"mean": by_length[length]}
                for name, by_length in accuracy.items()
                if length in by_length
            },
        }
        for length in sorted(lengths)
    ]
    folder = place.evaluation(seed, part)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"format": FORMAT, "tasks": tasks}))


@pytest.fixture
def curves(tmp_path, told, place) -> learning_curves.Curves:
    """Three seeds of LongPO, two of SFT-chosen and DPO; the second round of one seed."""
    for seed, (ours, short) in enumerate(((90.0, 98.0), (94.0, 100.0), (92.0, 99.0))):
        evaluation(
            place,
            seed,
            "longpo",
            step_0={64: 96.0, 128: 94.0, 1024: 5.0},
            step_30={64: 97.0, 128: 97.0, 1024: 50.0 + seed},
            step_60={64: short, 128: short - 2, 1024: ours},
        )
        evaluation(place, seed, "base", base={64: 99.0, 128: 99.0, 1024: 2.0, 4096: 0.0})
    for seed, (chosen, dpo) in enumerate(((88.0, 10.0), (90.0, 12.0))):
        evaluation(place, seed, "sft_chosen", step_60={64: 95.0, 128: 95.0, 1024: chosen})
        evaluation(place, seed, "dpo", step_60={64: 90.0, 128: 90.0, 1024: dpo})
    evaluation(
        place,
        0,
        "round-2",
        before={64: 98.0, 128: 96.0, 1024: 90.0, 4096: 8.0},
        step_0={64: 97.0, 128: 97.0, 1024: 60.0, 4096: 9.0},
        step_40={64: 97.0, 128: 95.0, 1024: 91.0, 4096: 85.0},
    )
    for own, length in zip(told["evolution"]["rounds"], (1024, 4096), strict=True):
        own["length"] = length
    return learning_curves.read_curves(load(tmp_path, told), range(5), place)


def test_means_and_spreads_over_seeds(curves):
    text = "\n".join(comparison_tables.tables(curves))
    assert "| base | 3 | 99.0 ± 0.0 | 2.0 ± 0.0 | 90.0 ± 2.0, 3 of 3 |" in text
    assert "| LongPO | 3 | 98.0 ± 1.0 | 92.0 ± 2.0 |  |" in text
    assert "| SFT, chosen | 2 | 95.0 ± 0.0 | 89.0 ± 1.4 | 3.0 ± 1.4, 2 of 2 |" in text
    assert "| objective | 0 | 30 | 60 |" in text
    assert "| LongPO | 5.0 ± 0.0 | 51.0 ± 1.0 | 92.0 ± 2.0 |" in text
    assert "| DPO | 5.0 ± 0.0 | – | 11.0 ± 1.4 |" in text
    assert "| LongPO, round 1 | 97.0 | 90.0 | 8.0 |" in text
    assert "| LongPO, round 2 | 96.0 | 91.0 | 85.0 |" in text


def test_the_papers_shape_is_judged_by_the_spread(curves):
    assert comparison_tables.verdict(curves) == [
        "- LongPO is above SFT, chosen at 1,024 tokens (3.0 ± 1.4 points).",
        "- SFT, chosen is above DPO at 1,024 tokens (78.0 ± 0.0 points).",
        "- LongPO's short accuracy against the base: -1.0 points.",
    ]
    for seed, value in ((0, 96.0), (1, 89.0)):
        curves.found["sft_chosen"]["step-60"][seed][1024] = value
    assert comparison_tables.verdict(curves)[0] == (
        "- LongPO is not apart by more than the spread from SFT, chosen at 1,024 tokens (-0.5 ± 7.8 points)."
    )


def test_figure_has_a_line_and_a_band_for_each_objective(curves):
    long, short, further = comparison_tables.graphs(curves)
    assert [curve.label for curve in long.curves] == ["LongPO", "SFT, chosen", "DPO"]
    values = long.curves[0].values
    assert [(own.first, own.value, own.band) for own in values] == [
        (0, 5.0, (5.0, 5.0)),
        (30, 51.0, (50.0, 52.0)),
        (60, 92.0, (90.0, 94.0)),
    ]
    assert short.curves[0].values[-1].value == 98.0
    assert [(own.first, own.value, own.band) for own in further.curves[0].values] == [(0, 9.0, None), (40, 85.0, None)]


def answers(folder: Path) -> None:
    """What the stand-in for `longpo eval` writes, whatever it is asked."""
    names = ["base", "before", *(f"step-{number}" for number in (0, 2, 4))]
    tasks = [{"length": length, "models": {name: {"mean": 50.0} for name in names}} for length in (64, 256, 512)]
    (folder / "results.json").write_text(json.dumps({"format": FORMAT, "tasks": tasks}))


def small(told: dict[str, Any]) -> dict[str, Any]:
    evolution = told["evolution"]
    evolution["train"]["settings"] |= {"trainer.max_steps": 4, "log.ckpt.every_n_train_steps": 2}
    evolution["evaluate"] |= {"lengths": [64, 256], "samples": 4}
    evolution["rounds"] = [{"length": 256, "rope_theta": 1e4}, {"length": 512, "rope_theta": 1e5}]
    return told | {"documents": [{"count": 6}, {"count": 5, "shortest": 300, "mentions": 2}]}


def run(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [str(ROOT / "benchmarks" / "replication" / "replicate.py"), *words])
        return replicate.main()


@pytest.mark.slow  # starts a program for every step, and draws
def test_whole_run_with_stand_ins_continues_and_writes_what_it_has(tmp_path, told, place, capsys, monkeypatch):
    for name in ("RESULTS", "FIGURES"):
        monkeypatch.setattr(replicate, name, tmp_path / name)
        (tmp_path / name).mkdir()
    base = shutil.copytree(told["evolution"]["base"], tmp_path / "base")
    (base / "content").write_text("base")
    told["evolution"]["base"] = str(base)
    load(tmp_path, small(told))
    answers(tmp_path)
    words = ["--output", str(place.output), "--settings", str(tmp_path / "settings.yaml"), "--programs"]
    words += [str(tmp_path / "bin"), "--device", "cpu", "--jobs", "3", "--quick"]
    longpo = tmp_path / "bin" / "longpo"
    program = longpo.read_text()
    longpo.write_text(
        program.replace("def outputs():", 'def outputs():\n    if "/dpo/models" in str(words): sys.exit(3)', 1)
    )
    assert run(*words) == 1
    said = capsys.readouterr()
    assert "2 of 35 steps are missing: step 'seed-0-export-dpo' failed with exit status 3" in said.err
    written = json.loads((place.output / "replication.json").read_text())
    assert set(written["accuracy"]) == {"base", *OBJECTIVES, "round-2"} - {"dpo"}
    assert written["pairs"]["round-1"] == {"0": {"pairs": 5, "turns": 7}}
    longpo.write_text(program)
    before = len(small_evolution.calls(tmp_path))
    assert run(*words, "--publish") == 0
    again = small_evolution.calls(tmp_path)[before:]
    assert [call[:3] for call in again] == [["longpo", "convert", "export"], ["longpo", "eval", again[1][2]]]
    written = json.loads((place.output / "replication.json").read_text())
    assert set(written["accuracy"]) == {"base", *OBJECTIVES, "round-2"}
    drawn = (place.output / "replication.svg").read_text()
    assert drawn.startswith("<svg")
    assert (tmp_path / "FIGURES" / "replication.svg").read_text() == drawn
    assert sorted(path.name for path in (tmp_path / "RESULTS").iterdir()) == [
        *(f"replication.{kind}" for kind in ("json", "md", "svg"))
    ]
    assert (place.output / "seed-0" / "round-2" / "model" / "content").read_text().count("start of") == 3


@pytest.mark.slow  # it waits for the time, and starts 70 programs
def test_time_that_is_up_is_no_loss(tmp_path, told, place, capsys):
    base = shutil.copytree(told["evolution"]["base"], tmp_path / "base")
    (base / "content").write_text("base")
    told["evolution"]["base"] = str(base)
    load(tmp_path, small(told))
    answers(tmp_path)
    (tmp_path / "pause").touch()  # every training waits once
    words = ["--output", str(place.output), "--settings", str(tmp_path / "settings.yaml"), "--programs"]
    words += [str(tmp_path / "bin"), "--device", "cpu", "--jobs", "4", "--quick"]
    assert run(*words, "--minutes", "0.02") == 1
    assert "steps are missing: 0.02 minutes are over; the same command continues" in capsys.readouterr().err
    (tmp_path / "pause").unlink()
    assert run(*words) == 0


@pytest.mark.slow
def test_whole_run(tmp_path, told, programs, capsys):
    """Real programs: one seed, two objectives, one round."""
    told["objectives"] = {name: told["objectives"][name] for name in ("longpo", "dpo")}
    small(told)["evolution"]["rounds"].pop()
    told |= {"documents": [{"count": 12}], "seeds": 1}
    told["evolution"]["train"]["settings"] |= {"trainer.max_steps": 2, "log.ckpt.every_n_train_steps": 1}
    load(tmp_path, told)
    words = ["--output", str(tmp_path / "out"), "--settings", str(tmp_path / "settings.yaml"), "--device", "cpu"]
    words += ["--programs", str(programs)]
    assert run(*words, "--jobs", "2") == 0, capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "replication.json").read_text())
    accuracy = written["accuracy"]
    assert set(accuracy) == {"base", "longpo", "dpo"}
    assert list(accuracy["longpo"]) == ["step-0", "step-1", "step-2"]
    assert accuracy["base"]["base"]["0"]["64"] >= 75
    rewards = {
        name: json.loads(
            next((tmp_path / "out").glob(f"seed-0/{name}/training/tb_logs/*/metrics.jsonl")).read_text().splitlines()[0]
        )
        for name in ("round-1", "dpo")
    }
    # DPO's reference has read the document, so only its rejected answer is near what the policy says.
    assert rewards["dpo"]["ref_logps/rejected"] > rewards["round-1"]["ref_logps/rejected"]
