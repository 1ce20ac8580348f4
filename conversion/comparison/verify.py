"""Compare two models, cheapest part first; logits last, one model in memory at a time."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from nemo_longpo import trainers
from nemo_longpo.checkpoints import forms, run_directory, trust
from nemo_longpo.errors import InputError
from nemo_longpo.terminal import note

from ..model_on_disk import NOTHING_ELSE, Access, ModelOnDisk, open_model
from . import comparison_report, logits, small_files, tensors
from .logits_jobs import Job, compute

PACKAGES = {"nemo": "NeMo", "megatron.core": "Megatron-Core"}
"""Names of modules → what people call them."""


@dataclass(frozen=True, kw_only=True)
class LogitCheck:
    """The input of the two models, and how much their outputs may differ.

    `random_tokens` uniform token ids, then every prompt, in the tokens of A's tokenizer. `tolerance` bounds the
    difference of a token's logits, relative to its largest logit. With `own_rope` B keeps its own rotary settings
    where they differ from A's; then its logits are another model's.
    """

    random_tokens: int = 128
    seed: int = 0
    prompts: Sequence[str] = ()
    tolerance: float = 1e-5
    own_rope: bool = False


def verify(
    a: Path,
    b: Path,
    *,
    access: Access = NOTHING_ELSE,
    logit_check: LogitCheck | None = LogitCheck(),
    allow: Collection[str] = (),
    strict: bool = False,
) -> comparison_report.Report:
    """Compare two models, Hugging Face directories, checkpoints or directories of runs in any combination.

    Differences of fields that options of import and export change, and of dtype, are reported and allowed, unless
    `strict`; `allow` names further fields or files. Without a `logit_check` no logits are computed, and NeMo is not
    needed. Raises InputError if a side is not a complete model.
    """
    a, b = run_directory.find_checkpoint(a), run_directory.find_checkpoint(b)
    if a.resolve() == b.resolve():
        raise InputError(f"both sides are {a}; give two models")
    ours, theirs = open_model(a, access), open_model(b, access)
    if logit_check is not None:
        _require_trainer(ours, theirs)
    sequences = {} if logit_check is None else _sequences(ours, logit_check)
    allowed = {*allow, *(() if strict else small_files.SET_BY_OPTIONS | small_files.PROVENANCE)}
    fields = small_files.compare_configs(ours, theirs, allowed)
    files_equal, files = small_files.compare_files(ours, theirs, allowed)
    compared = _compare_tensors(ours, theirs)
    answers: logits.LogitsComparison | str
    if logit_check is None:
        answers = "not asked for"
    elif (ours.family.architecture, ours.model_shape) != (theirs.family.architecture, theirs.model_shape):
        answers = "A and B are of different sizes"
    elif any(tensor.not_finite for tensor in compared):
        answers = "weights are NaN or infinite, so logits would say nothing"
    else:
        answers = _compare_logits(ours, theirs, _narrowest(compared), logit_check, sequences)
    return comparison_report.Report(
        a=_side(ours),
        b=_side(theirs),
        strict=strict,
        fields=fields,
        files_equal=files_equal,
        files=files,
        tensors=compared,
        logits=answers,
    )


def _side(source: ModelOnDisk) -> comparison_report.Side:
    form = forms.form_of(source.path) if source.kind != "huggingface" else None
    kind = form.title if form else "Hugging Face directory"
    shapes = (shape for piece in source.family.pieces(source.model_shape) for shape in piece.part_shapes)
    return comparison_report.Side(
        str(source.path), kind, source.family.architecture, sum(math.prod(shape) for shape in shapes)
    )


def _require_trainer(*sides: ModelOnDisk) -> None:
    for source in sides:
        needed = {"nemo": ("nemo", "megatron.core"), "bridge": ("megatron.core",), "huggingface": ()}[source.kind]
        if missing := [name for name in needed if not trainers.is_installed(name)]:
            names = " and ".join(PACKAGES[name] for name in missing)
            raise InputError(
                f"the logits of {source.path} need {names}, not installed here; pass --no-logits to compare the rest"
            )


def _sequences(source: ModelOnDisk, logit_check: LogitCheck) -> dict[str, list[int]]:
    """Token ids by name."""
    generator = torch.Generator().manual_seed(logit_check.seed)
    ids = torch.randint(source.model_shape.vocab, (logit_check.random_tokens,), generator=generator)
    sequences: dict[str, list[int]] = {"random tokens": ids.tolist()}
    if logit_check.prompts:
        from transformers import AutoTokenizer

        trust.check_tokenizer_files(source.origin.path)
        tokenizer = AutoTokenizer.from_pretrained(source.origin.path, trust_remote_code=False)
        for number, prompt in enumerate(logit_check.prompts, start=1):
            tokens = tokenizer(prompt)["input_ids"]
            if not tokens:
                raise InputError(f"prompt {number} has no tokens; leave it out")
            if max(tokens) >= source.model_shape.vocab:
                raise InputError(
                    f"prompt {number} has the token {max(tokens)}, but {source.path} knows only "
                    f"{source.model_shape.vocab}; its tokenizer is of another model"
                )
            sequences[f"prompt {number}"] = tokens
    return sequences


def _compare_tensors(a: ModelOnDisk, b: ModelOnDisk) -> list[tensors.TensorComparison]:
    names = {name for side in (a, b) for piece in side.family.pieces(side.model_shape) for name in piece.names}
    return list(tqdm(tensors.compare_models(a, b), total=len(names), desc="tensors", unit="tensor"))


def _narrowest(compared: Sequence[tensors.TensorComparison]) -> str | None:
    """The dtype to which both models are rounded so that rounding of one does not count as a difference."""
    rounded = {name for tensor in compared if tensor.verdict == "rounded" for name in tensor.dtypes if name}
    return min(rounded, key=lambda name: (getattr(torch, name).itemsize, name), default=None)


def _compare_logits(
    a: ModelOnDisk,
    b: ModelOnDisk,
    round_to: str | None,
    logit_check: LogitCheck,
    sequences: Mapping[str, Sequence[int]],
) -> logits.LogitsComparison:
    ropes = [side.config.rope for side in (a, b)]
    common_rope = ropes[0] if ropes[0] != ropes[1] and not logit_check.own_rope else None
    with TemporaryDirectory() as scratch:
        jobs = []
        for label, side, rope in (("A", a, None), ("B", b, common_rope)):
            output = Path(scratch) / label
            output.mkdir()
            access = replace(side.access, check_hashes=False)  # done when the side was opened
            token_ids = list(sequences.values())
            job = Job(model=side.path, output=output, sequences=token_ids, access=access, rope=rope, round_to=round_to)
            jobs.append(job)
        same = "huggingface" not in (a.kind, b.kind) or a.kind == b.kind
        for together in [jobs] if same else [[job] for job in jobs]:
            note(f"logits of {' and '.join(str(job.model) for job in together)}")
            compute(together)
        compared, states = logits.compare_outputs(jobs[0].output, jobs[1].output, list(sequences))
    return logits.LogitsComparison(
        tolerance=logit_check.tolerance,
        common_rope=common_rope is not None,
        rounded_to=round_to,
        sequences=compared,
        states=states,
    )
