"""A corpus, a model and the command line, for the stage tests."""

import pytest
from support.small_corpus import make_document, save_stopping_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return save_stopping_model(tmp_path_factory.mktemp("model"), "mistral")


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    (directory / "more").mkdir(parents=True)
    for index in range(7):
        folder = directory / "more" if index % 2 else directory
        (folder / f"document-{index}.txt").write_text(make_document(index, 5 + index), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def parser():
    import argparse

    from nemo_longpo.data_tools.cli import register

    parser = argparse.ArgumentParser(prog="longpo")
    register(parser.add_subparsers(required=True))
    return parser


@pytest.fixture
def longpo(capsys, parser):
    """Run `longpo data …` in this process; return (exit status, standard output, standard error)."""
    from nemo_longpo.errors import InputError

    def run(*words: object) -> tuple[int, str, str]:
        arguments = parser.parse_args(["data", *(str(word) for word in words)])
        capsys.readouterr()
        try:
            status = arguments.run(arguments) or 0
        except InputError as error:
            return 2, capsys.readouterr().out, str(error)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
