"""One HTML file that shows what shards hold: numbers, plots, and documents to read. It asks the network for nothing.

Its size is bounded: at most `samples` documents of 8 turns, of each answer 512 tokens at about 75 bytes, of each chunk
2048 and of each context 320 at about 8 bytes: less than 1 MB a document, whatever the size of the shards.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from nemo_longpo.shards.reader import ShardReader

from . import plots
from .answers import legend
from .markup import Html, element, escape, join
from .measures import Measures
from .numbers import number, share, signed, size, words
from .samples import name_of, pick, sample
from .shard_summary import SPREAD
from .summary_text import flatten
from .token_text import TokenText

_LONGEST_SETTING = 2000  # characters


def make_page(reader: ShardReader, summary: dict[str, Any], measures: Measures, text: TokenText, samples: int) -> str:
    """The page as text. `samples` documents are shown, from the lowest to the highest margin."""
    script = (Path(__file__).with_name("page.js")).read_text(encoding="utf-8")
    style = (Path(__file__).with_name("page.css")).read_text(encoding="utf-8")
    title = f"{Path(summary['directory']).absolute().name}: preference shards"
    parts = {
        "Distributions": _plots(summary, measures),
        "Numbers": _table(summary),
        "Samples": _samples(reader, measures, text, samples),
        "Provenance": _provenance(summary),
    }
    headed = [join(element("h2", name, id=name.lower()), part) for name, part in parts.items()]
    body = join(_header(summary, list(parts)), _cards(summary), element("main", *headed))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n{body}\n<output id="readout"></output>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _policy(script: str) -> str:
    """The browser runs this script and no other, and loads nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _header(summary: dict[str, Any], parts: list[str]) -> Html:
    reference = summary["reference"]
    rope = reference["rope"].get("rope_theta")
    facts = [
        f"reference {reference['weights_sha256'][:12]} in {reference['dtype']}",
        *([f"RoPE base {number(rope)}"] if isinstance(rope, int | float) else []),
        "log-probs over the short context" if summary["ref_context"] == "short" else "log-probs over the long context",
        "verified" if summary["verified"] else "not verified",
    ]
    name = Path(summary["directory"]).absolute().name
    return element(
        "header",
        element("h1", f"Preference shards: {name}"),
        element("p", " · ".join(facts), class_="facts"),
        element("nav", *(element("a", part, href=f"#{part.lower()}") for part in parts)),
    )


def _cards(summary: dict[str, Any]) -> Html:
    counts, spreads = summary["counts"], summary["distributions"]
    cards = {
        "documents": number(counts["documents"]),
        "turns": number(counts["turns"]),
        "tokens, median sequence": number(spreads["tokens_per_sequence"]["median"]),
        "tokens, longest sequence": number(spreads["tokens_per_sequence"]["max"]),
        "reference prefers chosen, documents": share(summary["reference_prefers_chosen"]["documents"]),
        "reference prefers chosen, turns": share(summary["reference_prefers_chosen"]["turns"]),
        "median margin per document": signed(spreads["margin_per_document"]["median"]),
        "median similarity": number(spreads["similarity_per_turn"]["median"]),
    }
    return element("dl", *(element("div", *_term(*card)) for card in cards.items()), class_="cards")


def _term(name: str, value: str) -> tuple[Html, Html]:
    return element("dt", name), element("dd", value)


def _plots(summary: dict[str, Any], measures: Measures) -> Html:
    found, spreads = summary["histograms"], summary["distributions"]

    def one(title: str, axis: str, name: str, kind: str = "all") -> Html:
        return plots.histogram(title, axis, {kind: found[name]}, median=spreads[name]["median"])

    def both(title: str, axis: str, name: str) -> Html:
        return plots.histogram(title, axis, {side: found[f"{side}_{name}"] for side in ("chosen", "rejected")})

    return element(
        "div",
        one("Margins of documents", "log p(chosen) − log p(rejected)", "margin_per_document", "signed"),
        plots.scatter("Margin and length", "tokens", measures.sequence_tokens, measures.document_margins),
        one("Similarity of the answers to a turn", "0 nothing shared, 1 equal", "similarity_per_turn"),
        both("Length of answers", "tokens", "tokens_per_turn"),
        both("Mean log-prob of answers", "log p per token", "logp_per_token"),
        one("Length of sequences", "tokens", "tokens_per_sequence"),
        class_="plots",
    )


def _table(summary: dict[str, Any]) -> Html:
    head = element("tr", element("th"), *(element("th", column, scope="col") for column in SPREAD))
    rows = [
        element(
            "tr",
            element("th", words(name), scope="row"),
            *(element("td", signed(spread[column]), data_column=column) for column in SPREAD),
        )
        for name, spread in summary["distributions"].items()
    ]
    table = element("table", element("thead", head), element("tbody", *rows))
    return element("div", table, class_="scroll", tabindex=0, role="group", aria_label="numbers")


def _provenance(summary: dict[str, Any]) -> Html:
    reference = summary["reference"]
    values = {
        "directory": summary["directory"],
        "files": f"{number(summary['files'])}, {size(summary['bytes'])}, schema version {summary['schema_version']}",
        "reference weights": reference["weights_sha256"],
        "reference runs in": reference["dtype"],
        "reference RoPE": ", ".join(f"{key} {value}" for key, value in flatten(reference["rope"])) or "not recorded",
        "reference context": summary["ref_context"],
        "tokenizer": f"{summary['tokenizer_fingerprint']}, vocabulary of {number(summary['vocab_size'])}",
        "chat template": summary["chat_template_hash"],
    }
    stages = [
        element("details", element("summary", f"Settings of {stage}"), _settings(dict(flatten(settings))))
        for stage, settings in summary["generation"].items()
    ]
    return join(_settings(values), *stages)


def _settings(values: dict[str, str]) -> Html:
    terms: list[Html] = []
    for name, value in values.items():
        long = len(value) > _LONGEST_SETTING
        terms += _term(name, value[:_LONGEST_SETTING] + " …" * long)
    return element("dl", *terms, class_="settings")


_SWITCHES = Html(
    '<label><input type="checkbox" id="shades" checked> shades</label>'
    '<label><input type="checkbox" id="parts" checked> underline what differs</label>'
)


def _samples(reader: ShardReader, measures: Measures, text: TokenText, count: int) -> Html:
    margins = measures.document_margins
    picked = pick(margins, count)
    entries, sections = [], []
    for place, (standing, index) in enumerate(picked, start=1):
        record, margin, anchor = reader[index], float(margins[index]), f"sample-{place}"
        link = element("a", name_of(record), href=f"#{anchor}")
        entries.append(element("li", link, f": {standing}, {signed(margin)}"))
        sections.append(sample(anchor, standing, record, margin, text))
    hint = (
        f"{len(picked)} of {number(len(margins))} documents. Hover, tap, or walk with the arrow keys over an answer to "
        "see its tokens; j and k go to the next and the previous sample."
    )
    shades = element("span", element("b", "probability of a token"), legend(), class_="legend")
    return join(
        element("p", hint, class_="facts"),
        element("ol", *entries, class_="contents"),
        element("div", shades, _SWITCHES, class_="tools"),
        *sections,
    )
