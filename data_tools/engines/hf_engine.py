"""The engine for small models and machines without vLLM: plain Hugging Face forward passes.

Shape letters: B sequences, S tokens, V vocabulary, P scored positions, L tokens of a shared beginning.
"""

import gc
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..runner import Tick, Usage
from ..settings import EngineSettings, TransformersSettings
from . import hf_model, prefixes
from .engine import Completion, Done, Sampling, Spans, indices, no_report

# Most padded tokens of a batch, as a multiple of those without padding: long and short requests do not mix.
MOST_PADDING = 1.15


@dataclass(frozen=True)
class _Prefix:
    """The keys and values of the first `length` tokens of several requests, in one part per level of the tree."""

    length: int = 0
    parts: tuple[list[tuple[torch.Tensor, torch.Tensor]], ...] = ()

    def cache(self, copies: int) -> Any:
        """Return a cache for `copies` requests that all begin with these tokens."""
        cache: Any = transformers.DynamicCache()
        for layer, levels in enumerate(zip(*self.parts, strict=True)):
            keys, values = (torch.cat(found, dim=-2) for found in zip(*levels, strict=True))
            cache.update(keys.expand(copies, -1, -1, -1), values.expand(copies, -1, -1, -1), layer)
        return cache

    def extended(self, cache: Any, length: int) -> "_Prefix":
        """Return the prefix of `length` tokens, all of which are in `cache`; keeps those beyond this one."""
        layers = [
            (layer.keys[..., self.length :, :].clone(), layer.values[..., self.length :, :].clone())
            for layer in cache.layers
        ]
        return _Prefix(length, (*self.parts, layers))


