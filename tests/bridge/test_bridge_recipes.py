"""Recipes for Megatron-Bridge: complete configurations, from the table that NeMo's come from too; their overrides."""

import contextlib
import io
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.bridge_runs import Inputs

from nemo_longpo.costs.model_shape import MODELS, load_shape
from nemo_longpo.errors import InputError
from nemo_longpo.placement import Placement
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.report import overrides
from nemo_longpo.recipe_table import LONG_RUNS


@pytest.fixture(scope="module")
def train():
    from nemo_longpo.bridge import train

    return train


@pytest.mark.parametrize("name", [*LONG_RUNS, "longpo", "tiny_longpo"])
def test_every_recipe_builds_with_the_papers_constants(train, name):
    from nemo_longpo.bridge import recipes

    config = getattr(recipes, name)()
    adam, schedule = config.optimizer, config.scheduler
    assert (adam.optimizer, adam.weight_decay, adam.adam_beta1, adam.adam_beta2) == ("adam", 0.0, 0.9, 0.95)
    assert (schedule.lr_decay_style, adam.min_lr, schedule.end_weight_decay) == ("cosine", 0.0, 0.0)
    if name != "tiny_longpo":
        assert (adam.lr, config.train.global_batch_size, schedule.lr_warmup_fraction) == (5e-7, 8, 0.1)
        assert config.mixed_precision.bf16
        assert config.optimizer.use_distributed_optimizer
    assert (config.model.objective["beta"], config.model.objective["preference_weight"]) == (0.1, 0.01)
    assert config.train.micro_batch_size == 1
    assert not config.model.calculate_per_token_loss


@pytest.mark.parametrize("name", LONG_RUNS)
def test_placement_is_that_of_the_table(train, name):
    from nemo_longpo.bridge import run_settings

    config, run = train.build(name), LONG_RUNS[name].settings
    found, wanted = run_settings.placement_of(config), run.placement
    assert (found.tp, found.pp, found.cp) == (wanted.tp, wanted.pp, wanted.cp)
    assert found.sequence_parallel == (wanted.tp > 1)
    assert found.recompute == wanted.recompute
    assert (found.offload_layer_inputs, found.mlp_tile_tokens) == (wanted.offload_layer_inputs, wanted.mlp_tile_tokens)
    assert config.dataset.seq_length == run.seq_length


def test_overrides_reach_every_section(train):
    config = train.build(
        "mistral_7b_longpo_128k",
        [
            "checkpoint.pretrained_checkpoint=/models/hf",
            "dataset.paths=[a,b]",
            "optimizer.lr=1e-6",
            "model.objective.beta=0.2",
            "model.objective.loss_type=dpo",
            "model.rope_scaling={rope_type: linear, factor: 4.0}",
            "model.recompute_modules=[core_attn,mlp]",
            "train.non_finite_steps=skip",
        ],
        "runs/one",
    )
    assert config.checkpoint.pretrained_checkpoint == "/models/hf"
    assert config.dataset.paths == ["a", "b"]
    assert config.optimizer.lr == 1e-6
    assert (config.model.chosen_objective.beta, config.model.chosen_objective.loss_type) == (0.2, "dpo")
    assert config.model.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    assert config.model.recompute_modules == ["core_attn", "mlp"]
    assert config.train.non_finite_steps == "skip"
    assert config.checkpoint.save == "runs/one/longpo/checkpoints"
    assert config.logger.tensorboard_dir is None  # follows from it


