"""A plot for each program as an SVG file: wall time as a multiple of the lower bound, and the time
until a task's arguments are usable, by block size."""

import math
import statistics
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP, LEGEND = 430, 300, 60, 40, 90, 190
COLOURS = {
    "fork": "#999999",
    "npy": "#d62728",
    "paper": "#ff7f0e",
    "sharedarray": "#8c564b",
    "mp_shm": "#e377c2",
    "joblib": "#bcbd22",
    "dask": "#17becf",
    "ray": "#9467bd",
    "shmstore": "#1f77b4",
    "shmstore_in_place": "#08306b",
    "shmstore_exclusive": "#2ca02c",
    "shmstore_cold": "#7fb2dd",
}


def write(measured, folder, caption):
    """Writes study-<program>.svg for each program into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for program in dict.fromkeys(cell.program for cell, _ in measured):
        cells = [(cell, runs) for cell, runs in measured if cell.program == program]
        (folder / f"study-{program}.svg").write_text(drawing(program, cells, caption))


def drawing(program, cells, caption):
    labels = [cell.label.split("_", 1)[1].replace("_", " ") for cell, _ in cells]
    paths = [name for name in COLOURS if any(name in runs for _, runs in cells)]
    walls = {name: [wall_ratio(runs, name) for _, runs in cells] for name in paths}
    inward = {name: [data_path(runs, name) for _, runs in cells] for name in paths}
    wide, high = 2 * WIDTH + LEFT + GAP + LEGEND, HEIGHT + TOP + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        panel(LEFT, f"{program}: wall time", "multiple of fork's", labels, walls, 2),
        panel(
            LEFT + WIDTH + GAP,
            f"{program}: until a task's arguments are usable",
            "ms per task",
            labels,
            inward,
            10,
        ),
    ]
    for number, name in enumerate(paths):
        y = TOP + 12 + 18 * number
        x = LEFT + 2 * WIDTH + GAP + 20
        parts.append(f'<path d="M{x} {y - 4}h20" stroke="{COLOURS[name]}" stroke-width="2.5"/>')
        parts.append(text(x + 26, y, name, "start"))
    parts.append(text(LEFT, high - 8, caption, "start", 10))
    return "\n".join(parts) + "\n</svg>\n"


def wall_ratio(runs, name):
    if name not in runs or not runs[name].wall or not runs["fork"].wall:
        return None
    return statistics.median(runs[name].wall) / statistics.median(runs["fork"].wall)


def data_path(runs, name):
    if name not in runs or not runs[name].opened:
        return None
    return statistics.median(runs[name].opened) * 1000


def panel(left, title, unit, labels, lines, base):
    """A frame with a logarithmic scale, a grid at powers of `base`, and a line for each path."""
    values = [value for line in lines.values() for value in line if value]
    if not values:
        return ""
    low = math.floor(math.log(min(values), base))
    high = math.ceil(math.log(max(values), base))
    high = max(high, low + 1)

    def place(n, value):
        x = left + WIDTH * (n + 0.5) / len(labels)
        return x, TOP + HEIGHT * (high - math.log(value, base)) / (high - low)

    parts = [
        text(left + WIDTH / 2, TOP - 14, title, "middle", 14),
        text(left + WIDTH / 2, TOP + HEIGHT + 38, "size of a block", "middle"),
        f'<g transform="rotate(-90 {left - 44} {TOP + HEIGHT / 2})">'
        + text(left - 44, TOP + HEIGHT / 2, unit, "middle")
        + "</g>",
    ]
    for power in range(low, high + 1):
        y = place(0, base**power)[1]
        parts.append(f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="#dddddd"/>')
        tick = f"{float(base) ** power:{'g' if power >= 0 else '.3g'}}"
        parts.append(text(left - 6, y + 4, tick, "end", 10))
    for n, label in enumerate(labels):
        parts.append(text(place(n, base**low)[0], TOP + HEIGHT + 18, label, "middle"))
    for name, line in lines.items():
        points = [place(n, value) for n, value in enumerate(line) if value]
        if not points:
            continue
        track = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        colour, width = COLOURS[name], 3 if name == "shmstore" else 1.5
        parts.append(
            f'<polyline points="{track}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
    parts.append(
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
        'stroke="#555555"/>'
    )
    return "\n".join(parts)


def text(x, y, words, anchor, size=12):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(words)}</text>"
    )
