"""How context-parallel ranks communicate reaches the model's config; what no attention of ours does is refused."""

from types import SimpleNamespace

import pytest

from nemo_longpo.backends import cpu
from nemo_longpo.errors import InputError


def config(**changes) -> SimpleNamespace:
    """The fields of a TransformerConfig that matter; NeMo's own Mistral config comes with `a2a` and a window."""
    fields = {
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "kv_channels": 128,
        "window_size": None,
        "attention_dropout": 0.0,
        "cp_comm_type": "a2a",
        "hierarchical_context_parallel_sizes": None,
    }
    return SimpleNamespace(**fields | changes)


def set_communication(*settings) -> None:
    from nemo_longpo.megatron import communication

    communication.set_communication(*settings)


def test_settings_of_the_job_replace_the_checkpoints():
    found = config()
    set_communication(found, "p2p", None, 8, 1, "shared_prefix")
    assert (found.cp_comm_type, found.hierarchical_context_parallel_sizes) == ("p2p", None)
    set_communication(found, "a2a+p2p", (4, 2), 8, 2, "shared_prefix")
    assert (found.cp_comm_type, found.hierarchical_context_parallel_sizes) == ("a2a+p2p", [4, 2])


def test_what_transformer_engine_refuses_is_refused():
    found = config()
    with pytest.raises(InputError, match="16 attention heads and 4 key/value heads"):
        set_communication(found, "a2a", None, 8, 2, "shared_prefix")
    assert found.cp_comm_type == "a2a", "a refused setting changes nothing"


def test_sliding_window(monkeypatch):
    sliding = config(window_size=[4096, 0])
    with pytest.raises(InputError, match="--full-attention"):
        set_communication(sliding, "a2a", None, 2, 1, "shared_prefix")
    set_communication(sliding, "a2a", None, 2, 1, "concatenated")
    with pytest.raises(InputError, match="cp_comm_type=p2p cannot do"):
        set_communication(sliding, "p2p", None, 2, 1, "concatenated")
    monkeypatch.setattr(cpu, "is_active", lambda: True)
    with pytest.raises(InputError, match="nor the CPU backend"):
        set_communication(sliding, "a2a", None, 2, 1, "concatenated")
    set_communication(config(window_size=(-1, 0)), "p2p", None, 2, 1, "shared_prefix")


def test_dropout():
    with pytest.raises(InputError, match=r"attention_dropout=0\.1"):
        set_communication(config(attention_dropout=0.1), "p2p", None, 1, 1, "concatenated")
