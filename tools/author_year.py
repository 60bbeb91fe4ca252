"""Sphinx extension: the bibliography labels its entries by author and year, as the text cites them."""

from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as Plain
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


def label(entry: Entry) -> str:
    """Return, for instance, `Mallet, 1986` or `Yao et al., 2018`."""
    names = [" ".join([*one.prelast_names, *one.last_names]) for one in entry.persons["author"]]
    who = f"{names[0]} et al." if len(names) > 2 or names[-1] == "others" else " and ".join(names)
    return f"{who}, {entry.fields['year']}"


class Labels(BaseLabelStyle):  # type: ignore[misc]
    """Author and year."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """Label the entries."""
        return (label(entry) for entry in sorted_entries)


class AuthorYear(Plain):  # type: ignore[misc]
    """The plain style with these labels."""

    default_label_style = Labels


def setup(_: Sphinx) -> dict[str, bool]:
    """Register the style."""
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
