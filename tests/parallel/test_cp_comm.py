"""Which exchange of keys and values fits a model; the others are refused in one sentence with advice."""

import pytest

from nemo_longpo.errors import InputError
from nemo_longpo.parallel.cp_comm import AttentionShape, check_cp_comm

MISTRAL = AttentionShape(heads=32, kv_heads=8, head_size=128)
QWEN = AttentionShape(heads=28, kv_heads=4, head_size=128)
SLIDING = AttentionShape(heads=32, kv_heads=8, head_size=128, window=(4096, 0))
NARROW = AttentionShape(heads=8, kv_heads=8, head_size=20)


@pytest.mark.parametrize(
    ("shape", "comm_type", "cp", "tp", "hierarchical"),
    [
        (MISTRAL, "p2p", 16, 2, None),
        (QWEN, "p2p", 3, 1, None),
        (NARROW, "p2p", 8, 1, None),
        (NARROW, "a2a+p2p", 8, 1, [4, 2]),
        (MISTRAL, "a2a", 8, 1, None),
        (MISTRAL, "a2a", 4, 2, None),
        (MISTRAL, "all_gather", 16, 8, None),
        (SLIDING, "all_gather", 16, 1, None),
        (SLIDING, "a2a", 8, 1, None),
        (SLIDING, "p2p", 1, 1, None),
        (AttentionShape(32, 8, 128, window=(-1, 0)), "p2p", 8, 1, None),
        (MISTRAL, "a2a+p2p", 16, 1, [8, 2]),
        (MISTRAL, "a2a+p2p", 8, 8, [1, 8]),
        (QWEN, "a2a+p2p", 8, 2, [2, 4]),
        (QWEN, "a2a", 1, 4, None),
    ],
)
def test_possible(shape, comm_type, cp, tp, hierarchical):
    check_cp_comm(shape, comm_type, cp, tp, hierarchical)


@pytest.mark.parametrize(
    ("shape", "comm_type", "cp", "tp", "hierarchical", "words"),
    [
        (MISTRAL, "ring", 2, 1, None, "choose one of p2p, a2a, all_gather, a2a"),
        (MISTRAL, "a2a", 16, 1, None, "a2a+p2p with hierarchical_context_parallel_sizes=[8,2]"),
        (MISTRAL, "a2a", 8, 2, None, "16 attention heads and 4 key/value heads"),
        (QWEN, "a2a", 8, 1, None, "hierarchical_context_parallel_sizes=[4,2]"),
        (QWEN, "a2a", 3, 1, None, "takes any number of heads."),
        (AttentionShape(6, 6, 64), "a2a", 4, 1, None, "hierarchical_context_parallel_sizes=[2,2]"),
        (AttentionShape(6, 4, 64), "a2a", 4, 1, None, "6 attention heads"),
        (MISTRAL, "a2a+p2p", 16, 2, [8, 2], "among 8 ranks"),
        (MISTRAL, "a2a+p2p", 16, 1, None, "sizes is None"),
        (MISTRAL, "a2a+p2p", 16, 1, [4, 2], "product is context_parallel_size=16"),
        (MISTRAL, "a2a+p2p", 8, 1, [2, 2, 2], "two sizes"),
        (MISTRAL, "a2a+p2p", 8, 1, [-2, -4], "two sizes"),
        (MISTRAL, "a2a", 8, 1, [4, 2], "leave it out with cp_comm_type=a2a"),
        (SLIDING, "p2p", 2, 1, None, "sliding window of 4096 tokens"),
        (SLIDING, "a2a+p2p", 2, 1, [2, 1], "choose a2a or all_gather"),
        (NARROW, "a2a", 2, 1, None, "20 channels"),
        (NARROW, "all_gather", 2, 1, None, "choose p2p"),
    ],
)
def test_impossible(shape, comm_type, cp, tp, hierarchical, words):
    with pytest.raises(InputError) as refusal:
        check_cp_comm(shape, comm_type, cp, tp, hierarchical)
    assert words in str(refusal.value)
