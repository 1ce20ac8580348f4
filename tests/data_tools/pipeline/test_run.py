"""All stages from one file, through the real NeMo-Run on this machine."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from support import fake_slurm
from support.waiting import wait_until

from nemo_longpo.data_tools.pipeline.config import LaunchSettings, StageProcesses
from nemo_longpo.data_tools.pipeline.run import _PartsBar
from nemo_longpo.data_tools.stages.registry import StageCall
from nemo_longpo.errors import InputError
from nemo_longpo.launching import executors

pytestmark = pytest.mark.slow

STAGES = {
    "chunk": {"chunk_tokens": 64, "chunks_per_document": 2, "part_size": 2},
    "instruct": {"pool_size": 1, "check_requests": False, "max_new_tokens": 24, "temperature": 1.0, "processes": 2},
    "respond": {"max_new_tokens": 96, "temperature": 1.0, "processes": 2},
    "filter": {},
    "score": {},
    "pack": {},
}


@pytest.fixture
def write_config(tmp_path, corpus, model_dir, programs):
    """Write the file of a pipeline whose stages are processes that need not import what takes seconds."""

    def write(name="work", stages=tuple(STAGES), **changes):
        content = {"input": str(corpus), "model": str(model_dir), "output": str(tmp_path / name)}
        command = {"command": str(programs / "longpo")}
        content["stages"] = {stage: command | STAGES[stage] | changes.get(stage, {}) for stage in stages}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def option(key, value):
    name = key.replace("_", "-")
    return f"--no-{name}" if value is False else f"--{name}={value}"


def contents(directory: Path) -> dict[str, bytes]:
    folders = [directory / ("shards" if stage == "pack" else stage) for stage in STAGES]
    return {
        str(path.relative_to(directory)): path.read_bytes() for folder in folders for path in sorted(folder.iterdir())
    }


def test_all_stages_and_again(longpo, tmp_path, corpus, model_dir, write_config):
    """Two processes per stage write the same as one process; a second start does nothing."""
    config = write_config()
    status, out, err = longpo("run", config, "--json")
    assert (status, err.count("Traceback")) == (0, 0), err
    report = json.loads(out)["reports"]
    assert report["respond"]["documents_in"] == report["instruct"]["documents_out"]
    flags = {"processes"}
    source = corpus
    for stage, settings in STAGES.items():
        words = [option(key, value) for key, value in settings.items() if key not in flags]
        output = tmp_path / "by_hand" / ("shards" if stage == "pack" else stage)
        words += ["--model", model_dir] if stage != "filter" else []
        flag = "--pairs" if stage in ("score", "pack") else "--input"
        assert longpo(stage, flag, source, "--output", output, *words)[0] == 0
        source = output
    assert contents(tmp_path / "work") == contents(tmp_path / "by_hand")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")}
    assert longpo("run", config)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")} == written

    changed = write_config(respond={"max_new_tokens": 97})
    shutil.move(changed, tmp_path / "changed.yaml")
    status, _, err = longpo("run", tmp_path / "changed.yaml")
    assert status == 2
    assert "step 'respond' was run with max_new_tokens=96 (now 97); give the old settings" in err
    (tmp_path / "work" / "steps.json").unlink()  # as in outputs that were made before there was such a file
    status, _, err = longpo("run", tmp_path / "changed.yaml")
    assert (status, "settings.max_new_tokens was 96, now 97" in err) == (2, True)
    assert longpo("run", write_config())[0] == 0
    status, out, _ = longpo("run", tmp_path / "changed.yaml", "--dry-run", "--redo", "respond")
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "chunk: done",
        "instruct: done",
        *(f"{name}: to redo" for name in ("respond", "filter", "score", "pack")),
    ]
    assert sum("data respond" in line and "--max-new-tokens 97" in line for line in lines) == 2
    written.pop(tmp_path / "work" / "steps.json")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")} == written
    assert longpo("run", tmp_path / "changed.yaml", "--redo", "respond")[0] == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")}
    rewritten = {
        path.relative_to(tmp_path / "work").parts[0] for path, when in written.items() if after.get(path) != when
    }
    assert rewritten - {"runs", "logs", "status.json"} == {"respond", "filter", "score", "shards"}


def test_a_killed_process_is_replaced(tmp_path, programs, write_config):
    """Kill a process of `instruct` after its first part: the run continues and loses nothing."""
    changes = {"instruct": {"processes": 1, "max_new_tokens": 400}}
    config = write_config(stages=("chunk", "instruct"), **changes)
    command = [programs / "longpo", "data", "run", str(config)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    claims = wait_until(lambda: [*(tmp_path / "work" / "instruct").glob(".claim-?")] or run.poll() is not None)
    assert run.poll() is None
    os.kill(int(claims[0].read_text().split()[1]), signal.SIGKILL)
    _, err = run.communicate()
    assert run.returncode == 0, err
    assert "instruct: processes were lost; starting again what is missing" in err
    assert len([*(tmp_path / "work" / "instruct").glob("part-*.jsonl")]) == 4
    assert not [*(tmp_path / "work" / "instruct").glob(".*")]


def test_bar_moves_before_the_first_part(tmp_path):
    """A process reports the share of its part, and the number of parts."""
    output = tmp_path / "respond"
    output.mkdir()
    call = StageCall(stage="respond", inputs=(), output=output)
    with _PartsBar(StageProcesses(call, LaunchSettings(), {})) as bar:
        (output / ".progress-host.1").write_text("0.300 2")
        bar.refresh()
        assert " 0.3/2 " in str(bar)
        (output / ".progress-host.1").write_text("0.900 2")
        (output / "part-00000.jsonl").touch()
        bar.refresh()
        assert " 1.9/2 " in str(bar)
        (output / "part-00001.jsonl").touch()
        bar.refresh()
        assert " 2/2 " in str(bar)


def test_error_of_a_process_is_printed_once(longpo, write_config):
    config = write_config(stages=("chunk", "instruct"), instruct={"processes": 1, "max_new_tokens": 5000})
    status, _, err = longpo("run", config)
    assert status == 2
    assert "stage 'instruct':" in err
    assert "max_new_tokens 5000 exceed the model's context of 4096" in err
    assert "starting again" not in err


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ({"type": "SlurmExecuter"}, "executors.x: nemo_run has no class 'SlurmExecuter'"),
        ({"type": "LocalExecutor", "gpus": 2}, "executors.x: LocalExecutor refuses its arguments .*gpus"),
        (
            {"type": "SlurmExecutor", "tunnel": {"type": "LocalTunnel", "x": 1}},
            "executors.x.tunnel: LocalTunnel refuses",
        ),
    ],
)
def test_bad_executors(executor, message):
    with pytest.raises(InputError, match=message):
        executors.make_executor(executor, "executors.x")


def test_stage_on_slurm_and_a_kill(tmp_path, programs, write_config, monkeypatch):
    """The job of a stage outlives a killed command, and the next one watches it further."""
    home = fake_slurm.use(monkeypatch, tmp_path)
    (home / "hold").touch()
    config = write_config(stages=("chunk",), chunk={"executor": "gpus"})
    content = yaml.safe_load(config.read_text())
    content["executors"] = {"gpus": {"type": "SlurmExecutor", "account": "team"}}
    config.write_text(yaml.safe_dump(content))
    command = [programs / "longpo", "data", "run", str(config)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    while "chunk-0: Slurm job 101" not in run.stderr.readline():
        assert run.poll() is None
    run.kill()
    run.communicate()
    redone = subprocess.run([*command, "--redo", "chunk"], capture_output=True, text=True)
    assert "is pending and writes what would be removed" in redone.stderr
    again = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    while "chunk-0: Slurm job 101 was submitted before" not in (line := again.stderr.readline()):
        assert again.poll() is None
        assert "Slurm job 102" not in line
    (home / "hold").unlink()
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert [job["number"] for job in fake_slurm.jobs(home)] == ["101"]
    assert len([*(tmp_path / "work" / "chunk").glob("part-*.jsonl")]) == 4
