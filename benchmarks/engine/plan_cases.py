"""Does `longpo plan` predict time and memory of what was measured on GPUs?

    python -m benchmarks.engine.plan_cases

Needs no GPU: it reads what was measured, `results/h100.json` and `results/gpu_engine.json`, and writes the planner's
estimates of the same cases beside it, into plan_cases.json and plan_cases.md.
- Steps of a recipe on an H100, with 4 layers. The branches then ran on FlashAttention-2 and log-probs in chunks of
  whole rows, so these cases take the H100's rates with the speed that those kernels had then.
- Layers in plain torch on an H200, with the share of one rank: time alone, because their memory is not that of NeMo's
  layers, of which the planner's formulas are. Of `concatenated`, the output layer is left out: the program scored all
  rows of both sequences, and training does not.
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from nemo_longpo.costs import rates
from nemo_longpo.costs.devices import GPUS
from nemo_longpo.costs.model_shape import MODELS
from nemo_longpo.placement import Placement
from nemo_longpo.planning import compute, job, memory, speed

from .. import RESULTS
from ..common.results import command, parser, write_results

BRANCH = 4500
RECIPE_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured quantity, in seconds or 10⁹ bytes, and the planner's estimate of it."""

    name: str
    what: str
    measured: float
    planned: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def recipe_cases() -> Iterator[Case]:
    """Steps and peaks of `nemo llm finetune` on one H100."""
    report = read("h100.json")
    kernels = {name: 1e12 * value for name, value in report["kernels"].items() if name.endswith(" TF")}
    as_then = replace(
        rates.MEASURED["h100-80gb"],
        branch_forward=kernels["branch FA2 folded fwd TF"],
        branch_backward=kernels["branch FA2 folded bwd TF"],
        logprobs=kernels["logprobs V32000 chunk 5120 TF"],
    )
    machine = speed.Machine(GPUS["h100-80gb"], gpus=1, measured=as_then)
    placement = Placement().recomputing("full")
    for run in report["recipe_runs"]:
        trained = pair(RECIPE_LAYERS, run)
        name = f"step, {run['length']:,} tokens, {run['layout']}, H100"
        planned = speed.estimate_speed(trained, placement, machine).seconds
        yield Case(name=name, what="s", measured=median(run["step_seconds"]), planned=planned)
        peak = memory.estimate_memory(trained, placement).tensors / 1e9
        yield Case(name=name, what="GB", measured=run["peak_gb"], planned=peak)


def layer_cases() -> Iterator[Case]:
    """One layer, and the output layer, of one rank's share on an H200."""
    for run in read("gpu_engine.json")["layers"]:
        placement = Placement(tp=run["tp"], cp=run["cp"]).recomputing("full")
        found = compute.compute_seconds(pair(run["layers"], run), placement, rates.MEASURED["h200-141gb"])
        name = f"{run['trunk']:,} tokens, cp {run['cp']}, tp {run['tp']}, {run['layout']}, H200"
        layers = found.total - found.logprobs
        yield Case(name=f"layer, {name}", what="s", measured=run["seconds"], planned=layers)
        if run["layout"] == "shared_prefix":
            yield Case(name=f"output, {name}", what="s", measured=run["output_seconds"], planned=found.logprobs)


def pair(layers: int, run: dict[str, Any]) -> job.Job:
    """One pair a step of the measured program, on Mistral-7B's shapes with fewer layers."""
    shape = replace(MODELS["mistral-7b"], layers=layers)
    trunk = run.get("length") or run["trunk"]
    return job.Job(shape=shape, trunk=trunk, chosen=BRANCH, rejected=BRANCH, pairs=1, layout=run["layout"])


def main() -> None:
    parser(__doc__).parse_args()
    cases = [*recipe_cases(), *layer_cases()]
    lines = [
        "Measured, from h100.json and gpu_engine.json, beside what the planner computes; Mistral-7B's shapes.",
        "",
        "| case | unit | measured | planned | error |",
        "|---|---|---|---|---|",
        *(f"| {c.name} | {c.what} | {c.measured:.3g} | {c.planned:.3g} | {c.error:+.1%} |" for c in cases),
    ]
    result = {
        "command": command(),
        "python": platform.python_version(),
        "versions": {},
        "machine": "any machine (computed)",
        "cases": [asdict(case) | {"error": case.error} for case in cases],
    }
    write_results("plan_cases", result, lines)


if __name__ == "__main__":
    main()
