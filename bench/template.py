"""Configuration templates: `{{name}}` is replaced, and `{{#flag}}` ... `{{/flag}}` lines are kept when the flag is set.

`{{^flag}}` opens a block that is kept when the flag is not set. Block marks stand on lines of their own, after the
comment sign of the format, so that each template stays a readable configuration file.
"""

import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "templates"
_MARK = re.compile(r"\s*#\s*\{\{([#^/])(\w+)\}\}\s*")
_NAME = re.compile(r"\{\{(\w+)\}\}")


def render(name: str, values: Mapping[str, str | int | bool]) -> str:
    """Returns the template file `name` filled in; raises KeyError for a name that `values` lacks."""
    kept: list[str] = []
    open_blocks: list[bool] = []
    for line in (FOLDER / name).read_text().splitlines():
        if mark := _MARK.fullmatch(line):
            sign, flag = mark.groups()
            if sign == "/":
                open_blocks.pop()
            else:
                open_blocks.append(bool(values[flag]) is (sign == "#"))
        elif all(open_blocks):
            kept.append(_NAME.sub(lambda found: str(values[found[1]]), line))
    return "\n".join(kept) + "\n"
