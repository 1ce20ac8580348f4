"""Compare the summary with numbers computed from the input, and similarity with the textbook table."""

import json

import numpy as np
import pytest
from hypothesis import given, strategies as st
from support.told_shards import GENERATION, Told, Turn

from nemo_longpo.data_tools.inspection.drawings import bar
from nemo_longpo.data_tools.inspection.inspect_shards import inspect_shards
from nemo_longpo.data_tools.inspection.shard_summary import differences, even_edges, similarity
from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.terminal import number, size

DOCUMENTS = [
    Told("a", "The river. " * 30, [Turn("Who?", "One letter", "12 bright lamps!", -0.5, -1.5)]),
    Told("b", "A clock. " * 9, [Turn("Why?", "No", "No", -2.0, -1.0), Turn("And?", "Every teacher", "x", -0.1, -4.0)]),
    Told("c", "A boat. " * 50, [Turn("Who?", "my neighbour answers", "my neighbour carries", -3.0, -1.0)]),
    Told("d", "A boat. " * 20, [Turn("A tie?", "x", "y", -1.0, -1.0)]),  # prefers neither answer
]


@pytest.fixture
def shards(write):
    return write(*DOCUMENTS)


def test_every_distribution(shards, chat):
    summary = inspect_shards(shards, verify=True)
    turns = [turn for told in DOCUMENTS for turn in told.turns]
    chosen = np.array([len(chat.response_ids(turn.chosen)) + 1 for turn in turns])
    rejected = np.array([len(chat.response_ids(turn.rejected)) + 1 for turn in turns])
    means = np.array([(turn.chosen_logp, turn.rejected_logp) for turn in turns])
    margins = means[:, 0] * chosen - means[:, 1] * rejected
    records = list(ShardReader(shards))
    expected = {
        "tokens_per_sequence": [len(r.trunk_ids) + max(len(r.chosen_ids), len(r.rejected_ids)) for r in records],
        "turns_per_document": [1, 2, 1, 1],
        "chosen_tokens_per_turn": chosen,
        "rejected_tokens_per_turn": rejected,
        "length_difference_per_turn": chosen - rejected,
        "chosen_logp_per_token": means[:, 0],
        "rejected_logp_per_token": means[:, 1],
        "margin_per_document": [margins[0], margins[1] + margins[2], margins[3], margins[4]],
        "margin_per_turn": margins,
        "margin_per_token": means[:, 0] - means[:, 1],
    }
    found = summary["distributions"]
    assert set(found) == {*expected, "similarity_per_turn"}
    for name, values in expected.items():
        spread = found[name]
        assert spread["mean"] == pytest.approx(np.mean(values), abs=1e-5), name
        percentiles = [spread[key] for key in ("min", "p5", "p25", "median", "p75", "p95", "max")]
        assert percentiles == pytest.approx(np.percentile(values, [0, 5, 25, 50, 75, 95, 100]), abs=1e-5), name
    assert found["similarity_per_turn"]["max"] == 1
    assert 0 < found["similarity_per_turn"]["min"] < 0.5
    assert summary["reference_prefers_chosen"] == {
        "documents": np.mean(np.array(expected["margin_per_document"]) > 0),
        "turns": np.mean(margins > 0),
        "turns_per_token": 0.4,
    }


def test_histograms_count_everything_once(shards):
    summary = inspect_shards(shards)
    for name, histogram in summary["histograms"].items():
        spread, edges = summary["distributions"][name], histogram["edges"]
        assert sum(histogram["counts"]) == (4 if name in ("tokens_per_sequence", "margin_per_document") else 5)
        assert len(edges) == len(histogram["counts"]) + 1
        assert edges[0] <= spread["min"]
        assert spread["max"] < edges[-1]
    sides = [summary["histograms"][f"{side}_tokens_per_turn"]["edges"] for side in ("chosen", "rejected")]
    assert sides[0] == sides[1]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 512.2), (5, 5), (-0.0031, -0.0012), (128000, 131072)])
def test_edges_are_round_and_enclose(low, high):
    for whole in (False, True):
        edges = even_edges(low, high, whole=whole)
        assert edges[0] <= low <= high < edges[-1]
        assert 2 <= len(edges) <= 19
        steps = np.diff(edges)
        assert steps == pytest.approx(steps[0])
        assert float(f"{steps[0]:.1g}") == pytest.approx(steps[0])
        assert not whole or steps[0] >= 1


