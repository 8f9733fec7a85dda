"""What ``list``, ``holders`` and their like return: lists of dicts that print as a table."""

from __future__ import annotations

import html
import time
from typing import Any, Callable

_Row = dict[str, Any]


def size_text(nbytes: int) -> str:
    """As ``shmctl`` prints sizes."""
    size, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{nbytes} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _shape(row: _Row) -> str:
    return "×".join(map(str, row["shape"])) or "()"


def _kept(row: _Row) -> str:
    if not row["kept"]:
        return ""
    return "yes" if row["ttl_s"] is None else f"{row['ttl_s']:.0f} s"


def _time(row: _Row) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["since"]))


def _text(key: str) -> Callable[[_Row], str]:
    return lambda row: "" if row.get(key) is None else str(row[key])


class Rows(list[_Row]):
    """A list of dicts. Printed, it is a table of some of their keys."""

    _columns: dict[str, Callable[[_Row], str]] = {}
    _right: tuple[str, ...] = ()
    _none = ""

    def _cells(self) -> list[list[str]]:
        # What a program may have chosen is not to move the cursor of a terminal.
        return [
            ["".join(c if c.isprintable() else "?" for c in cell(row))
             for cell in self._columns.values()]
            for row in self
        ]

    def __repr__(self) -> str:
        if not self:
            return f"({self._none})"
        try:
            lines = [list(self._columns), *self._cells()]
        except (KeyError, TypeError, AttributeError):  # somebody has put other things in
            return list.__repr__(self)
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if title in self._right else cell.ljust(width)
                for title, cell, width in zip(self._columns, line, widths)
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        def line(cells: list[str], kind: str) -> str:
            return "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)

        if not self:
            return f"<p>({html.escape(self._none)})</p>"
        try:
            body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in self._cells())
        except (KeyError, TypeError, AttributeError):
            return f"<pre>{html.escape(list.__repr__(self))}</pre>"
        head = line(list(self._columns), "th")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Arrays(Rows):
    """Dicts as ``info`` returns them."""

    _columns = {
        "name": lambda row: row["name"] or f"%{row['id']}",
        "dtype": _text("dtype"),
        "shape": _shape,
        "size": lambda row: size_text(row["nbytes"]),
        "state": _text("state"),
        "version": _text("version"),
        "perms": _text("perms"),
        "leases": _text("leases"),
        "kept": _kept,
    }
    _right = ("size", "version", "leases")
    _none = "no arrays"


class Holders(Rows):
    """Dicts as ``holders`` returns them."""

    _columns = {
        "pid": _text("pid"),
        "command": _text("command"),
        "uid": _text("uid"),
        "access": _text("access"),
        "since": _time,
    }
    _right = ("pid", "uid")
    _none = "no holders"
