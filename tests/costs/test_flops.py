"""FLOPs against the figures of the design and against counting matrix products one by one."""

import pytest

from nemo_longpo.costs.flops import (
    PairLengths,
    Recomputed,
    executed_flops,
    forward_flops,
    layers_by_part,
    layers_flops,
    output_flops,
    training_flops,
)
from nemo_longpo.costs.model_shape import MODELS, ModelShape

MISTRAL = MODELS["mistral-7b"]


@pytest.mark.parametrize(
    ("trunk", "concatenated", "shared", "ratio"),
    [(131_072, 1.342e16, 7.09e15, 1.89), (524_288, 1.614e17, 8.20e16, 1.97)],
)
def test_known_costs_of_long_pairs(trunk, concatenated, shared, ratio):
    full = layers_flops(MISTRAL, PairLengths(trunk, 4500, 4500), "concatenated")
    once = layers_flops(MISTRAL, PairLengths(trunk, 4500, 4500), "shared_prefix")
    assert full == pytest.approx(concatenated, rel=5e-4)
    assert once == pytest.approx(shared, rel=5e-4)
    assert full / once == pytest.approx(ratio, abs=0.005)


def test_flops_match_counted_products():
    shape = ModelShape(layers=3, hidden=8, ffn=20, heads=4, kv_heads=2, head_size=5, vocab=11)

    def product(rows, inner, columns):
        return 2 * rows * inner * columns

    def layer(rows, seen):
        projections = product(rows, 8, 20) + 2 * product(rows, 8, 10) + product(rows, 20, 8)
        feed_forward = product(rows, 8, 40) + product(rows, 20, 8)
        return projections + feed_forward + 4 * 2 * product(1, 5, 1) * seen

    pair = PairLengths(30, 7, 4)
    shared = layer(41, 30**2 / 2 + 7 * 30 + 7**2 / 2 + 4 * 30 + 4**2 / 2)
    full = layer(37, 37**2 / 2) + layer(34, 34**2 / 2)
    output = product(41, 8, 11)
    assert forward_flops(shape, pair, "shared_prefix") == 3 * shared + output
    assert forward_flops(shape, pair, "concatenated") == 3 * full + output
    assert output_flops(shape, 41) == output

    pair = PairLengths(30, 7, 4, short=[(10, 3, 2), (6, 4, 2)])
    shared += layer(15, 10**2 / 2 + 3 * 10 + 3**2 / 2 + 2 * 10 + 2**2 / 2)
    shared += layer(12, 6**2 / 2 + 4 * 6 + 4**2 / 2 + 2 * 6 + 2**2 / 2)
    full += layer(13, 13**2 / 2) + layer(12, 12**2 / 2) + layer(10, 10**2 / 2) + layer(8, 8**2 / 2)
    output = product(41 + 5 + 6, 8, 11)
    assert forward_flops(shape, pair, "shared_prefix") == 3 * shared + output
    assert forward_flops(shape, pair, "concatenated") == 3 * full + output
    executed = executed_flops(shape, pair, "shared_prefix", Recomputed(1.0, 1.0))
    assert executed == 3 * (3 * shared + output) + 3 * shared + output, (
        "three forwards, the layers and the logits again"
    )


def test_training_is_three_forwards():
    pair = PairLengths(8192, 900, 700)
    forward, layers = forward_flops(MISTRAL, pair), layers_by_part(MISTRAL, pair)
    logits_again = output_flops(MISTRAL, pair.scored)
    assert pair.scored == pair.tokens == 9792
    assert training_flops(MISTRAL, pair) == 3 * forward
    assert executed_flops(MISTRAL, pair) == 3 * forward + logits_again
    some = executed_flops(MISTRAL, pair, again=Recomputed(0.5, 0.25))
    attention = layers.trunk + layers.branches
    assert some == pytest.approx(3 * forward + logits_again + layers.linear / 2 + attention / 4)


def test_layouts_cost_equal_without_trunk():
    pair = PairLengths(0, 500, 300)
    assert layers_flops(MISTRAL, pair, "shared_prefix") == layers_flops(MISTRAL, pair, "concatenated")
