"""Frequencies and factors are Hugging Face's for the same settings; angles come from positions."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from nemo_longpo.attention.rope import inverse_frequencies, rotary_angles
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.rope_settings import RopeSettings, YarnScaling, parse_scaling

# As the model cards of Qwen2.5 and Llama 3.1 give them.
QWEN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

factors = st.floats(1.0, 64.0)
lengths = st.sampled_from([64, 4096, 8192, 32768, 131072])
yarn = st.fixed_dictionaries(
    {"rope_type": st.just("yarn"), "factor": factors},
    optional={
        "original_max_position_embeddings": lengths,
        "beta_fast": st.floats(8.0, 64.0),
        "beta_slow": st.floats(0.5, 4.0),
        "truncate": st.booleans(),
        "attention_factor": st.floats(0.1, 4.0),
        "mscale": st.floats(0.1, 2.0),
        "mscale_all_dim": st.floats(0.1, 2.0),
    },
)
linear = st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factors})
llama3 = st.fixed_dictionaries(
    {
        "rope_type": st.just("llama3"),
        "factor": factors,
        "low_freq_factor": st.floats(0.5, 2.0),
        "high_freq_factor": st.floats(2.5, 8.0),
        "original_max_position_embeddings": lengths,
    }
)
settings = st.one_of(st.none(), linear, yarn, llama3, st.sampled_from([QWEN, LLAMA]))


@given(
    settings=settings,
    theta=st.sampled_from([1e4, 1e6, 1e7]),
    head_size=st.sampled_from([16, 64, 80, 128]),
    max_positions=lengths,
)
def test_equals_hugging_face(settings, theta, head_size, max_positions):
    config = Qwen2Config(
        hidden_size=2 * head_size,
        num_attention_heads=2,
        head_dim=head_size,
        rope_theta=theta,
        max_position_embeddings=max_positions,
    )
    config.rope_scaling = settings
    kind = (settings or {}).get("rope_type") or (settings or {}).get("type") or "default"
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    ours = RopeSettings(theta, parse_scaling(settings, "config.json", max_positions))
    assert torch.equal(inverse_frequencies(ours, head_size), frequencies)
    assert ours.attention_factor == factor
    assert ours.softmax_scale(head_size) == pytest.approx(factor**2 / math.sqrt(head_size))


def test_qwen_with_yarn_in_numbers():
    """Worked out from arXiv 2309.00071: D = 128, θ = 1e6, 32 and 1 turns within 32,768 positions."""
    rope = RopeSettings(1e6, YarnScaling(factor=4.0, original_max_position_embeddings=32768))
    ratio = inverse_frequencies(RopeSettings(1e6), 128) / inverse_frequencies(rope, 128)
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert (ratio[:24] == 1).all()  # 128 · ln(32768 / 64π) / (2 ln 1e6) = 23.6: kept up to there
    assert ((ratio[24:40] > 1) & (ratio[24:40] < 4)).all()
    assert torch.allclose(ratio[40:], torch.tensor(4.0))  # 128 · ln(32768 / 2π) / (2 ln 1e6) = 39.7


def test_angles_follow_positions_and_not_rows():
    frequencies = torch.tensor([1.0, 0.25])
    angles = rotary_angles(torch.tensor([0, 7, 2, 7]), frequencies)
    assert angles[:, 0, 0].tolist() == [[0, 0, 0, 0], [7, 1.75, 7, 1.75], [2, 0.5, 2, 0.5], [7, 1.75, 7, 1.75]]


def test_angles_of_half_a_million_positions():
    """Equal to Hugging Face's; the error against exact ones is that of fp32."""
    positions = torch.arange(2**19 - 4096, 2**19)
    rope = RopeSettings(1e7)
    angles = rotary_angles(positions, inverse_frequencies(rope, 128))[:, 0, 0]
    theirs = Qwen2RotaryEmbedding(Qwen2Config(head_dim=128, rope_theta=1e7))
    cosines, sines = theirs(torch.zeros(1), positions[None])
    assert torch.equal(angles.cos(), cosines[0])
    assert torch.equal(angles.sin(), sines[0])
    exact = torch.outer(positions.double(), 1e7 ** (-torch.arange(0, 128, 2).double() / 128))
    assert 0.015 < (angles[:, :64] - exact).abs().max() < 0.02


@pytest.mark.parametrize("theta", [0.0, 1.0, math.inf, math.nan, "1e7", True])
def test_impossible_base(theta):
    with pytest.raises(InputError, match=r"rope_theta is .*; it must be a number above 1"):
        RopeSettings(theta)
