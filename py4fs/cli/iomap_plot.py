"""`py4fs iomap --plot`: a picture of a file, logical against physical place, extents coloured by type.

Drawn with matplotlib (the extra `plot`), which is imported only here.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from py4fs.cli.common import CommandError

if TYPE_CHECKING:
    from py4fs.iomap.records import Mapping
    from py4fs.vfs import Attr

#: colours that are told apart by most eyes (Okabe and Ito), by type of mapping
_COLOURS = {"hole": "#d9d9d9", "mapped": "#0072b2", "unwritten": "#e69f00", "inline": "#009e73"}
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))
_MARKED = 2000  # extents, up to which the start of each one is marked


def plot(path: Path, title: str, attr: Attr, mappings: list[Mapping]) -> None:
    """Write an SVG or PNG, by the end of ``path``'s name. Raises CommandError without matplotlib, OSError."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise CommandError("--plot needs matplotlib: pip install 'py4fs[plot]'") from exc
    with rc_context({"svg.hashsalt": "py4fs", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        top, strip = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1])
        draw(top, strip, title, attr, mappings)
        # no date: the same file gives the same picture
        metadata: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # characters of a name that the font does not have
                figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as exc:
            raise CommandError(f"{path}: {exc.strerror or exc}") from exc


def draw(top: Any, strip: Any, title: str, attr: Attr, mappings: list[Mapping]) -> None:
    """The picture itself: extents as lines in ``top``, what each part of the file is in ``strip`` below."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Patch

    from py4fs.iomap.records import MapType, has_device

    end = max([attr.size, *(m.end for m in mappings)], default=1) or 1
    placed = [m for m in mappings if has_device(m.type)]
    low = min((m.addr for m in placed), default=0)
    high = max((m.addr + m.length for m in placed), default=1)
    x_unit, x_name = _unit(end)
    y_unit, y_name = _unit(high)
    handles = []
    for name, colour in _COLOURS.items():
        these = [m for m in mappings if MapType(m.type).name.lower() == name]
        if not these:
            continue
        handles.append(Patch(color=colour, label=f"{len(these)} {name}: {_amount(sum(m.length for m in these))}"))
        parts = [(m.offset / x_unit, m.length / x_unit) for m in these]
        # an edge for the sake of pieces narrower than a pixel; the holes come first and lie below
        edge = 0 if name == "hole" or len(these) > _MARKED else 1
        strip.broken_barh(parts, (0, 1), facecolors=colour, edgecolors=colour, linewidth=edge)
        lines = [
            [(m.offset / x_unit, m.addr / y_unit), (m.end / x_unit, (m.addr + m.length) / y_unit)]
            for m in these
            if has_device(m.type)
        ]
        top.add_collection(LineCollection(lines, colors=colour, linewidths=2.5, capstyle="projecting"))
        if len(placed) <= _MARKED:
            top.plot(*zip(*(line[0] for line in lines), strict=True) if lines else ([], []), ".", color=colour, ms=4)
    for axes in (top, strip):
        axes.axvline(attr.size / x_unit, color="#555555", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    margin = max((high - low) * 0.05, attr.blksize)
    top.set_ylim(max(low - margin, 0) / y_unit, (high + margin) / y_unit)
    top.set_xlim(-end * 0.01 / x_unit, end * 1.02 / x_unit)
    top.set_ylabel(f"place on the device ({y_name})")
    top.grid(True, color="#eeeeee")
    top.ticklabel_format(useOffset=False, style="plain")
    extents = f"{len(placed)} extent{'' if len(placed) == 1 else 's'}"
    top.set_title(f"{title}: {attr.size} bytes, {extents}", loc="left", parse_math=False)
    top.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    strip.set_yticks([])
    strip.set_ylim(0, 1)
    strip.set_xlabel(f"place in the file ({x_name}); the dashed line is its end")


def _unit(size: float) -> tuple[int, str]:
    """The unit in which sizes up to ``size`` have two digits or more before the point."""
    return next(((unit, name) for unit, name in _UNITS if size >= 4 * unit), _UNITS[-1])


def _amount(size: int) -> str:
    unit, name = next(((unit, name) for unit, name in _UNITS if size >= unit), _UNITS[-1])
    return f"{size / unit:.4g} {name}"
