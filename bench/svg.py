"""SVG without a library: elements, documents, and bar charts with a group of bars for each scenario."""

from collections.abc import Iterable, Sequence
from html import escape

COLOURS = {"l7proxy": "#1f77b4", "envoy": "#ac6bc9", "nginx": "#4c9f50", "haproxy": "#d98324"}
OTHER = "#8a8a8a"
WIDTH, LEFT, BAR, GAP, HEAD = 900, 140, 16, 34, 44


def element(name: str, inside: str = "", **attributes: str | float) -> str:
    """Returns an element around `inside`, which is SVG; numbers are rounded, `text_anchor` is written text-anchor."""
    written = (
        f' {key.strip("_").replace("_", "-")}="{escape(value) if isinstance(value, str) else number(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{''.join(written)}{f'>{inside}</{name}>' if inside else '/>'}"


def text(x: float, y: float, words: str, **attributes: str | float) -> str:
    """Returns words whose base line begins at x, y."""
    return element("text", escape(words), x=x, y=y, **attributes)


def number(value: float) -> str:
    """Returns a coordinate as short as a tenth of a pixel allows."""
    return f"{value:.1f}".removesuffix(".0")


def document(width: float, height: float, parts: Iterable[str]) -> str:
    """Returns the file that shows `parts`."""
    return (
        element(
            "svg",
            "\n".join(["", *parts, ""]),
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {number(width)} {number(height)}",
            font_family="Helvetica, Arial, sans-serif",
            font_size=12,
        )
        + "\n"
    )


def chart(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Returns the picture of `groups`: (name of the group, (label, ratio) of each bar); 1.0 is marked by a line."""
    longest = max((value for _, bars in groups for _, value in bars), default=1.0)
    scale = (WIDTH - LEFT - 90) / max(longest, 1.2)
    parts: list[str] = []
    y = HEAD
    for name, bars in groups:
        parts.append(_text(8, y + 12, name, font_weight="bold"))
        y += GAP - BAR + 4
        for label, value in bars:
            width = max(1.0, value * scale)
            parts.append(_text(LEFT - 8, y + 12, label, text_anchor="end"))
            colour = COLOURS.get(label, OTHER)
            parts.append(element("rect", x=LEFT, y=y, width=width, height=BAR - 3, fill=colour))
            parts.append(_text(LEFT + width + 6, y + 12, f"{value:.2f}x"))
            y += BAR
        y += 12
    one = LEFT + scale
    return document(
        WIDTH,
        y + 10,
        [
            element("rect", width="100%", height="100%", fill="#ffffff"),
            _text(8, 22, title, font_weight="bold"),
            element("line", x1=one, y1=HEAD - 8, x2=one, y2=y, stroke="#444", stroke_dasharray="3 3"),
            *parts,
        ],
    )


def _text(x: float, y: float, words: str, **attributes: str | float) -> str:
    return text(x, y, words, fill="#222", **attributes)
