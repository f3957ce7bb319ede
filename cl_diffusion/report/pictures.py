"""A PNG within a page."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

_PIXELS = 2_000_000
"""So many at most; a larger picture is made smaller, for a page of many has to open."""


def embedded(path: Path) -> tuple[str, bool]:
    """The picture as a ``data:`` address, and whether it was made smaller.

    Raises:
        ValueError: the file is no PNG.
    """
    from PIL import Image, UnidentifiedImageError

    content, smaller = path.read_bytes(), False
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            if picture.width * picture.height > _PIXELS:
                share = (_PIXELS / (picture.width * picture.height)) ** 0.5
                picture.thumbnail((int(picture.width * share), int(picture.height * share)))
                reduced = BytesIO()
                picture.save(reduced, format="PNG")
                content, smaller = reduced.getvalue(), True
            else:
                picture.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no PNG that can be read ({error}); remove it, or leave this run out") from error
    return f"data:image/png;base64,{base64.b64encode(content).decode()}", smaller


def rows_of(path: Path) -> list[str]:
    """The class of each row of a grid of samples; empty where the picture does not say."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as picture:
        said = picture.info.get("rows", "")
    words = said.split() if isinstance(said, str) else []
    return words if all(word.isdigit() for word in words) else []
