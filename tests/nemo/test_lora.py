"""NeMo's LoRA on our model: the adapters' gradients equal those of merged weights, these are what an export writes, and
a run of adapters resumes."""

from pathlib import Path

import pytest
import torch
from support import training_pairs as pairs
from support.checkpoint_tensors import checkpoint_tensors
from support.jobs import lora_jobs
from support.reference import longpo_step
from torch import Tensor
from transformers import AutoModelForCausalLM

from nemo_longpo.checkpoints.run_directory import read_metrics
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.inspection.inspect_model import inspect_model
from nemo_longpo.conversion.model_on_disk import open_checkpoint
from nemo_longpo.conversion.nemo_checkpoint.adapters import Adapters
from nemo_longpo.objective import METRICS

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-4
RANK, ALPHA = 4, 8
CASES = {
    "one process, full recompute, offload, tiles": (
        1,
        1,
        {"recompute_granularity": "full", "model.offload_layer_inputs": True, "model.mlp_tile_tokens": 14},
    ),
    "cp 2, feed-forward recompute": (2, 1, {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}),
    "tp 2, sequence parallel, full recompute": (1, 2, {"sequence_parallel": True, "recompute_granularity": "full"}),
}


def _parts(layer: torch.nn.Module) -> dict[str, list[tuple[torch.nn.Parameter, Tensor]]]:
    """Per fused linear of Megatron: the Hugging Face weights it is made of, each with the fused rows it has."""
    attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
    groups, head = config.num_key_value_heads, config.head_dim
    queries = config.num_attention_heads // groups
    # Megatron's rows: per group its queries, its key, its value.
    rows = torch.arange(groups * (queries + 2) * head).view(groups, queries + 2, head)
    ffn = torch.arange(config.intermediate_size)
    return {
        "self_attention.linear_qkv": [
            (attention.q_proj.weight, rows[:, :queries].flatten()),
            (attention.k_proj.weight, rows[:, queries].flatten()),
            (attention.v_proj.weight, rows[:, queries + 1].flatten()),
        ],
        "self_attention.linear_proj": [(attention.o_proj.weight, torch.arange(config.hidden_size))],
        "mlp.linear_fc1": [(mlp.gate_proj.weight, ffn), (mlp.up_proj.weight, ffn + len(ffn))],
        "mlp.linear_fc2": [(mlp.down_proj.weight, torch.arange(config.hidden_size))],
    }


