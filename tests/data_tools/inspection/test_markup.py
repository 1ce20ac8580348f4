"""Text can do nothing to the page that it stands on."""

from nemo_longpo.data_tools.inspection.markup import element, escape, join


def test_text_is_escaped_once_and_markup_is_kept():
    assert join("<b>", element("i", "a & b", class_="x", title='say "no"')) == (
        '&lt;b&gt;<i class="x" title="say &quot;no&quot;">a &amp; b</i>'
    )
    assert element("p", element("b", "<"), "'", aria_label=None, tabindex=0) == '<p tabindex="0"><b>&lt;</b>&#x27;</p>'


def test_hidden_characters_are_spelled_out():
    assert escape("a\u202eb\u200bc\x00\x1b\ud800") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0000⟩⟨U+001B⟩⟨U+D800⟩"
    assert escape("line\n\ttab می\u200cخواهم 👩\u200d🚀") == "line\n\ttab می\u200cخواهم 👩\u200d🚀"
