"""A figure as SVG within a page, in the page's own colours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import StringIO
from itertools import count
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from cl_diffusion.report.figures.canvas import FAINT, INK, SERIES, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    **{ink: f"var(--series-{number})" for number, ink in enumerate(SERIES, 1)},
}


class Drawings:
    """Figures of one page: names within one never meet those of another."""

    def __init__(self) -> None:
        self._number: Iterator[int] = count(1)

    def svg(self, figure: Figure, about: str) -> Markup:
        """The ``<svg>`` element, with a description for who does not see it; text stays text."""
        number = next(self._number)
        drawn = _drawn(figure)
        body = drawn[drawn.index("<svg") :]
        body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
        body = re.sub(r'\bid="', f'id="f{number}-', body)
        body = re.sub(r'(href="|url\()#', rf"\1#f{number}-", body)
        for ink, variable in _VARIABLES.items():
            body = body.replace(ink, variable)
        head, _, rest = body.partition(">")
        (box,) = re.findall(r'viewBox="[^"]*"', head)
        width = float(box.split()[2])
        opening = f'<svg role="img" aria-label="{escape(about)}" {box} style="--width: {width:g}pt" '
        namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        return Markup(opening + namespaces + rest)


@styled
def _drawn(figure: Figure) -> str:
    """As matplotlib writes it; what users have named is escaped by it."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()
