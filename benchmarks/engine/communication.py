"""How many bytes does context parallelism send per layer and rank? Counted, and held against closed formulas.

    python -m benchmarks.engine.communication --ranks 2 4 8

Runs one layer's attention, forward and backward, in that many gloo processes with the head counts of Mistral-7B in
bf16, and counts what every rank gives to the collectives for other ranks: `branch_attention` of two branches, whose
trunk sends nothing, and `causal_attention`, which the CPU backend trains with. Stops if a count differs from its
formula. Beside them, from formulas alone: the plain way to do branches, and a whole second sequence. Counts, not times:
the result is the same on every machine (two minutes on two cores). Writes communication.json and communication.md into
benchmarks/results.
"""

from typing import Any

from support.jobs import branch_jobs
from support.worker_pool import WorkerPool

from nemo_longpo.planning.speed import branch_traffic

from ..common.results import origin, parser, write_results

HEADS, KV_HEADS, HEAD = 32, 8, 128
BRANCH = 4608
TRUNK = 256  # rows that the branch attends to in the count; tests hold that their number does not matter
BF16, FP32 = 2, 4
COUNTED = {"branches": "branch_attention", "causal": "causal_attention"}

Traffic = tuple[int, int]
"""Bytes sent by one rank in one layer: (forward, backward)."""


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="context-parallel sizes to count")
    ranks = flags.parse_args().ranks
    pool = WorkerPool(max(ranks))
    try:
        counted = [count(pool, kind, size) for kind in COUNTED for size in ranks]
    finally:
        pool.close()
    derived = [row for document in (131_072, 524_288) for row in compare(document, cp_size=8)]
    lines = [
        f"Mistral-7B's heads ({HEADS} query, {KV_HEADS} key/value, {HEAD} channels), bf16; MB = 10^6 bytes per layer "
        f"and rank. {BRANCH:,} branch rows over all ranks, or a causal sequence of as many.",
        "",
        "| counted | cp | forward, MB | backward, MB | collectives | equals the formula |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['attention']} | {row['cp']} | {megabytes(row['forward'])} | {megabytes(row['backward'])} | "
            f"{', '.join(row['collectives'])} | yes, to the byte |"
            for row in counted
        ),
        "",
        "| from formulas, cp 8: what a second answer costs | forward, MB | backward, MB |",
        "|---|---|---|",
        *(f"| {row['what']} | {megabytes(row['forward'])} | {megabytes(row['backward'])} |" for row in derived),
    ]
    result = {"counted": counted, "derived": derived}
    write_results("communication", origin(("torch",)) | result, lines)


def count(pool: WorkerPool, kind: str, cp_size: int) -> dict[str, Any]:
    """What every rank sent; all send the same, and as much as the formula says."""
    sizes = {"rows": BRANCH, "trunk": TRUNK, "heads": HEADS, "kv_heads": KV_HEADS, "head": HEAD, "dtype": "bfloat16"}
    shares = pool.run(branch_jobs.attention_traffic, cp_size, kind=kind, **sizes)
    (sent,) = {tuple(sum(collectives.values()) for collectives in share) for share in shares}
    if kind == "branches":
        formula = branch_traffic(BRANCH, HEADS, KV_HEADS, HEAD, cp_size)
    else:
        formula = gathered_keys_and_values(BRANCH, cp_size)
    assert sent == formula, f"{kind}, cp {cp_size}: counted {sent}, the formula says {formula}"
    forward, backward = sent
    collectives = sorted(set(shares[0][0]) | set(shares[0][1]))
    return {
        "attention": COUNTED[kind],
        "cp": cp_size,
        "forward": forward,
        "backward": backward,
        "formula": formula,
        "collectives": collectives,
    }


def gathered_keys_and_values(rows: int, cp_size: int) -> Traffic:
    """K and V to every other rank, their gradients back."""
    whole = (cp_size - 1) * rows // cp_size * 2 * KV_HEADS * HEAD * BF16
    return whole, whole


def ring(rows: int, cp_size: int) -> Traffic:
    """Transformer Engine's p2p: K and V visit every rank; in the backward with their gradients."""
    forward, _ = gathered_keys_and_values(rows, cp_size)
    return forward, 2 * forward


def gathered_and_scattered_in_fp32(rows: int, cp_size: int) -> Traffic:
    """The plain way to do branches: all-gather, compute everything for all rows, reduce-scatter sums in fp32."""
    foreign = (cp_size - 1) * rows // cp_size
    qkv, q = (HEADS + 2 * KV_HEADS) * HEAD, HEADS * HEAD
    return foreign * (qkv * BF16 + q * FP32 + 4 * HEADS), foreign * ((qkv + 2 * q) * BF16 + qkv * FP32)


def compare(document: int, cp_size: int) -> list[dict[str, Any]]:
    """A second answer of `BRANCH` rows to a document: as a branch, or as a whole second sequence."""
    ways = {
        f"branch of {BRANCH:,} rows behind {document:,}, as it is done here": branch_traffic(
            BRANCH, HEADS, KV_HEADS, HEAD, cp_size
        ),
        "the same with reduce-scatters in fp32": gathered_and_scattered_in_fp32(BRANCH, cp_size),
        f"second sequence of {document + BRANCH:,} rows around a ring (p2p)": ring(document + BRANCH, cp_size),
    }
    return [{"what": what, "forward": forward, "backward": backward} for what, (forward, backward) in ways.items()]


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"


if __name__ == "__main__":
    main()
