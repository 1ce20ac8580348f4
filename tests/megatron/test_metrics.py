"""How fast a run says it is."""

import pytest

from nemo_longpo.megatron.metrics import compute_speed


def test_utilisation_only_where_the_peak_is_known():
    assert compute_speed(400e12, "NVIDIA H100 80GB HBM3") == pytest.approx(
        {"tflops_per_device": 400.0, "mfu": 400 / 989}, rel=1e-9
    )
    for device in (None, "NVIDIA GeForce 256"):
        assert compute_speed(400e12, device) == {"tflops_per_device": 400.0}
