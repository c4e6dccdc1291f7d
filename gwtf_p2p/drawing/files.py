"""Writes a picture by the ending of its file: .svg, .png (made of the same SVG), or .html for what moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gwtf_p2p.drawing import svg
from gwtf_p2p.protocol.errors import InputError

PNG_SCALE = 2


def check_picture_path(path: Path, flag: str, suffixes: Sequence[str]) -> None:
    """Before a long run rather than after it. Raises InputError, also where PNG cannot be made on this machine."""
    if path.suffix not in suffixes:
        raise InputError(flag, "", f"expected a file ending in {' or '.join(suffixes)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise InputError(flag, "", f"expected a file in a folder that exists, got {str(path)!r}")
    if path.suffix == ".png":
        try:
            import resvg_py  # noqa: F401
        except ImportError as error:
            raise InputError(flag, path.name, "PNG needs: pip install 'gwtf-p2p[draw]' (SVG does not)") from error
        if not letters_are_drawn():
            told = "PNG needs a font, and none of DejaVu (Debian: fonts-dejavu-core), Noto, Liberation and Arial is installed"
            raise InputError(flag, path.name, f"{told}; SVG does not")


def write_picture(path: Path, text: str, flag: str) -> None:
    """`text` is SVG or HTML. Raises InputError when the file cannot be written."""
    try:
        if path.suffix == ".png":
            path.write_bytes(_png(text))
        else:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(flag, path.name, f"expected a file that can be written ({error.strerror})") from error


def _png(text: str) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=text, zoom=PNG_SCALE))


def letters_are_drawn() -> bool:
    """Whether PNGs have their words here. The renderer leaves out, without a word, every text that it has no font for: a
    picture with and one without are equal."""
    blank, lettered = svg.Drawing(20, 20), svg.Drawing(20, 20)
    lettered.text((2, 15), "g")
    return _png(blank.done()) != _png(lettered.done())