def test_precision_is_one_choice(train):
    import torch

    single, mixed = (train.build("longpo", precision=precision) for precision in ("32", "bf16-mixed"))
    assert (single.mixed_precision, single.model.params_dtype, single.optimizer.bf16) == (None, torch.float32, False)
    assert (mixed.mixed_precision.bf16, mixed.model.params_dtype, mixed.optimizer.bf16) == (True, torch.bfloat16, True)
    assert mixed.mixed_precision.grad_reduce_in_fp32


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "mistral"], "there is no recipe mistral; choose one of mistral_7b_longpo_128k, "),
        (["--recipe", "longpo", "optimiser.lr=1"], "there is no setting optimiser.lr; did you mean optimizer?"),
        (
            ["--recipe", "longpo", "trainer.max_steps=3"],
            "there is no setting trainer.max_steps; with Megatron-Bridge it is train.train_iters.",
        ),
        (["--recipe", "longpo", "trainer.devices=2"], "there is no setting trainer.devices; did you mean train "),
        (
            ["--recipe", "longpo", "model.pair_layouts=1"],
            "there is no setting model.pair_layouts; did you mean pair_layout?",
        ),
        (["--recipe", "longpo", "model.objective.zzz=1"], "there is no setting model.objective.zzz; --dryrun prints"),
        (["--recipe", "longpo", "+model.new=1"], "'+model.new=1' is no override; give section.name=value"),
        (["--recipe", "longpo", "dataset"], "'dataset' is no override"),
        (["--recipe", "longpo", "dataset=null"], "dataset is a section of settings and None is none"),
        (["--recipe", "longpo", "optimizer.lr=small"], "optimizer.lr is 'small'; give float or null"),
        (["--recipe", "longpo", "train.train_iters=1.5"], "train.train_iters is 1.5; give int or null"),
        (["--recipe", "longpo", "model.logprob_memory_gb=much"], "model.logprob_memory_gb is 'much'; give float"),
        (["--recipe", "longpo", "model.sequence_parallel=2"], "model.sequence_parallel is 2; give bool"),
        (["--recipe", "longpo", "dataset.paths=[a"], "dataset.paths=[a"),
        (["--recipe", "tiny_longpo"], "checkpoint.pretrained_checkpoint is not set; give the model to start from"),
    ],
)
def test_bad_command_line_is_one_sentence(train, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments) == 2
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if "longpo: error: " in line)
    assert sentence in line
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "placement",
    [
        Placement(cp=16),
        Placement(tp=4, cp=4, grad_reduce_in_fp32=False, offload_optimizer=True).recomputing("mlp"),
        Placement(tp=2, cp=4, pp=2, offload_layer_inputs=True, mlp_tile_tokens=16384).recomputing("full", 5),
        Placement(tp=2, cpu_offloading_num_layers=3),
        Placement(cp=4, cp_comm_type="a2a+p2p", hierarchical_context_parallel_sizes=(2, 2)),
    ],
    ids=lambda placement: placement.recompute,
)
def test_plans_reach_the_recipe(train, placement):
    """As tests/recipes/test_plan.py for NeMo: by the words that `longpo plan --trainer bridge` prints."""
    from nemo_longpo.bridge import run_settings

    shape = load_shape("mistral-7b")
    job = Job(shape=shape, trunk=300_000, chosen=5000, rejected=6000, pairs=16, layout="concatenated")
    config = train.build("longpo", shlex.split(" ".join(overrides(job, placement, "bridge"))))
    found, asked = run_settings.placement_of(config), replace(placement, sequence_parallel=placement.tp > 1)
    lists = {
        name: list(getattr(asked, name) or ()) for name in ("recompute_modules", "hierarchical_context_parallel_sizes")
    }
    assert {name: list(getattr(found, name) or ()) for name in lists} == lists
    others = {name: getattr(asked, name) for name in (*lists, "offload_optimizer", "grad_reduce_in_fp32")}
    assert replace(found, **others) == asked
    assert config.mixed_precision.grad_reduce_in_fp32 is placement.grad_reduce_in_fp32
    assert config.optimizer.optimizer_cpu_offload is placement.offload_optimizer
    assert (config.train.global_batch_size, config.dataset.seq_length) == (16, 306_000)
    assert config.model.pair_layout == "concatenated"


def test_dryrun_prints_the_configuration(train, capsys):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        words = ["--recipe", "mistral_7b_longpo_128k", "--dryrun", "train.train_iters=7", "'dataset.paths=[a]'"]
        assert train.main(words) == 0
    printed = yaml.safe_load(out.getvalue())
    assert printed["dataset"]["paths"] == ["a"]  # in quotes, as NeMo-Run writes it
    assert printed["train"]["train_iters"] == 7
    assert printed["model"]["pair_layout"] == "shared_prefix"
    assert printed["model"]["objective"]["beta"] == 0.1


