"""tools/bench --apps at a size at which it says nothing about speed: every data path computes the
same, statistics and keys are right, and what the study claims beside times is so."""

import importlib
import json
import multiprocessing
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import wait_until

SVG = "http://www.w3.org/2000/svg"
ROOT = Path(__file__).resolve().parents[2]
MODULES = ("engine", "paths", "schedulers", "study", "report", "checks", "chart", "bounds")


@pytest.fixture(scope="module")
def bench():
    """The study's modules, by name."""
    folders = [str(ROOT / "tests" / "bench" / "apps"), str(ROOT / "examples")]
    sys.path[:0] = folders
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        del sys.path[: len(folders)]
        for name in list(sys.modules):
            if name in MODULES or name.partition(".")[0] == "tasks":
                del sys.modules[name]


def cell(bench, program, repetitions=2):
    programs = bench["study"].programs
    make = {
        "matmul": lambda: programs.Matmul(24, 2, 3, 2),
        "kmeans": lambda: programs.KMeans(16 << 10, 3, rounds=3),
    }[program]
    own = [*bench["paths"].ALL]
    return bench["study"].Cell(program, 16 << 10, make, own, repetitions)


@pytest.fixture
def measured(bench, shm):
    one = [cell(bench, "matmul"), cell(bench, "kmeans")]
    return [(each, bench["study"].measure(each, lambda text: None)) for each in one]


def test_every_path_computes_the_same_and_leaves_nothing(bench, measured, shm):
    for one, results in measured:
        for name, runs in results.items():
            if not runs.skipped:
                assert len(runs.wall) == len(runs.opened) == one.repetitions, name
                assert all(0 < opened < wall for opened, wall in zip(runs.opened, runs.wall))
    assert measured[1][1]["shmstore"].warm  # three rounds, two workers: some see a fragment again
    wait_until(lambda: shm.stats()["used"] == 0, "the memory's return")
    assert shm.stats()["arrays"] == 0


def test_a_wrong_result_ends_the_study(bench, shm, monkeypatch):
    npy = bench["paths"].NpyFile
    monkeypatch.setattr(npy, "write_back", lambda self, reference, array: None)
    with pytest.raises(SystemExit, match="npy computed something else"):
        bench["study"].measure(cell(bench, "kmeans"), lambda text: None)


def test_keys_tables_and_plots(bench, measured, tmp_path):
    report = bench["report"]
    flat = report.flat(measured)
    json.dumps(flat)
    for program in ("matmul", "kmeans"):
        end = f"_{program}_16KiB"
        for key in ("data_path_ms", "write_back_ms", "wall_ratio_fork", "wall_ratio_npy"):
            assert flat[f"apps_{key}{end}"] > 0
        for path in ("fork", "npy", "mp_shm", "shmstore_cold", "shmstore_exclusive"):
            assert flat[f"apps_peer_{path}_wall_s{end}"] > 0
        ratio = flat[f"apps_wall_s{end}"] / flat[f"apps_peer_npy_wall_s{end}"]
        assert flat[f"apps_wall_ratio_npy{end}"] == pytest.approx(ratio)
        assert 0 <= flat[f"apps_wall_p_npy{end}"] <= 1
    for one, results in measured:
        text = report.table(one, results)
        assert one.label in text and all(name in text for name in results)
    summary = report.summary({**flat, "load_start": 1.0, "load_end": 2.0})
    assert "apps_data_path_ms_matmul_16KiB" in summary
    assert "apps_wall_ratio_fork" not in summary  # its target is for large blocks
    bench["chart"].write(measured, tmp_path, "machine <1>")
    for program in ("matmul", "kmeans"):
        drawing = (tmp_path / f"study-{program}.svg").read_text()
        assert drawing.count("<polyline") >= 12 and "machine &lt;1&gt;" in drawing
        assert_all_text_is_inside(drawing)
        assert all(f">{words}<" in drawing for words in ("size of a block", "ms per task"))


