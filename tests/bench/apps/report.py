"""What the study's numbers say: medians, ratios, Welch's test; tables and the flat JSON object."""

import os
import pathlib
import platform
import statistics
import subprocess

OURS, BOUND, FILES = "shmstore", "fork", "npy"

#: What is reported of a path's runs, in milliseconds: key and attribute.
PARTS = (("data_path_ms", "opened"), ("warm_path_ms", "warm"), ("write_back_ms", "closed"))

SIGNIFICANT = 0.05


def welch(a, b):
    """The probability that samples with means as different as these come by chance (two-sided,
    variances need not be equal); None with fewer than two in either."""
    if len(a) < 2 or len(b) < 2:
        return None
    if min(a) == max(a) and min(b) == max(b):
        return 0.0 if a[0] != b[0] else 1.0
    from scipy import stats

    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def median_ms(values):
    return statistics.median(values) * 1000


def ratio(runs, other):
    return statistics.median(runs.wall) / statistics.median(other.wall)


# --- the JSON object ------------------------------------------------------------------------------


def flat(measured):
    """{key: number} of all cells; our own path's keys as the targets name them, the others' after
    `apps_peer_<path>_`."""
    found = {}
    for cell, results in measured:
        for name, runs in results.items():
            if not runs.wall:
                continue
            prefix = "apps_" if name == OURS else f"apps_peer_{name}_"
            for key, value in path_numbers(runs, results).items():
                found[f"{prefix}{key}_{cell.label}"] = value
    return found


def path_numbers(runs, results):
    numbers = {"wall_s": statistics.median(runs.wall)}
    numbers["wall_min_s"], numbers["wall_max_s"] = min(runs.wall), max(runs.wall)
    for key, attribute in PARTS:
        values = getattr(runs, attribute)
        if values:
            numbers[key] = median_ms(values)
    if runs.kernel:
        numbers["publish_ms"] = median_ms(runs.publish)
        numbers["kernel_ms"] = median_ms(runs.kernel)
    for key, name in (("fork", BOUND), ("npy", FILES)):
        other = results.get(name)
        if other is None or not other.wall or other is runs:
            continue
        numbers[f"wall_ratio_{key}"] = ratio(runs, other)
        chance = welch(runs.wall, other.wall)
        if chance is not None:
            numbers[f"wall_p_{key}"] = chance
    return numbers


# --- for people -----------------------------------------------------------------------------------

HEAD = ("path", "wall s", "min-max", "/fork", "vs npy", "publish", "in", "warm", "out", "kernel")
WIDTHS = (19, 9, 15, 7, 10, 9, 9, 9, 9, 10)


def table(cell, results):
    """A cell as text. Times in milliseconds, per task, unless they say otherwise."""
    lines = [f"{cell.label}: {cell.repetitions} repetitions; publish in s, the rest ms per task"]
    lines.append(row(HEAD))
    for name, runs in results.items():
        if not runs.wall:
            lines.append(f"  {name:<19}skipped: {runs.skipped}")
            continue
        lines.append(row((name, *columns(runs, results))))
    return "\n".join(lines) + "\n"


def columns(runs, results):
    numbers = path_numbers(runs, results)
    yield f"{numbers['wall_s']:.3f}"
    yield f"{min(runs.wall):.3f}-{max(runs.wall):.3f}"
    yield f"{numbers['wall_ratio_fork']:.2f}" if "wall_ratio_fork" in numbers else ""
    yield against_files(numbers)
    yield f"{numbers['publish_ms'] / 1000:.3f}" if "publish_ms" in numbers else ""
    for key in ("data_path_ms", "warm_path_ms", "write_back_ms", "kernel_ms"):
        yield f"{numbers[key]:.3f}" if key in numbers else ""


def against_files(numbers):
    """As the paper says it: how much faster (-) or slower than files, * if significantly."""
    if "wall_ratio_npy" not in numbers:
        return ""
    mark = "*" if numbers.get("wall_p_npy", 1) < SIGNIFICANT else ""
    return f"{(numbers['wall_ratio_npy'] - 1) * 100:+.1f} %{mark}"


def row(cells):
    first, *rest = (
        f"{cell:<{width}}" if n == 0 else f"{cell:>{width}}"
        for n, (cell, width) in enumerate(zip(cells, WIDTHS))
    )
    return "  " + first + "".join(rest)


#: Targets: beginning of the key, from which block size in bytes on, bound, what it is.
TARGETS = (
    ("apps_data_path_ms_", 0, 0.1, "data path in, ms"),
    ("apps_warm_path_ms_", 0, 0.02, "warm data path, ms"),
    ("apps_wall_ratio_fork_", 2 << 20, 1.1, "wall / fork"),
    ("apps_wall_ratio_npy_", 0, 1.0, "wall / npy"),
    ("apps_publish_ratio", 0, 1.1, "publish / fill"),
    ("apps_memory_copies", 0, 1.02, "copies in memory"),
)


def block_bytes(key):
    """The block size that a key ends with; 0 for none."""
    for part in key.split("_"):
        for unit, factor in (("KiB", 1 << 10), ("MiB", 1 << 20)):
            if part.endswith(unit) and part[:-3].isdigit():
                return int(part[:-3]) * factor
    return 0


def summary(numbers):
    """Each target with what was measured."""
    lines = ["targets:"]
    for prefix, least, bound, words in TARGETS:
        for key, value in numbers.items():
            if key.startswith(prefix) and block_bytes(key) >= least:
                verdict = "met" if value <= bound else "MISSED"
                lines.append(f"  {verdict:<7} {value:8.3f} (at most {bound:g})  {words}: {key}")
    lines.append(f"load of the machine: {numbers['load_start']:.1f}, {numbers['load_end']:.1f}")
    return "\n".join(lines)


def machine(root):
    """One line: what the numbers were measured on, and of which commit."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    described = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(described, capture_output=True, text=True).stdout.strip() or "unknown"
    return (
        f"{len(os.sched_getaffinity(0))} x {(models or [platform.machine()])[0]}, {memory:.0f} "
        f"GiB, Linux {platform.release()}, Python {platform.python_version()}, commit {commit}"
    )
