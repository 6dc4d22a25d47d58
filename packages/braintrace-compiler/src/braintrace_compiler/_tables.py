"""Tables that read well in a terminal and in a notebook."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Rows of cells under a header; every cell is shown as it prints.

    Attributes
    ----------
    header : sequence of str
    rows : sequence of sequences
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __str__(self) -> str:
        lines = [[str(cell) for cell in row] for row in (self.header, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        def line(cells: Sequence[Any], tag: str) -> str:
            return "".join(
                f"<{tag} style='text-align:left; padding-right:1em'>{html.escape(str(cell))}</{tag}>" for cell in cells
            )

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        return f"<table><thead><tr>{line(self.header, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def readable_bytes(count: int) -> str:
    """A number of bytes, as ``1.5 MiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(max(count.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"
