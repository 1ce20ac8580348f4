"""Which fused kernels the models of NeMo get, on GPUs and without."""

import pytest
import torch


@pytest.mark.parametrize("family", ["MistralConfig7B", "Qwen25Config7B", "Llama31Config8B"])
def test_gpus_fuse_and_the_cpu_does_not(family, monkeypatch):
    """What NeMo's configs leave off is on; Megatron's own check passes, before the config is built and after."""
    import fiddle as fdl
    from megatron.core.models.common.embeddings import rope_utils
    from nemo.collections import llm

    from nemo_longpo.megatron import backend

    monkeypatch.setattr(backend, "HAVE_TE", True)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    recorded = fdl.Config(getattr(llm, family), masked_softmax_fusion=False, gradient_accumulation_fusion=False)
    built = fdl.build(recorded)
    backend.Backend().fuse(built)
    built.__post_init__()
    assert (built.bias_activation_fusion, built.apply_rope_fusion) == (True, True)
    found = backend.CpuBackend().prepare(built)
    found.__post_init__()
    assert (found.bias_activation_fusion, found.apply_rope_fusion) == (False, False)


@pytest.mark.parametrize(
    ("changes", "fused"),
    [
        ({"use_te_activation_func": True}, (False, True)),
        ({"activation_func": torch.nn.functional.relu}, (False, True)),
        ({"gated_linear_unit": False}, (False, True)),
        ({"activation_func_clamp_value": 7.0}, (False, True)),
        ({"rotary_interleaved": True}, (True, False)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_fused_stays(changes, fused, monkeypatch):
    """Megatron refuses it, or would compute another function: without the clamp, the gate or our order of channels."""
    from megatron.core.models.common.embeddings import rope_utils
    from nemo.collections import llm

    from nemo_longpo.megatron import backend

    monkeypatch.setattr(backend, "HAVE_TE", True)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", object())
    asked = llm.MistralConfig7B(**changes)
    backend.Backend().fuse(asked)
    asked.__post_init__()
    assert (asked.bias_activation_fusion, asked.apply_rope_fusion) == fused


def test_rotary_embedding_is_not_fused_without_transformer_engine():
    from nemo.collections import llm

    from nemo_longpo.megatron.backend import Backend

    found = llm.MistralConfig7B()
    Backend().fuse(found)
    assert (found.bias_activation_fusion, found.apply_rope_fusion) == (True, False)
