import json

import pytest

from nemo_longpo.data_tools.quality.repetition import compressed_share, longest_loop

PROSE = "The captain wrote to his daughter about the old clock, the harbour and the boat that had left so early."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He went home. " * 20, 60),
        (f"{PROSE} " + "He went home. " * 5, 15),
        (f"{PROSE} " + "He went home. " * 5 + "He we", 16),  # cut in the middle of a round
        ("He went home. " * 5 + PROSE, 15),  # and out of the loop again
        (f"{PROSE} " * 4, 80),
        ("他说船很好。" * 6, 30),
        ("no " * 7, 7),
        ("He went home. " * 3, 0),
        (f"{PROSE} {PROSE}", 0),
        ("0, 0, 0, 0, 0, 0, 0, 0", 0),
        ("1 2 1 2 1 2 1 2", 0),
        (", ".join(map(str, range(50))), 0),
        ("", 0),
        ("one", 0),
    ],
)
def test_loops(text, expected):
    assert longest_loop(text) == expected


def test_compressed_size():
    assert compressed_share(PROSE * 3) == 1.0  # too short to tell
    numbered = "\n".join(f"{number}. The boat is red and the clock is old." for number in range(40))
    assert longest_loop(numbered) == 0
    assert compressed_share(numbered) < 0.1
    records = [{"name": f"person {n}", "age": 20 + n % 30, "city": ["Rome", "Oslo", "Lima"][n % 3]} for n in range(40)]
    table = "\n".join(f"| {n} | {n * n} | {n**3} |" for n in range(60))
    assert all(compressed_share(text) > 0.1 for text in (json.dumps(records, indent=1), table))
