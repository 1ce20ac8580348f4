"""What becomes of published chat templates: exact token ids, or one sentence that refuses?

    python -m benchmarks.data.published_templates FOLDER

FOLDER holds chat templates (`*.jinja`) and tokenizers (folders with a `tokenizer_config.json` and a `tokenizer.json`),
brought there by you: none are part of this repository. A template comes without its model's tokenizer, so a generated
one takes its place, to which the special tokens are added that the template spells out. Each is told nothing first,
then what it reads about thinking (`enable_thinking`, `thinking`) with the value false.

A template that the data tools take is held against `apply_chat_template`, for messages with white space, lists, scripts
and quoted code: the prompt of a question; the answer behind it, with its end of turn; and a conversation of two turns,
where each answer must stand behind what prompts for it. "Completed" means that the template writes less in front of
earlier answers than it prompts with, and that the conversation here does not. Writes published_templates.json and
published_templates.md into benchmarks/results.
"""

import copy
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from nemo_longpo.data_tools.chat.format import ChatFormat
from nemo_longpo.errors import InputError

from ..common import generated, results

USERS = (
    "Who crosses the river?",
    "  two spaces in front, a line break behind\n",
    "\n\nThe river.\n\n\nIt rises.\n",
    "naïve 你好 🙂 e\u0301 \u00a0x\u00a0",
    "1. {{ one }}\n2. {% two %}\n\n```\n\tdef f(x): return [x]\n```",
    '[1] {"a": 1} /no_mark',
)
ANSWERS = ("The river.", "12 boats\n- one\n- two", "你好 🙂", '{"a": [1, 2]}')
MARKS = re.compile(
    r"<[|｜][^<>\n'\"{}]{1,40}[|｜]>|<\|[A-Z_]+_TOKEN\|>|</?\|?[a-z]\w*(?:[:_]\w+)*\|?>|\[/?[A-Z][A-Z_]+\]"
)
TOLD: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})


def main() -> None:
    flags = results.parser(__doc__)
    flags.add_argument("folder", type=Path, help="of *.jinja files and folders of tokenizers")
    arguments = flags.parse_args()
    found = {path.name: pushed(path) for path in sorted(arguments.folder.iterdir(), key=lambda path: path.name.lower())}
    found = {name: outcome for name, outcome in found.items() if outcome}
    kinds = [re.split(r"[:,]", outcome["result"])[0] for outcome in found.values()]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    lines = [
        f"{len(found)} templates: {counted}.",
        "",
        "| template | told | end of turn | result |",
        "|---|---|---|---|",
    ]
    for name, outcome in found.items():
        cells = (name, outcome["told"], outcome["end"], outcome["result"])
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in cells)} |")
    results.write_results("published_templates", results.origin() | {"found": found}, lines)


def pushed(path: Path) -> dict[str, str] | None:
    """What became of a file or folder: {"told", "end", "result"}; None if it holds no template."""
    if (path / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    elif path.suffix == ".jinja":
        tokenizer = with_template(path.read_text(encoding="utf-8"))
    else:
        return None
    refusals = []
    for told in TOLD:
        if not all(name in str(tokenizer.chat_template) for name in told):
            continue
        try:
            chat = ChatFormat(copy.deepcopy(tokenizer), template_kwargs=told)
        except InputError as refusal:
            refusals.append(str(refusal).replace(str(tokenizer.name_or_path), "").replace("  ", " "))
            continue
        end = " ".join(tokenizer.convert_ids_to_tokens(chat.end_of_turn_ids))
        dated = "" if chat.printed_day is None else ", prints the date"
        return {"told": str(told or ""), "end": f"`{end}`", "result": compared(tokenizer, chat, told) + dated}
    return {"told": "", "end": "", "result": f"refused: {refusals[0]}"}


def with_template(text: str) -> Any:
    """A generated tokenizer with a template and the special tokens that it spells out; <s> begins a text."""
    tokenizer = generated.tokenizer("qwen2.5")
    marks = sorted({"<s>", "</s>", *MARKS.findall(text)})
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": marks})
    tokenizer.chat_template = text
    return tokenizer


def compared(tokenizer: Any, chat: ChatFormat, told: dict[str, Any]) -> str:
    """Hold the conversations of a chat format against the tokenizer's own."""

    def rendered(*contents: str) -> list[int]:
        roles = ("user", "assistant") * len(contents)
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
        asks = len(contents) % 2 == 1
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks, **told)
        # Spaces at the end of a prompt belong to the answer's first word.
        return list(tokenizer(text.rstrip(" ") if asks else text, add_special_tokens=False)["input_ids"])

    completed = False
    for user in USERS:
        if chat.prompt(user) != rendered(user):
            return f"DIFFERENT: the prompt of {user!r}"
        for answer in ANSWERS:
            ids = chat.response_ids(answer)
            one, whole = [*chat.prompt(user), *chat.finished(ids)], rendered(user, answer)
            if one != whole[: len(one)]:
                return f"DIFFERENT: the answer {answer!r} behind {user!r}"
            pair = chat.long_pair([user, user], [ids, ids], [ids, ids])
            two, (_, second) = [*pair.trunk_ids, *pair.chosen_ids], pair.chosen_spans
            if two[: len(one)] != one or two[len(pair.trunk_ids) + second[0] :] != chat.finished(ids):
                return f"DIFFERENT: an answer of two turns with {user!r} and {answer!r}"
            asked, served = two[: len(pair.trunk_ids) + second[0]], rendered(user, answer, user)
            behind = asked[len(one) :]
            if asked != served and (len(served) >= len(asked) or served[-len(behind) :] != behind):
                return f"DIFFERENT: the second question behind {user!r} and {answer!r}"
            completed |= asked != served
    return "exact, earlier turns completed" if completed else "exact"


if __name__ == "__main__":
    main()
