"""Data of every benchmark that reads files, in the published columns: a few rows of our own in each."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLACES = ("Oslo", "Cairo", "Lima", "Seoul", "Quito", "Delhi", "Paris", "Tunis")
BOOK = " ".join(f"On day {day} the boat from {PLACES[day % 8]} carried {day + 3} lamps." for day in range(60))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mmlu(subjects: Iterable[str], count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f" Where is lamp {n} of {subject}?\n",
            "subject": subject,
            "choices": [PLACES[(n + i) % 8] for i in range(4)],
            "answer": (n * 3) % 4,
        }
        for subject in subjects
        for n in range(start, start + count)
    ]


def arc(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"lamp_{n}",
            "question": f"Where does boat {n} go?",
            "choices": {
                "text": [PLACES[(n + i * i) % 8] * (1 + i) for i in range(3 + n % 2)],
                "label": list("ABCD")[: 3 + n % 2],
            },
            "answerKey": "ABC"[n % 3],
        }
        for n in range(start, start + count)
    ]


def hellaswag(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "ind": n,
            "activity_label": "Sailing",
            "ctx_a": f"A boat leaves {PLACES[n % 8]} on day {n}.",
            "ctx_b": "the captain",
            "ctx": f"A boat leaves {PLACES[n % 8]} on day {n}. the captain",
            "endings": [f"counts {n + i} lamps [step] and sees {PLACES[i]}." * (1 + i % 2) for i in range(4)],
            "label": str(n % 4),
        }
        for n in range(start, start + count)
    ]


def winogrande(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "sentence": f"The boat {n} left the harbour because the _ was full.",
            "option1": PLACES[n % 8],
            "option2": PLACES[(n + 3) % 8],
            "answer": "12"[n % 2],
        }
        for n in range(start, start + count)
    ]


def write_short(directory: Path, subjects: Iterable[str], *, suffix: str = ".jsonl", count: int = 4) -> Path:
    """All short data sets, with examples that are none of the tested rows. `count` rows are tested of each."""
    subjects = list(subjects)
    for name, tested, examples in (
        ("mmlu", ("test", mmlu(subjects, count)), ("dev", mmlu(subjects, 5, 100))),
        ("arc_challenge", ("test", arc(count)), ("train", arc(30, 100))),
        ("hellaswag", ("validation", hellaswag(count)), ("train", hellaswag(14, 100))),
        ("winogrande", ("validation", winogrande(count)), ("train", winogrande(9, 100))),
    ):
        for split, rows in (tested, examples):
            write_rows(directory / name / f"{split}{suffix}", rows)
    return directory


def write_long(directory: Path, *, count: int = 4) -> Path:
    """The files of the three tasks of InfiniteBench and of LongBench v2, `count` questions each, two on one book."""
    directory.mkdir(parents=True, exist_ok=True)
    books = [BOOK, BOOK.replace("boat", "train")]
    common = [
        {"id": n, "context": books[n // 2 % 2], "input": f"Where from was day {n}?", "options": []}
        for n in range(count)
    ]
    answers = [PLACES[n % 8] for n in range(count)]
    write_rows(
        directory / "longbook_sum_eng.jsonl",
        (
            {
                **row,
                "context": f"Book {row['id']}. {BOOK}",
                "input": "",
                "answer": [f"Boats carry lamps.\nDay {row['id']} is {where}."],
            }
            for row, where in zip(common, answers, strict=True)
        ),
    )
    write_rows(
        directory / "longbook_qa_eng.jsonl",
        ({**row, "answer": [where, f"from the {where}"]} for row, where in zip(common, answers, strict=True)),
    )
    write_rows(
        directory / "longbook_choice_eng.jsonl",
        (
            {**row, "answer": [where], "options": [PLACES[(row["id"] + 7 + i) % 8] for i in range(4)]}
            for row, where in zip(common, answers, strict=True)
        ),
    )
    questions = [
        {
            "_id": f"66f{n:04d}",
            "domain": "Single-Document QA",
            "sub_domain": "Detective",
            "difficulty": ("easy", "hard")[n % 2],
            "length": ("short", "medium", "long")[n % 3],
            "question": f" Where from was day {n}? ",
            **{f"choice_{letter}": PLACES[(n + i) % 8] for i, letter in enumerate("ABCD")},
            "answer": "A",
            "context": f" {books[n % 2]}\n",
        }
        for n in range(count)
    ]
    (directory / "longbench_v2.json").write_text(json.dumps(questions), encoding="utf-8")
    return directory