def test_provenance_is_complete(shards):
    summary = inspect_shards(shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    for name in ("counts", "reference", "ref_context", "tokenizer_fingerprint", "chat_template_hash", "vocab_size"):
        assert summary[name] == manifest[name]
    assert summary["generation"] == GENERATION
    assert summary["length_histogram"] == manifest["length_histogram"]
    assert (summary["files"], summary["verified"]) == (2, False)


def test_command_prints_lines_or_json(longpo, shards):
    status, out, _ = longpo("inspect", shards, "--json")
    assert (status, json.loads(out)) == (0, inspect_shards(shards))
    status, out, _ = longpo("inspect", shards, "--verify")
    lines = {line[:27].strip(): line[27:] for line in out.splitlines()}
    assert status == 0
    assert lines["verified"].startswith("yes")
    assert (lines["documents"], lines["turns"]) == ("4", "5")
    margins = inspect_shards(shards)["distributions"]["margin_per_document"]
    assert lines["margin per document"].split() == [number(value) for value in margins.values()]
    assert lines["made by respond"] == "temperature 0.0"
    assert "█" in out


def test_tampered_and_missing_shards_are_refused(longpo, shards, tmp_path):
    assert "no manifest.json" in longpo("inspect", tmp_path)[2]
    path = shards / "shard-00000.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    status, out, error = longpo("inspect", shards, "--verify")
    assert (status, out) == (2, "")
    assert "sha256" in error


def test_shards_without_documents_are_refused(shards):
    content = json.loads((shards / "manifest.json").read_text())
    nothing = {"files": [], "length_histogram": {}, "counts": dict.fromkeys(content["counts"], 0)}
    (shards / "manifest.json").write_text(json.dumps(content | nothing))
    with pytest.raises(InputError, match="holds no documents"):
        inspect_shards(shards)


def test_numbers_for_people():
    assert [number(value) for value in (1234567.8, -131072, 416.53, 3.14159, -0.0312, 0, 7.0)] == [
        *("1,234,568", "-131,072", "416.5", "3.14", "-0.031", "0", "7")
    ]
    assert [size(count) for count in (0, 1023, 1024, 3 << 29, 5 << 50)] == [
        *("0 bytes", "1023 bytes", "1 KiB", "1.5 GiB", "5120 TiB")
    ]
    assert [bar(value, 8, width=2) for value in (0, 0.001, 1, 4, 8)] == ["", "▏", "▎", "█", "██"]


IDS = st.lists(st.integers(0, 4), max_size=14)


def longest_common_subsequence(left, right):
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(IDS, IDS)
def test_similarity_uses_longest_common_subsequence(left, right):
    if left or right:
        assert similarity(left, right) == 2 * longest_common_subsequence(left, right) / (len(left) + len(right))


@given(IDS, IDS)
def test_equal_parts_are_the_same_in_both(left, right):
    differ = differences(left, right)
    assert [len(side) for side in differ] == [len(left), len(right)]
    rest = [
        [token for token, flag in zip(ids, flags, strict=True) if not flag]
        for ids, flags in zip((left, right), differ, strict=True)
    ]
    assert rest[0] == rest[1]
    assert len(rest[0]) <= longest_common_subsequence(left, right)


def test_equal_empty_and_disjoint_answers():
    assert similarity([], []) == similarity([3], [3]) == similarity([1, 2], [1, 2]) == 1
    assert similarity([1, 2], [3]) == similarity([], [3]) == 0
    assert similarity([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75


def test_single_shared_tokens_inside_count_as_different():
    assert differences([1, 5, 6, 9], [1, 7, 8, 9]) == ([False, True, True, False],) * 2
    assert differences([1, 2, 5, 3, 4], [8, 9, 5, 7, 6])[0] == [True] * 5
    assert differences([1, 2, 5, 6, 3], [8, 9, 5, 6, 7])[0] == [True, True, False, False, True]
    assert differences([9, 1, 2, 8], [1, 2, 7, 7]) == ([True, False, False, True], [False, False, True, True])


def test_thousands_of_tokens():
    left = [(i * i) % 1009 for i in range(5000)]
    assert similarity(left, left[:2500] + left[2501:]) == 2 * 4999 / 9999
