from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_longpo.data_tools.quality.copying import longest_copy, searchable

TEXT = "The old clock stood by the harbour, and nobody knew who had repaired it in the winter of 1984."


def test_stretches_of_the_source():
    source = searchable(TEXT)
    assert longest_copy(TEXT.upper(), source, 5) == 19
    assert longest_copy(f"It says: “{TEXT[4:34]}”, no more.", source, 5) == 6
    assert longest_copy(f"It says: “{TEXT[4:34]}”, no more.", source, 7) == 0
    assert longest_copy("The clock of the harbour was old.", source, 3) == 0
    assert longest_copy("old clock stood by the harb", source, 6) == 0  # no halves of words
    assert longest_copy("", source, 1) == 0


LETTERS = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@settings(deadline=None)
@given(LETTERS, LETTERS, st.integers(1, 4))
def test_it_is_the_longest_one(answer, source, shortest):
    words = answer.split()
    stretches = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    found = [len(stretch) for stretch in stretches if f" {' '.join(stretch)} " in f" {source} "]
    assert longest_copy(answer, searchable(source), shortest) == max([n for n in found if n >= shortest], default=0)