REFUSED = [
    ("model.calculate_per_token_loss=true", r"model\.calculate_per_token_loss is True"),
    ("model.virtual_pipeline_model_parallel_size=2", r"model\.virtual_pipeline_model_parallel_size is 2"),
    ("model.tensor_model_parallel_size=2", r"do not divide the 1 that were started"),
    ("model.pair_layout=both", r"model\.pair_layout is 'both'; choose one of"),
    ("model.objective.beta=-1", r"objective\.beta must be > 0"),
    ("model.objective.beta=small", r"model\.objective\.beta is 'small'; give a float as 0\.1"),
    ("model.num_layers=3", r"model\.num_layers=3 belongs to the checkpoint, .* has 2; leave the setting out"),
    ("model.rotary_base=100 model.seq_length=1000000", r"model\.rotary_base of .* or model\.seq_length of at most"),
    ("dataset.paths=[]", r"dataset\.paths is not set; give a shard directory, dataset\.paths=SHARDS"),
    ("dataset.seq_length=30", r"has \d+ tokens, more than dataset\.seq_length=30"),
    ("model.seq_length=32", r"gives it 32 positions; set model\.seq_length=\d+ or more"),
    ("train.micro_batch_size=2", r"train\.micro_batch_size is 2; a micro-batch is one pair"),
    ("train.non_finite_steps=maybe", r"train\.non_finite_steps=maybe with max_skipped_steps=3"),
    ("model.recompute_granularity=some", r"model\.recompute_granularity is 'some'; choose from"),
    ("model.offload_layer_inputs=true", r"recompute of whole layers .* model\.recompute_granularity is None"),
    ("optimizer.optimizer_cpu_offload=true", r"optimizer\.optimizer_cpu_offload=True"),
    ("model.rope_scaling=linear", r"model\.rope_scaling is 'linear'; give an object"),
    ("dataset.paths=5", r"dataset\.paths is 5 .* give a list of shard directories"),
    ("optimizer.lr=0", r"optimizer\.lr is 0; give a number above 0"),
    ("scheduler.max_steps=0", r"Megatron-Bridge refuses the settings: scheduler\.max_steps must be positive"),
    ("mixed_precision=fp8", r"Megatron-Bridge refuses the settings: Unknown mixed-precision recipe 'fp8'"),
    ("tokenizer.tokenizer_type=NullTokenizer", r"tokenizer\.tokenizer_type is 'NullTokenizer': shards are held to"),
    ("checkpoint.pretrained_checkpoint=nowhere", r"nowhere is no model; give a Hugging Face directory"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "sentence"), REFUSED)
def test_settings_that_cannot_be_are_refused_before_any_work(train, tmp_path, mistral, overrides, sentence):
    """In Bridge's names, also where the sentence comes from a room that says NeMo's."""
    with pytest.raises(InputError, match=sentence):
        mistral.train(tmp_path / "run", *overrides.split())
    assert not (tmp_path / "run" / "longpo" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sliding_window": 64}, r"sliding window of 64 tokens, and nemo_longpo trains full attention"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, r"has rope scaling .* made for another base"),
    ],
)
def test_model_that_is_not_trained_here(train, tmp_path, settings, sentence):
    inputs = Inputs.write(tmp_path, "mistral", **settings)
    with pytest.raises(InputError, match=sentence):
        inputs.train(tmp_path / "run", "model.rotary_base=20000")


