"""The engine for small models and machines without vLLM: plain Hugging Face forward passes.

Shape letters: B sequences, S tokens, V vocabulary, P scored positions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from ..runner import Tick, Usage
from ..settings import EngineSettings, TransformersSettings
from .engine import Completion, Sampling, Spans

# Most padded tokens of a batch, as a multiple of those without padding: long and short requests do not mix.
MOST_PADDING = 1.15
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersEngine:
    """Batches requests of similar length: at most `batch_tokens` padded tokens at once (one request may exceed it), and
    at most MOST_PADDING times as many as without padding.

    Generation uses only the given sampling, never the model's generation_config. Raises InputError if the model cannot
    be loaded.
    """

    max_length = None
    writes_json = False

    def __init__(self, directory: str | Path, common: EngineSettings, own: TransformersSettings):
        wanted = ("cuda" if torch.cuda.is_available() else "cpu") if own.device == "auto" else own.device
        self._device = torch.device(wanted)
        self._model = load_model(directory, common.dtype, common.rope_theta).to(self._device)
        self._batch_tokens = own.batch_tokens

    @property
    def context_length(self) -> int:
        return self._model.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self._model.config.vocab_size

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group requests of similar length, the longest first, so that a lack of memory shows at once."""
        made: list[list[int]] = []
        own = 0  # tokens of the last batch without padding
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            longest = lengths[made[-1][0]] if made else 0
            most = min(self._batch_tokens, MOST_PADDING * (own + lengths[index]))
            if not made or (len(made[-1]) + 1) * longest > most:
                made.append([])
                own = 0
            made[-1].append(index)
            own += lengths[index]
        return made

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], tick: Tick
    ) -> list[Completion]:
        completions: dict[int, Completion] = {}
        for batch in self.batches([len(prompt) + sampling.max_new_tokens for prompt in prompts]):
            found = self._generate_batch([prompts[i] for i in batch], sampling, [seeds[i] for i in batch], tick)
            completions.update(zip(batch, found, strict=True))
        return [completions[index] for index in range(len(prompts))]

    def score(self, sequences: Sequence[Sequence[int]], spans: Spans, tick: Tick) -> list[list[np.ndarray]]:
        scores: dict[int, list[np.ndarray]] = {}
        for batch in self.batches([len(sequence) for sequence in sequences]):
            found = self._score_batch([sequences[i] for i in batch], [spans[i] for i in batch])
            scores.update(zip(batch, found, strict=True))
            tick(Usage(len(batch), sum(len(sequences[i]) for i in batch)))
        return [scores[index] for index in range(len(sequences))]

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: list[Sequence[int]], sampling: Sampling, seeds: list[int], tick: Tick
    ) -> list[Completion]:
        ids_BS, mask_BS = _pad_left(prompts, self._device)
        draws_BN = _uniform_draws(seeds, sampling).to(self._device)
        positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
        cache: Any = transformers.DynamicCache()
        generated: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        for step in range(sampling.max_new_tokens):
            logits_BV = self._model(
                input_ids=ids_BS,
                attention_mask=mask_BS,
                position_ids=positions_BS,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            next_B = _pick(logits_BV.float(), sampling, draws_BN[:, step])
            for row, token in enumerate(next_B.tolist()):
                if row in running and token in sampling.stop_ids:
                    running.remove(row)
                    tick(Usage(1, len(prompts[row]), generated_tokens=len(generated[row])))
                elif row in running:
                    generated[row].append(token)
            if not running:
                break
            ids_BS, positions_BS = next_B[:, None], positions_BS[:, -1:] + 1
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(prompts), 1)], dim=1)
        for row in sorted(running):
            tick(Usage(1, len(prompts[row]), generated_tokens=len(generated[row])))
        return [Completion(ids, "length" if row in running else "stop") for row, ids in enumerate(generated)]

    @torch.inference_mode()
    def _score_batch(self, sequences: list[Sequence[int]], spans: Spans) -> list[list[np.ndarray]]:
        """Score sequences padded on the right. No mask is needed: attention is causal. Only scored positions get
        logits."""
        longest = max(len(sequence) for sequence in sequences)
        padded = [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
        ids_BS = torch.tensor(padded, device=self._device)
        wanted = sorted({token - 1 for row in spans for start, end in row for token in range(start, end)})
        positions_P = torch.tensor(wanted, device=self._device)
        logits_BPV = self._model(input_ids=ids_BS, use_cache=False, logits_to_keep=positions_P).logits
        index_of = {position: index for index, position in enumerate(wanted)}
        return [
            [self._span_logps(logits_BPV[row], ids_BS[row], span, index_of) for span in row_spans]
            for row, row_spans in enumerate(spans)
        ]

    @staticmethod
    def _span_logps(
        logits_PV: torch.Tensor, ids_S: torch.Tensor, span: tuple[int, int], index_of: dict[int, int]
    ) -> np.ndarray:
        start, end = span
        first = index_of[start - 1]
        logps_TV = logits_PV[first : first + end - start].float().log_softmax(-1)
        return logps_TV.gather(-1, ids_S[start:end, None])[:, 0].cpu().numpy()


def load_model(directory: str | Path, dtype: str, rope_theta: float | None) -> Any:
    """Return the Hugging Face model in a directory, for inference; "auto" and None keep its dtype and RoPE base.

    Raises InputError if it cannot be loaded.
    """
    ModelConfig.read(directory)
    try:
        config = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        _adopt_rope_parameters(config)
        if rope_theta is not None:
            set_rope_theta(config, rope_theta)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(directory), config=config, dtype=DTYPES.get(dtype, "auto"), local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory} cannot be loaded as a language model ({error}); check the files") from error
    return model.eval()


def _adopt_rope_parameters(config: Any) -> None:
    """Copy the RoPE settings of a `config.json` of version 5 to where transformers 4 reads them; it ignores others."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None or not transformers.__version__.startswith("4."):
        return
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    config.rope_theta, config.rope_parameters = parameters["rope_theta"], None
    config.rope_scaling = None if scaling.get("rope_type", "default") == "default" else scaling


def set_rope_theta(config: Any, rope_theta: float) -> None:
    """Change the RoPE base of a Hugging Face configuration, where transformers 4 or 5 keeps it."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        config.rope_theta = rope_theta
    else:
        parameters["rope_theta"] = rope_theta


def _pad_left(prompts: list[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both [B, S]; the mask hides the pad id."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[*[0] * (longest - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _uniform_draws(seeds: list[int], sampling: Sampling) -> torch.Tensor:
    """Return [B, max_new_tokens] numbers in [0, 1) that depend on each request's own seed."""
    rows = [torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def _pick(logits_BV: torch.Tensor, sampling: Sampling, draws_B: torch.Tensor) -> torch.Tensor:
    """Return the next token of every row: the best one, or a draw from the smallest set with mass `top_p`."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    sorted_BV, order_BV = (logits_BV / sampling.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
    cumulative_BV = sorted_BV.cumsum(-1)
    kept_BV = sorted_BV * (cumulative_BV - sorted_BV < sampling.top_p)
    threshold_B1 = draws_B[:, None] * kept_BV.sum(-1, keepdim=True)
    rank_B1 = (kept_BV.cumsum(-1) <= threshold_B1).sum(-1, keepdim=True).clamp(max=logits_BV.shape[-1] - 1)
    return order_BV.gather(-1, rank_B1)[:, 0]
