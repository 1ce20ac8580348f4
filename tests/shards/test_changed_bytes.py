"""Changed bytes of a shard give one sentence or consistent records, never a crash."""

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.small_shards import make_record, write

from nemo_longpo.errors import InputError
from nemo_longpo.shards.reader import ShardReader
from nemo_longpo.shards.schema import validate_record

CASES = 2500
SECONDS = 240  # some ten would do


@pytest.fixture
def shards(tmp_path):
    prompts = (np.arange(3, dtype=np.int32), np.arange(40, 49, dtype=np.int32))
    write(tmp_path / "shards", *(make_record(index, short_prompt_ids=prompts) for index in range(2)))
    return tmp_path / "shards"


def outcome(shards: Path) -> str:
    """Return the results of reading every record, with and without checking the file's hash."""
    reader = ShardReader(shards)
    with pytest.raises(InputError, match="sha256"):
        reader.verify()
    try:
        lengths, short_lengths = reader.lengths().tolist(), reader.short_lengths()
        for index, record in enumerate(reader):
            validate_record(record, vocab_size=100)
            assert lengths[index] == list(record.lengths)
            prompts = [len(ids) for ids in record.short_prompt_ids or ()]
            assert [prompt for prompt, *_ in short_lengths[index]] == prompts
        return "read"
    except InputError as error:
        sentence = str(error)
    assert sentence.startswith(f"{shards}/shard-00000.arrow"), sentence
    assert "\n" not in sentence
    return "refused"


def change_bytes(shards: Path, cases: int, seed: int) -> None:
    """Run in its own process, which a fault in Arrow would end; print how many were refused."""
    path = shards / "shard-00000.arrow"
    whole = path.read_bytes()
    rng, counts = random.Random(seed), Counter()
    for _ in range(cases):
        position = rng.randrange(len(whole))
        # Single bits, and the values at which lengths and offsets turn negative or huge.
        value = rng.choice([whole[position] ^ (1 << rng.randrange(8)), 0, 1, 0x7F, 0x80, 0xFF])
        if value == whole[position]:
            continue
        print(f"byte {position} = {value}", file=sys.stderr, flush=True)
        path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
        counts[outcome(shards)] += 1
    print(f"{counts['refused']} refused, {counts['read']} read")


@pytest.mark.slow
def test_changed_bytes_never_end_the_process(shards, tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from test_changed_bytes import change_bytes; change_bytes(Path(sys.argv[1]), int(sys.argv[2]), 0)"
    )
    command = [sys.executable, "-c", code, str(shards), str(CASES)]
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    child = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, env={"PYTHONPATH": ":".join(path)}
    )
    assert child.returncode == 0, f"exit {child.returncode} after {child.stderr[-2000:]}"
    refused, read = (int(words.split()[0]) for words in child.stdout.split(", "))
    # What is read are bytes of ids, log-probs and names that make another valid record, and padding.
    assert refused > read > 0


def test_undamaged_file_is_read(shards, tmp_path):
    """Otherwise the test above would pass with a reader that refuses everything."""
    shutil.copytree(shards, tmp_path / "copy")
    assert [record.doc_id for record in ShardReader(tmp_path / "copy")] == ["document 0", "document 1"]