def changed(inputs, folder, **fields):
    """The same inputs with other fields in the model's config.json."""
    model = Path(shutil.copytree(inputs.model, folder))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | fields))
    return replace(inputs, model=model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gemma"}, r"model_type is gemma; nemo_longpo trains Mistral"),
        ({"hidden_act": "relu"}, r"hidden_act is relu; only silu"),
        ({"attention_bias": True}, r"attention_bias is True; attention has no biases"),
        ({"quantization_config": {"bits": 4}}, r"the file describes a quantized model; convert the unquantized one"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, r"asks for attention in chunks"),
        ({"hidden_size": "wide"}, r"config\.json: field 'hidden_size' should be a whole number"),
    ],
)
def test_architecture_that_is_not_trained_here(train, tmp_path, mistral, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        changed(mistral, tmp_path / "model", **fields).train(tmp_path / "run")


@pytest.mark.slow
def test_what_a_run_cannot_start_from(train, tmp_path, mistral):
    """A checkpoint of NeMo, pickled weights, a tokenizer that did not make the shards."""
    (tmp_path / "nemo" / "weights").mkdir(parents=True)
    pickled = changed(mistral, tmp_path / "pickled")
    for path in pickled.model.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    other = changed(mistral, tmp_path / "other")
    shutil.copyfile(Inputs.write(tmp_path / "qwen2", "qwen2").model / "tokenizer.json", other.model / "tokenizer.json")
    for inputs, sentence in (
        (replace(mistral, model=tmp_path / "nemo"), r"nemo is a checkpoint of NeMo; give a Hugging Face directory"),
        (pickled, r"holds no \.safetensors file"),
        (other, r"tokenizer"),
    ):
        with pytest.raises(InputError, match=sentence):
            inputs.train(tmp_path / "run")
    assert not (tmp_path / "run" / "longpo" / "checkpoints").exists()


SHAPES = {
    "Mistral-7B": ("mistral", "mistral-7b"),
    "Qwen2.5-7B": ("qwen2", "qwen2.5-7b"),
    "Qwen3-8B": ("qwen3", "qwen3-8b"),
}


def write_config(directory, family, shape, positions):
    """The `config.json` of a published model at another length; weights are not asked for."""
    fields = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocab,
        "max_position_embeddings": positions,
        "rope_theta": 1e8,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.mark.parametrize("name", LONG_RUNS)
def test_recipe_for_gpus_passes_bridges_own_checks(train, tmp_path, monkeypatch, name):
    """With the model's real sizes and as many ranks as the table says, up to where a GPU would be asked for."""
    import torch
    from megatron.bridge.training.config import runtime_config_update

    from nemo_longpo.bridge import architecture, run_settings
    from nemo_longpo.megatron import backend

    run = LONG_RUNS[name]
    settings = run.settings
    family, model = SHAPES[run.model]
    start = write_config(tmp_path / "model", family, MODELS[model], settings.seq_length)
    monkeypatch.setattr(backend, "current_backend", backend.Backend)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *group: settings.placement.gpus)
    monkeypatch.setenv("WORLD_SIZE", str(settings.placement.gpus))
    config = train.build(
        name, [f"checkpoint.pretrained_checkpoint={start}", "ddp.check_for_nan_in_grad=true"], str(tmp_path / "run")
    )
    architecture.adopt(config.model, start)
    run_settings.check(config)
    run_settings.complete(config)
    runtime_config_update(config)
    made = config.model
    assert (made.num_layers, made.kv_channels, made.vocab_size) == (MODELS[model].layers, 128, MODELS[model].vocab)
    assert (made.add_qkv_bias, made.qk_layernorm) == (MODELS[model].bias, MODELS[model].qk_norm)
    assert (made.bf16, made.params_dtype, config.optimizer.bf16) == (True, torch.bfloat16, True)
    assert config.data_parallel_size == 1
    assert made.sequence_parallel == (settings.placement.tp > 1)
    assert made.recompute_granularity == ("selective" if run.length <= 256 * 1024 else "full")
    assert config.ddp.use_distributed_optimizer
    assert config.ddp.grad_reduce_in_fp32
    assert not config.ddp.check_for_nan_in_grad
    assert config.checkpoint.async_save
    assert config.scheduler.lr_warmup_steps == 10 * 8
    assert config.scheduler.lr_warmup_init == pytest.approx(5e-7 / 11)