def assert_all_text_is_inside(drawing):
    """Nothing is cut off, in a font whose letters are 0.65 of its size wide."""
    picture = ElementTree.fromstring(drawing)
    wide = float(picture.get("viewBox").split()[2])
    for each in picture.iter(f"{{{SVG}}}text"):
        length = 0.65 * float(each.get("font-size")) * len(each.text)
        before = {"start": 0, "middle": 0.5, "end": 1}[each.get("text-anchor")] * length
        start = float(each.get("x")) - before
        turned = each.get("x") == "16.0"  # the axis at the left edge: its text runs upwards
        assert turned or (start >= 0 and start + length <= wide), each.text


@pytest.mark.parametrize("value", [1e-6, 0.0101, 0.04, 0.3, 7, 900])
def test_labels_of_an_axis_are_inside(bench, value):
    chart = bench["chart"]
    lines = {"shmstore": [value, 3 * value]}
    inside = chart.panel(chart.LEFT, "title", "ms", ["a", "b"], lines, 2)
    assert_all_text_is_inside(f'<svg xmlns="{SVG}" viewBox="0 0 1200 410">{inside}</svg>')


def test_welch(bench):
    welch = bench["report"].welch
    # The example of two samples with different variances in Welch's sense, worked by hand:
    # t = -2.219, 13.3 degrees of freedom.
    a = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    b = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    assert welch(a, b) == pytest.approx(0.021378, abs=1e-6)
    assert welch([1.0], b) is None
    assert welch([2.0, 2.0], [2.0, 2.0]) == 1 and welch([2.0, 2.0], [3.0, 3.0]) == 0


@pytest.mark.parametrize(
    "key, size",
    [("apps_x_kmeans_128KiB", 128 << 10), ("apps_x_kmeans_256MiB_d128", 256 << 20), ("load", 0)],
)
def test_sizes_in_keys(bench, key, size):
    assert bench["report"].block_bytes(key) == size


def test_every_mode_has_its_cells(bench):
    study = bench["study"]
    modes = ("quick", "default", "full")
    labels = {mode: [one.label for one in study.cells(mode)] for mode in modes}
    assert set(labels["quick"]) < set(labels["default"]) < set(labels["full"])
    assert len(set(labels["full"])) == len(labels["full"])
    assert "kmeans_256MiB_d128" in labels["full"] and "matmul_128MiB" in labels["default"]
    for one in study.cells("default"):
        assert one.repetitions >= 5
        assert {"fork", "npy", "paper", "shmstore"} <= {path.name for path in one.paths}


def test_tasks_that_write_the_same_array_wait_for_each_other(bench):
    engine, task = bench["engine"], bench["study"].programs.Task
    tasks = [task("multiply", ("a", "b", target)) for target in "xyxyzx"]
    ready, behind = engine.chains(tasks)
    assert list(ready) == [0, 1, 4] and behind == {0: 2, 1: 3, 2: 5}
    levels = bench["study"].programs.levels(tasks)
    written = ["".join(one.arrays[-1] for one in level) for level in levels]
    assert written == ["xyz", "xy", "x"]


def test_one_copy_in_memory(bench, shm):
    numbers = bench["checks"].memory("quick")
    assert 0.95 <= numbers["apps_memory_copies_8_workers"] <= 1.02


def test_killed_workers_leave_nothing(bench, shm):
    assert bench["checks"].killing("quick") == {
        "apps_killed_workers_left_bytes": 0,
        "apps_killed_clean": 1,
    }


def test_a_failed_measurement_leaves_no_process(bench, shm, monkeypatch):
    def fails(*arguments):
        raise KeyError("half-way")

    monkeypatch.setattr(bench["bounds"], "timed_after_products", fails)  # pickle refuses it
    with pytest.raises(Exception, match="fails"):
        bench["bounds"].after_products("quick")
    assert multiprocessing.active_children() == []