def _reference(workbench, adapters: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Metrics with W + s·B·A in place of W, s = α/r; by the chain rule dA = s·Bᵀ·dW and dB = s·dW·Aᵀ; these weights."""
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    gradients = {name: torch.zeros_like(weight) for name, weight in adapters.items()}
    fused = []  # weight, and its A, B and their gradients: the rows that belong to it
    for index, layer in enumerate(model.model.layers):
        for linear, parts in _parts(layer).items():
            a, b = (f"module.decoder.layers.{linear}.adapter.{side}.weight" for side in ("linear_in", "linear_out"))
            for weight, rows in parts:
                fused.append(
                    (weight, adapters[a][index], adapters[b][index], gradients[a][index], gradients[b][index], rows)
                )

    scale = ALPHA / RANK
    with torch.no_grad():
        for weight, a, b, *_, rows in fused:
            weight += scale * b[rows] @ a
    metrics = longpo_step(model, [pairs.plain_record(record) for record in workbench.records], 0.1, 0.5)
    for weight, a, b, grad_a, grad_b, rows in fused:
        grad_a += scale * b[rows].T @ weight.grad
        grad_b[rows] = scale * weight.grad @ a.T
    return metrics, gradients, model.state_dict()


def _metrics_of(model: Path, workbench) -> dict[str, float]:
    """Of the global batch, with a Hugging Face model."""
    records = [pairs.plain_record(record) for record in workbench.records]
    return longpo_step(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), records, 0.1, 0.5)


def _overrides(workbench, run: Path, **more) -> dict:
    return {
        "data.paths": str(workbench.shards),
        "data.global_batch_size": len(workbench.records),
        "resume.restore_config.path": str(workbench.checkpoint),
        "log.log_dir": str(run),
        "model.objective.preference_weight": 0.5,
        **more,
    }


@pytest.mark.parametrize(
    ("workbench", "case"),
    [*(("mistral", case) for case in CASES), ("qwen3", "tp 2, sequence parallel, full recompute")],
    indirect=["workbench"],
)
def test_adapter_gradients_match_merged_weights(workbench, workers, tmp_path, case):
    cp, tp, strategy = CASES[case]
    overrides = _overrides(
        workbench,
        tmp_path / "run",
        **{
            "trainer.devices": cp * tp,
            "trainer.max_steps": 1,
            "trainer.strategy.context_parallel_size": cp,
            "trainer.strategy.tensor_model_parallel_size": tp,
            **{name if "." in name else f"trainer.strategy.{name}": value for name, value in strategy.items()},
        },
    )
    # NeMo starts B at zero, where A would have no gradient.
    lora = {"dim": RANK, "alpha": ALPHA, "lora_B_init_method": "xavier"}
    workers.run(
        lora_jobs.train_adapters,
        cp * tp,
        overrides=overrides,
        lora=lora,
        save_to=str(tmp_path / "saved"),
    )

    metrics, gradients, weights = _reference(workbench, checkpoint_tensors(tmp_path / "saved" / "adapters" / "weights"))
    (step,) = read_metrics(tmp_path / "run")
    for name in METRICS:
        assert step[name] == pytest.approx(metrics[name], rel=TOLERANCE), name
    found = checkpoint_tensors(tmp_path / "saved" / "gradients" / "weights")
    assert found.keys() == gradients.keys()
    for name, expected in gradients.items():
        assert expected.norm() > 0, name
        assert (found[name] - expected).norm() <= TOLERANCE * expected.norm(), name
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert step["grad_norm"] == pytest.approx(float(norm), rel=TOLERANCE)

    base = open_checkpoint(workbench.checkpoint)
    adapters = Adapters(tmp_path / "saved" / "adapters", RANK, ALPHA, base=str(workbench.checkpoint))
    merged = adapters.merged_into(base.weights, base.family, base.model_shape)
    for piece in base.family.pieces(base.model_shape):
        for name, tensor in zip(piece.names, merged.parts(piece), strict=True):
            assert torch.allclose(tensor, weights[name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_stopped_run_of_adapters_resumes(workbench, workers, tmp_path):
    """With two context ranks; the checkpoint holds adapters and their optimizer state, and none of the weights.

    Exported with them, the model computes for the next step what the resumed run does.
    """

    def train(run: str, stop_after: int | None = None) -> list[dict]:
        overrides = _overrides(
            workbench,
            tmp_path / run,
            **{
                "log.ckpt.every_n_train_steps": 1,
                "log.ckpt.save_optim_on_train_end": True,
                "optim.config.lr": 1e-2,
                "trainer.devices": 2,
                "trainer.max_steps": 2,
                "trainer.strategy.context_parallel_size": 2,
            },
        )
        workers.run(
            lora_jobs.train_adapters,
            2,
            overrides=overrides,
            lora={"dim": RANK},
            stop_after=stop_after,
        )
        kept = (*METRICS, "step", "lr", "grad_norm")
        return [{name: line[name] for name in kept} for line in read_metrics(tmp_path / run)]

    straight = train("straight")
    assert [line["step"] for line in train("stopped", stop_after=1)] == [1]
    (stopped,) = (tmp_path / "stopped" / "longpo" / "checkpoints").glob("*last")
    report = inspect_model(stopped)
    assert report["nemo"]["adapters"]["base"] == str(workbench.checkpoint)
    assert report["nemo"]["trained"] == {"steps": 1, "epoch": 0, "consumed_samples": len(workbench.records)}
    assert report["nemo"]["optimizer"] == {"tensors": 16, "bytes": 2 * report["weights"]["bytes"]}
    assert report["advice"] == []
    exported = export_checkpoint(stopped, tmp_path / "exported")
    assert train("stopped") == straight
    metrics = _metrics_of(exported, workbench)
    for name in METRICS:
        assert straight[1][name] == pytest.approx(metrics[name], rel=TOLERANCE), name
    assert [line["step"] for line in straight] == [1, 2]
    assert straight[1]["loss"] != straight[0]["loss"]

    def last(run: str) -> dict[str, Tensor]:
        (checkpoint,) = (tmp_path / run / "longpo" / "checkpoints").glob("*last")
        return checkpoint_tensors(checkpoint / "weights")

    expected, found = last("straight"), last("stopped")
    assert all(".adapter." in name for name in expected), "more than adapters is saved"
    assert any("exp_avg_sq" in name for name in expected), "the checkpoint holds no optimizer state"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("workbench", ["mistral"], indirect=True)
def test_adapter_on_the_output_layer_is_refused(workbench, workers, tmp_path):
    (message,) = workers.run(lora_jobs.refusal_of_adapter, 1, overrides=_overrides(workbench, tmp_path / "run"))
    assert "LoRALinear wraps the output layer" in message
    assert "target_modules" in message
