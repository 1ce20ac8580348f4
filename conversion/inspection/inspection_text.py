"""A report as aligned lines for people."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_longpo.terminal import count, printable, size

LABEL = 18
KINDS = {
    "huggingface": "Hugging Face model",
    "nemo": "NeMo checkpoint",
    "nemo adapters": "NeMo checkpoint of LoRA adapters; what they are added to lies elsewhere",
}


def format_report(report: Mapping[str, Any]) -> str:
    sections = [_identity(report), _sizes(report), _positions(report["positions"])]
    if report["tokenizer"]:
        sections.append(_tokenizer(report["tokenizer"]))
    if report["nemo"]:
        sections.append(_nemo(report["nemo"]))
    lines = [line for section in sections for line in [*_aligned(section), ""]]
    advice = [printable(f"- {line}") for line in report["advice"]] or ["nothing stands in the way"]
    return "\n".join([*lines, *advice])


def _aligned(section: Mapping[str, str | None]) -> Iterator[str]:
    for name, value in section.items():
        if value is not None:
            yield printable(f"{name:{LABEL}}{value}")


def _identity(report: Mapping[str, Any]) -> dict[str, str | None]:
    weights = report["weights"]
    dtypes = weights and ", ".join(f"{size(held)} {dtype}" for dtype, held in weights["bytes_by_dtype"].items())
    family = f"family {report['family']}" if report["family"] else "not supported"
    return {
        "path": report["path"],
        "kind": KINDS[report["kind"]],
        "architecture": report["architecture"] and f"{report['architecture']} ({family})",
        "parameters": report["parameters"] and _number(report["parameters"]),
        "weights": weights and f"{dtypes} in {count(weights['tensors'], 'tensor')}, {count(weights['files'], 'file')}",
    }


def _sizes(report: Mapping[str, Any]) -> dict[str, str | None]:
    sizes, tokenizer, nemo = (report[name] or {} for name in ("sizes", "tokenizer", "nemo"))
    rows = [f"{_number(sizes['vocabulary'])} rows"]
    if nemo.get("embedding_rows") not in (None, sizes["vocabulary"]):
        rows.append(f"padded to {_number(nemo['embedding_rows'])} in the checkpoint")
    if tokenizer.get("tokens") is not None:
        rows.append(f"{_number(tokenizer['tokens'])} tokens")
    tied = {True: "tied", False: "untied", None: "tied or not: the configuration does not say"}[sizes["tied"]]
    return {
        "layers": _number(sizes["layers"]),
        "hidden size": _number(sizes["hidden"]),
        "feed-forward size": _number(sizes["feed_forward"]),
        "heads": f"{_number(sizes['heads'])} of size {_number(sizes['head_size'])}, "
        f"{_number(sizes['kv_heads'])} for keys and values",
        "vocabulary": ", ".join(rows),
        "embeddings": tied,
    }


def _positions(positions: Mapping[str, Any]) -> dict[str, str | None]:
    scaling, window = positions["rope_scaling"], positions["sliding_window"]
    return {
        "positions": _number(positions["max_position_embeddings"]),
        "rotary base": _number(positions["rope_theta"]),
        "rope scaling": json.dumps(scaling) if scaling else "none",
        "sliding window": _number(window) if window else "none",
    }


def _tokenizer(tokenizer: Mapping[str, Any]) -> dict[str, str | None]:
    special = {
        name: ", ".join(f"{json.dumps(value)} in {place}" for place, value in places.items() if value is not None)
        for name, places in tokenizer["special_ids"].items()
    }
    files = ", ".join(tokenizer["files"]) or "no files"
    return {
        "tokenizer": f"{tokenizer['class'] or 'of no named class'} ({files})",
        "chat template": tokenizer["chat_template"] or "none",
        **{f"{name} id": places or "none" for name, places in special.items()},
    }


def _nemo(nemo: Mapping[str, Any]) -> dict[str, str | None]:
    adapters, trained, optimizer = nemo["adapters"], nemo["trained"], nemo["optimizer"]
    targets = ", ".join((adapters and adapters["target_modules"]) or ["all linear layers"])
    return {
        "NeMo classes": f"{nemo['model']}, {nemo['config']}",
        "adapters": adapters and f"rank {adapters['dim']}, alpha {adapters['alpha']}: {targets}",
        "trained from": adapters and adapters["base"],
        "objective": nemo["objective"] and f"{_pairs(nemo['objective'])}, pair layout {nemo['pair_layout']}",
        "trained": trained and _pairs(trained),
        "parallel sizes": _pairs(nemo["parallel"]) if trained else None,
        "optimizer state": f"{size(optimizer['bytes'])} in {count(optimizer['tensors'], 'tensor')}"
        if optimizer
        else "none",
    }


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None)


def _number(value: float | None) -> str:
    """Every digit, thousands separated; whole numbers without decimals."""
    return "?" if value is None else f"{value:,.15g}"
