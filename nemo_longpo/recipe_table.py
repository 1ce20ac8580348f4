"""What the recipes of NeMo and of Megatron-Bridge have in common: the paper's constants, and the table of long runs.

Mistral-7B-Instruct-v0.2, Qwen2.5-7B-Instruct and Qwen3-8B at 128K to 1M tokens on GPUs of 80 GB. All have the paper's
constants, and differ in length and placement. The models can be divided by the same sizes (32 and 28 heads, 8 and 4 of
them for keys and values), so the first two use the same placements.
"""

from dataclasses import dataclass, replace

from .placement import GLOBAL_BATCH_SIZE, LONGEST_BRANCH, Placement, Precision

K = 1024
ONE_GPU = Placement()

# Tensor parallelism splits the weights within a node, context parallelism splits the pair over the other GPUs.
ONE_NODE = Placement(tp=4, cp=2)
TWO_NODES = Placement(tp=4, cp=4)
# Inputs of layers in host memory, 277 GB for Mistral-7B at 1M tokens; feed-forward parts in tiles.
FRUGAL_NODE = replace(ONE_NODE, offload_layer_inputs=True, mlp_tile_tokens=16 * K)
FOUR_GPUS = replace(FRUGAL_NODE, tp=2)


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """What a recipe is made from; the paper's constants where nothing else is said.

    `seq_length` are the tokens of the longest sequence. `warmup_ratio` is a share of `max_steps`. With `data_workers`,
    so many processes per rank read and lay out its next pairs during training.
    """

    seq_length: int
    placement: Placement = ONE_GPU
    precision: Precision = "bf16-mixed"
    global_batch_size: int = GLOBAL_BATCH_SIZE
    learning_rate: float = 5e-7
    warmup_ratio: float = 0.1
    max_steps: int = 100
    save_every_n_steps: int = 50
    data_workers: int = 0


LONGPO = RecipeSettings(seq_length=8192)
TINY_LONGPO = replace(LONGPO, global_batch_size=4, learning_rate=1e-4, warmup_ratio=0.0)


@dataclass(frozen=True)
class LongRun:
    """A model (`longpo plan --model`), the length of its documents in tokens, and how the job is divided."""

    model: str
    length: int
    on: Placement
    note: str = ""

    @property
    def settings(self) -> RecipeSettings:
        """For a document and an answer. Recomputes the feed-forward part of each layer up to 256K tokens, whole layers
        beyond.
        """
        placement = self.on.recomputing("mlp" if self.length <= 256 * K else "full")
        return RecipeSettings(seq_length=self.length + LONGEST_BRANCH, placement=placement, data_workers=1)

    @property
    def summary(self) -> str:
        length = f"{self.length // K}K" if self.length < 1024 * K else f"{self.length // K**2}M"
        return f"{self.model} at {length} tokens on {self.on.gpus} GPUs of 80 GB{self.note}."


MISTRAL, QWEN25, QWEN3 = "Mistral-7B", "Qwen2.5-7B", "Qwen3-8B"
LONG_RUNS = {
    "mistral_7b_longpo_128k": LongRun(MISTRAL, 128 * K, ONE_NODE),
    "mistral_7b_longpo_256k": LongRun(MISTRAL, 256 * K, TWO_NODES),
    "mistral_7b_longpo_512k": LongRun(MISTRAL, 512 * K, TWO_NODES),
    "mistral_7b_longpo_512k_one_node": LongRun(MISTRAL, 512 * K, ONE_NODE, ", half of what the paper used"),
    "mistral_7b_longpo_512k_four_gpus": LongRun(MISTRAL, 512 * K, FOUR_GPUS),
    "mistral_7b_longpo_1m_one_node": LongRun(MISTRAL, 1024 * K, FRUGAL_NODE),
    "qwen25_7b_longpo_128k": LongRun(QWEN25, 128 * K, ONE_NODE),
    "qwen25_7b_longpo_512k": LongRun(QWEN25, 512 * K, TWO_NODES),
    "qwen25_7b_longpo_512k_four_gpus": LongRun(QWEN25, 512 * K, FOUR_GPUS),
    "qwen25_7b_longpo_1m_one_node": LongRun(QWEN25, 1024 * K, FRUGAL_NODE),
    # Import it with `--rope-theta 1e7 --max-length 131072`; its base is 1e6, for 32,768 tokens and 40,960 positions.
    # Qwen advises YaRN with factor 4 for 128K: it needs no training, divides the slow frequencies by 4, and scales
    # scores, at every length. Here the model is trained at 128K, as the paper trained Qwen2.5-7B from the same base to
    # 1e7. A larger base moves fast frequencies least, so the policy starts near its reference on short contexts; it is
    # one number that every engine reads alike; and the next round raises it again, where a second YaRN cannot be put on
    # the first. The two were not compared on Qwen3.
    # All tensor-parallel: the norms of queries and keys keep 5,120 numbers more per row and layer.
    "qwen3_8b_longpo_128k": LongRun(QWEN3, 128 * K, Placement(tp=8)),
}
"""By the name of their recipe."""
