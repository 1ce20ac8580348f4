"""The table of benchmarks, and the suites that are made of them. A new benchmark is a row here and its function."""

from collections.abc import Sequence
from pathlib import Path

from nemo_longpo.errors import InputError

from .benchmarks import Benchmark

ESSAYS = ("PaulGrahamEssays.json",)
"""What RULER hides needles in, unless it is said in other words that bring sentences of their own."""
RULER_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288)
_RULER = "nemo_longpo.evaluation.ruler.tasks:build"
_INFINITEBENCH = "nemo_longpo.evaluation.infinitebench:build"
_SHORT = "nemo_longpo.evaluation.short:build"
# Task of RULER -> (tokens of an answer, files): the numbers of NVIDIA's synthetic.yaml.
_RULER_TASKS: dict[str, tuple[int, tuple[str, ...]]] = {
    "niah_single_1": (128, ()),
    "niah_single_2": (128, ESSAYS),
    "niah_single_3": (128, ESSAYS),
    "niah_multikey_1": (128, ESSAYS),
    "niah_multikey_2": (128, ()),
    "niah_multikey_3": (128, ()),
    "niah_multivalue": (128, ESSAYS),
    "niah_multiquery": (128, ESSAYS),
    "vt": (30, ()),
    "cwe": (120, ()),
    "fwe": (50, ()),
    "qa_squad": (32, ("squad.json",)),
    "qa_hotpot": (32, ("hotpotqa.json",)),
}
_LONGBENCH_CHAT = tuple(
    f"LongBench_Chat/{name}" for name in ("test_cases.json", "few_shots.json", "prompt_fs.txt", "eval.py")
)
_ROWS = (
    *(
        Benchmark(
            name=f"ruler_{task}",
            title=f"RULER {task}",
            ability="long",
            build=_RULER,
            metric="string_match",
            files=files,
            lengths=RULER_LENGTHS,
            samples=500,
            max_new_tokens=tokens,
            chat_template=True,
            column="RULER",
        )
        for task, (tokens, files) in _RULER_TASKS.items()
    ),
    Benchmark(
        name="infinitebench_sum",
        title="∞Bench En.Sum",
        ability="long",
        build=_INFINITEBENCH,
        metric="rouge_lsum",
        files=("longbook_sum_eng.jsonl",),
        max_new_tokens=1200,
        chat_template=True,
        column="En.Sum",
    ),
    Benchmark(
        name="infinitebench_qa",
        title="∞Bench En.QA",
        ability="long",
        build=_INFINITEBENCH,
        metric="f1",
        files=("longbook_qa_eng.jsonl",),
        max_new_tokens=40,
        chat_template=True,
        column="En.QA",
    ),
    Benchmark(
        name="infinitebench_mc",
        title="∞Bench En.MC",
        ability="long",
        build=_INFINITEBENCH,
        metric="accuracy",
        files=("longbook_choice_eng.jsonl",),
        max_new_tokens=40,
        chat_template=True,
        column="En.MC",
    ),
    Benchmark(
        name="longbench_v2",
        title="LongBench v2",
        ability="long",
        build="nemo_longpo.evaluation.longbench:build",
        metric="accuracy",
        files=("longbench_v2.json",),
        max_new_tokens=128,
        chat_template=True,
    ),
    Benchmark(
        name="mmlu",
        title="MMLU",
        ability="short",
        build=_SHORT,
        metric="acc",
        files=("mmlu",),
        num_fewshot=5,
        column="MMLU",
    ),
    Benchmark(
        name="arc_challenge",
        title="ARC-C",
        ability="short",
        build=_SHORT,
        metric="acc_norm",
        files=("arc_challenge",),
        num_fewshot=25,
        column="ARC-C",
    ),
    Benchmark(
        name="hellaswag",
        title="HellaSwag",
        ability="short",
        build=_SHORT,
        metric="acc_norm",
        files=("hellaswag",),
        num_fewshot=10,
        column="Hellaswag",
    ),
    Benchmark(
        name="winogrande",
        title="Winogrande",
        ability="short",
        build=_SHORT,
        metric="acc",
        files=("winogrande",),
        num_fewshot=5,
        column="Winogrande",
    ),
    Benchmark(
        name="mt_bench",
        title="MT-Bench",
        ability="chat",
        build="nemo_longpo.evaluation.judge.mt_bench:build",
        metric="rating",
        files=("mt_bench/question.jsonl", "mt_bench/reference_answer", "judge_prompts.jsonl"),
        max_new_tokens=1024,
        chat_template=True,
        column="MT-Bench",
        scale=10.0,
    ),
    # The paper has the English questions only.
    *(
        Benchmark(
            name=name,
            title=title,
            ability="chat",
            build="nemo_longpo.evaluation.judge.longbench_chat:build",
            metric="rating",
            files=_LONGBENCH_CHAT,
            max_new_tokens=1024,
            chat_template=True,
            column=column,
            scale=10.0,
        )
        for name, title, column in (
            ("longbench_chat_en", "LongBench-Chat (EN)", "LongBench-Chat"),
            ("longbench_chat", "LongBench-Chat, English and Chinese", ""),
        )
    ),
)
BENCHMARKS = {row.name: row for row in _ROWS}
SUITES: dict[str, tuple[str, ...]] = {
    "long": tuple(row.name for row in _ROWS if row.ability == "long"),
    "short": tuple(row.name for row in _ROWS if row.ability == "short"),
    "ruler": tuple(f"ruler_{task}" for task in _RULER_TASKS),
    "infinitebench": ("infinitebench_sum", "infinitebench_qa", "infinitebench_mc"),
    # What a judge rates.
    "chat": ("mt_bench", "longbench_chat_en"),
    # What needs no file: for a first look at any model.
    "smoke": ("ruler_niah_single_1", "ruler_niah_multikey_2", "ruler_vt", "ruler_fwe"),
}
SUITES["paper"] = (*SUITES["infinitebench"], *SUITES["ruler"], *SUITES["short"])


def choose(names: Sequence[str]) -> list[Benchmark]:
    """Return the rows that suites, benchmarks and files of questions (`*.jsonl`) name, each once, in that order.

    Raises InputError if a name is none of them, or if a file has the name of something else.
    """
    chosen: dict[str, Benchmark] = {}
    for name in names:
        if name.endswith(".jsonl"):
            row = own_questions(Path(name))
            if row.name in chosen or row.name in SUITES or row.name in BENCHMARKS:
                raise InputError(
                    f"--suite {name}: something else is called {row.name} here; give the file another name"
                )
            chosen[row.name] = row
            continue
        if name not in SUITES and name not in BENCHMARKS:
            raise InputError(
                f"--suite {name} is not known; choose among the suites {', '.join(SUITES)}, the benchmarks "
                f"{', '.join(BENCHMARKS)}, or a file of questions of your own (NAME.jsonl)"
            )
        for own in SUITES.get(name, (name,)):
            chosen[own] = BENCHMARKS[own]
    if not chosen:
        raise InputError("--suite names no benchmark")
    return list(chosen.values())


def own_questions(path: Path) -> Benchmark:
    """A row for a file of questions: JSON lines with `prompt`, `answers`, and `length` where there are several."""
    return Benchmark(
        name=path.stem,
        title=path.stem,
        ability="long",
        build="nemo_longpo.evaluation.questions:build_own",
        metric="string_match",
        files=(str(path),),
        chat_template=True,
        max_new_tokens=32,
    )
