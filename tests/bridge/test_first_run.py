"""The first run of docs/bridge.md, by the commands that stand there, and the script of examples/."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from nemo_longpo.checkpoints import run_directory

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_has_settings_of_the_recipe():
    from nemo_longpo.bridge import train

    script = (ROOT / "examples/train_128k_bridge.sh").read_text(encoding="utf-8")
    words = shlex.split(script.replace("\\\n", "").partition("--log-dir ")[2].partition("\n")[0])[1:]
    config = train.build("mistral_7b_longpo_128k", [word.replace("$", "") for word in words])
    assert (config.model.rotary_base, config.model.seq_length, config.train.train_iters) == (1e7, 139264, 200)
    assert config.dataset.paths == ["SHARDS"]


def test_the_first_run_trains_reports_and_exports(bridge_programs, tmp_path):
    text = (ROOT / "docs/bridge.md").read_text(encoding="utf-8").partition("## First run")[2]
    commands = re.search(r"```bash\nsource .venv-bridge/bin/activate\n(.*?)```", text, re.DOTALL)[1]
    script = commands.replace("work/", f"{tmp_path}/")
    assert "torchrun --nproc-per-node=2" in script
    programs = f"{bridge_programs}:{sys.prefix}/bin:{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(["bash", "-e"], input=script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    lines = run_directory.metrics_file(tmp_path / "run").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert (tmp_path / "report" / "training.html").is_file()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["rope_theta"] == 8000
