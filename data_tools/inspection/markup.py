"""HTML that cannot be forgotten to escape: everything that is not markup already is text.

Documents are other people's. Characters that are invisible, or that turn the text around them, are spelled out.
"""

import html
import unicodedata

# What scripts need, or does no harm: joiners, direction marks, line breaks, tabs.
_NEEDED = frozenset("\u200c\u200d\u200e\u200f\n\t")
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


class Html(str):
    """Finished markup."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str | int | float | bool | None) -> Html:
    """`<name attributes>children</name>`, without the attributes that are None or False.

    A trailing underscore of an attribute's name is dropped (`class_`), other ones become hyphens (`aria_label`).
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def escape(text: str) -> Html:
    """Text for an element or an attribute; hidden characters as their code points."""
    if not text.isprintable():
        text = "".join(_shown(character) for character in text)
    return Html(html.escape(text))


def _shown(character: str) -> str:
    if character in _NEEDED or unicodedata.category(character) not in _HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"