class TransformersEngine:
    """Batches requests of similar length: at most `batch_tokens` padded tokens at once (one request may exceed it), and
    at most MOST_PADDING times as many as without padding.

    With `share_prefixes`, what requests begin with in common is computed once (see prefixes.py); results then differ in
    the last bits from those without. At most one shared beginning is in memory, twice while requests go on behind it.
    Models with a sliding window share none.
    Generation uses only the given sampling, never the model's generation_config. Raises InputError if the model cannot
    be loaded.
    """

    max_length = None
    writes_json = False

    def __init__(
        self,
        directory: str | Path,
        common: EngineSettings,
        own: TransformersSettings,
        *,
        share_prefixes: bool = False,
    ):
        wanted = ("cuda" if torch.cuda.is_available() else "cpu") if own.device == "auto" else own.device
        self._device = torch.device(wanted)
        self._model = hf_model.load_model(directory, common.dtype, common.rope_theta).to(self._device)
        self._batch_tokens = own.batch_tokens
        # A window counts the padding between a shared beginning and what is behind it.
        self._share_prefixes = share_prefixes and getattr(self._model.config, "sliding_window", None) is None

    @property
    def context_length(self) -> int:
        return self._model.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self._model.config.vocab_size

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    def close(self) -> None:
        del self._model
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        tick: Tick,
        done: Done[Completion] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[Completion]:
        chosen = indices(len(prompts), wanted)
        missing, completions = set(chosen), dict[int, Completion]()
        limits = [len(prompt) - 1 for prompt in prompts]
        for batch, prefix, cached in self._units(prompts, limits, sampling.max_new_tokens, missing):

            def finish(row: int, found: Completion, batch: list[int] = batch, cached: list[int] = cached) -> None:
                index = batch[row]
                if index in missing:
                    tick(Usage(1, len(prompts[index]), cached[row], len(found.ids)))
                    completions[index] = found
                    done(index, found)

            rests = [prompts[index][prefix.length :] for index in batch]
            self._generate_batch(rests, prefix, sampling, [seeds[index] for index in batch], finish)
        return [completions[index] for index in chosen]

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Spans,
        tick: Tick,
        done: Done[list[np.ndarray]] = no_report,
        wanted: Collection[int] | None = None,
    ) -> list[list[np.ndarray]]:
        chosen = indices(len(sequences), wanted)
        missing, scores = set(chosen), dict[int, list[np.ndarray]]()
        limits = [
            min((start for start, _ in row), default=len(sequence)) - 1
            for sequence, row in zip(sequences, spans, strict=True)
        ]
        for batch, prefix, cached in self._units(sequences, limits, 0, missing):
            rests = [sequences[index][prefix.length :] for index in batch]
            shifted = [[(a - prefix.length, b - prefix.length) for a, b in spans[index]] for index in batch]
            found = self._score_batch(rests, prefix, shifted)
            own = [row for row, index in enumerate(batch) if index in missing]
            tokens = sum(len(sequences[batch[row]]) for row in own)
            tick(Usage(len(own), tokens, sum(cached[row] for row in own)))
            for row in own:
                scores[batch[row]] = found[row]
                done(batch[row], found[row])
        return [scores[index] for index in chosen]

    def _units(
        self, sequences: Sequence[Sequence[int]], limits: Sequence[int], room: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], _Prefix, list[int]]]:
        """Yield every batch with a wanted request, the prefix behind which it goes on, and per row the prompt tokens
        that were computed before. All requests decide the batches, so a batch is the same whatever is wanted."""
        tree = prefixes.Branch(0, list(range(len(sequences))))
        if self._share_prefixes:
            tree = prefixes.plan(sequences, limits)
        fresh = 0  # tokens of the current prefix that no request has been charged with

        def visit(branch: prefixes.Branch, prefix: _Prefix) -> Iterator[tuple[list[int], _Prefix, list[int]]]:
            nonlocal fresh
            first = next((index for index in branch.members() if index in wanted), None)
            if first is None:
                return
            if branch.length > prefix.length:
                fresh += branch.length - prefix.length
                prefix = self._extend(prefix, sequences[first][: branch.length])
            for inner in branch.inner:
                yield from visit(inner, prefix)
            for rows in self.batches([len(sequences[index]) + room for index in branch.own]):
                batch = [branch.own[row] for row in rows]
                if wanted.isdisjoint(batch):
                    continue
                cached = [prefix.length] * len(batch)
                cached[next(row for row, index in enumerate(batch) if index in wanted)] -= fresh
                fresh = 0
                yield batch, prefix, cached

        yield from visit(tree, _Prefix())

    @torch.inference_mode()
    def _extend(self, prefix: _Prefix, tokens: Sequence[int]) -> _Prefix:
        """Compute the tokens of a longer prefix behind a shorter one."""
        cache = prefix.cache(1)
        ids_1L = torch.tensor([list(tokens[prefix.length :])], device=self._device)
        self._model(input_ids=ids_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return prefix.extended(cache, len(tokens))

    @torch.inference_mode()
    def _generate_batch(
        self,
        rests: list[Sequence[int]],
        prefix: _Prefix,
        sampling: Sampling,
        seeds: list[int],
        finish: Done[Completion],
    ) -> None:
        """Generate behind `prefix` and each of `rests`, and call `finish` with a row as soon as it ends."""
        ids_BS, mask_BS = _pad_left(rests, self._device)
        draws_BN = _uniform_draws(seeds, sampling).to(self._device)
        positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0) + prefix.length
        mask_BS = torch.cat([mask_BS.new_ones(len(rests), prefix.length), mask_BS], dim=1)
        cache = prefix.cache(len(rests))
        generated: list[list[int]] = [[] for _ in rests]
        running = set(range(len(rests)))
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
                    finish(row, Completion(generated[row], "stop"))
                elif row in running:
                    generated[row].append(token)
            if not running:
                break
            ids_BS, positions_BS = next_B[:, None], positions_BS[:, -1:] + 1
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(rests), 1)], dim=1)
        for row in sorted(running):
            finish(row, Completion(generated[row], "length"))

    @torch.inference_mode()
    def _score_batch(self, rests: list[Sequence[int]], prefix: _Prefix, spans: Spans) -> list[list[np.ndarray]]:
        """Score sequences padded on the right; spans count from the end of `prefix`. No mask is needed: attention is
        causal. Only scored positions get logits."""
        longest = max(len(rest) for rest in rests)
        padded = [[*rest, *[0] * (longest - len(rest))] for rest in rests]
        ids_BS = torch.tensor(padded, device=self._device)
        wanted = sorted({token - 1 for row in spans for start, end in row for token in range(start, end)})
        positions_P = torch.tensor(wanted, device=self._device)
        behind = {"past_key_values": prefix.cache(len(rests))} if prefix.length else {}
        logits_BPV = self._model(input_ids=ids_BS, use_cache=bool(behind), logits_to_keep=positions_P, **behind).logits
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
