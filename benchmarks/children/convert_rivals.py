"""Convert a model with NeMo or with transformers, in a process of its own.

    python -m benchmarks.children.convert_rivals TOOL FAMILY SOURCE TARGET

NeMo's importers and exporters run unchanged, on the names of Transformer Engine's layers, which are the only ones they
know: on a machine without a GPU this takes the CPU backend and the tests' stand-in for Transformer Engine.
"""

import sys
import tempfile
from pathlib import Path


def main(tool: str, family: str, source: str, target: Path) -> None:
    if tool == "transformers":
        load_and_save(source, target)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            run_nemo(tool, family, source, target, Path(scratch))


def load_and_save(source: str, target: Path) -> None:
    """What a conversion by `transformers` takes at least."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def run_nemo(tool: str, family: str, source: str, target: Path, scratch: Path) -> None:
    """`nemo-import` or `nemo-export`, as `llm.import_ckpt` and `llm.export_ckpt` call it."""
    from support import te_stand_in

    te_stand_in.install(scratch / "transformer_engine")
    import torch
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from nemo.collections.llm.gpt.model import mistral, qwen2
    from nemo.lightning.io import ModelConnector

    from nemo_longpo.backends import cpu

    if cpu.activate():
        # The importer saves from a process that it forks. The CPU backend, which knows synchronous saves only, has put
        # a queue here that such a process cannot reach; without one Megatron makes its own.
        filesystem_async._results_queue = None
    converters: dict[tuple[str, str], type[ModelConnector]] = {
        ("nemo-import", "mistral"): mistral.HFMistralImporter,
        ("nemo-import", "qwen2"): qwen2.HFQwen2Importer,
        ("nemo-export", "mistral"): mistral.HFMistralExporter,
        ("nemo-export", "qwen2"): qwen2.HFQwen2Exporter,
    }

    class Converter(converters[tool, family]):  # type: ignore[misc]
        """Leaves no tokenizer behind outside of `target`."""

        def save_hf_tokenizer_assets(self, tokenizer_name_or_path, save_path=str(scratch / "nemo_tokenizer")):
            return super().save_hf_tokenizer_assets(tokenizer_name_or_path, save_path)

    Converter(source)(output_path=target)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
