"""Bar charts as SVG, without a library: one group of bars for each scenario, each bar a ratio to the reference."""

from collections.abc import Sequence
from html import escape

COLOURS = {"l7proxy": "#1f77b4", "envoy": "#ac6bc9", "nginx": "#4c9f50", "haproxy": "#d98324"}
OTHER = "#8a8a8a"
WIDTH, LEFT, BAR, GAP, HEAD = 900, 140, 16, 34, 44


def chart(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Returns the picture of `groups`: (name of the group, (label, ratio) of each bar); 1.0 is marked by a line."""
    longest = max((value for _, bars in groups for _, value in bars), default=1.0)
    scale = (WIDTH - LEFT - 90) / max(longest, 1.2)
    parts: list[str] = []
    y = HEAD
    for name, bars in groups:
        parts.append(_text(8, y + 12, name, "bold"))
        y += GAP - BAR + 4
        for label, value in bars:
            width = max(1.0, value * scale)
            colour = COLOURS.get(label, OTHER)
            parts.append(_text(LEFT - 8, y + 12, label, anchor="end"))
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colour}"/>')
            parts.append(_text(LEFT + width + 6, y + 12, f"{value:.2f}x"))
            y += BAR
        y += 12
    one = LEFT + scale
    line = f'<line x1="{one:.1f}" y1="{HEAD - 8}" x2="{one:.1f}" y2="{y}" stroke="#444" stroke-dasharray="3 3"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            _text(8, 22, title, "bold"),
            line,
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(x: float, y: float, words: str, weight: str = "normal", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}" fill="#222">{escape(words)}</text>'
