"""tools/bench: measures the store beside what the machine itself can do, in one run.

Starts a private daemon, runs store_bench (C++) and Python's part against it, prints one table and
writes, if asked, a flat JSON object. Rates are medians; KEY_p25 and KEY_p75 are the quartiles.
"""

import argparse
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 1 << 30

# (heading, [(key, what it is beside, or None)])
TABLE = [
    ("round trip, us", [
        ("rpc_us_1core", "floor_rpc_us_1core"), ("rpc_us_2core", "floor_rpc_us_2core")]),
    ("operations of 4 KiB, us", [
        ("create_us", None), ("attach_us", None), ("release_us", None),
        ("py_attach_us", "attach_us"), ("py_put_64B_us", None)]),
    ("operations of 1 GiB, us", [("attach_1GiB_us", "attach_us"), ("release_1GiB_us", None)]),
    ("beside a hostile user, us", [("fair_step_us", "fair_step_alone_us")]),
    ("bandwidth, GB/s", [(f"put_{size}_gbps", f"{floor}_{size}_gbps")
                         for size in ("64KiB", "256KiB", "1MiB", "16MiB", "64MiB", "256MiB", "1GiB")
                         for floor in ("memcpy", "fill_cold", "write_cold")]),
]


def arguments():
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__.splitlines()[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a minute or two (the default)")
    how.add_argument("--full", action="store_true", help="more rounds and sizes")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    build = ROOT / "build"
    parser.add_argument("--shmstored", help="the daemon to measure",
                        default=os.environ.get("SHMSTORED", build / "release/bin/shmstored"))
    parser.add_argument("--store-bench", help="the C++ half",
                        default=os.environ.get("STORE_BENCH", build / "test/bin/store_bench"))
    return parser.parse_args()


class Daemon:
    """A private shmstored; a context manager."""

    def __init__(self, program, *flags):
        self.program = str(program)
        self.flags = flags

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="shmbench-")
        self.socket = os.path.join(self.folder.name, "socket")
        self.process = subprocess.Popen([self.program, "--socket", self.socket, "--capacity",
                                         str(4 * GIB), "--log-level", "warning", *self.flags])
        while not self._answers():
            if self.process.poll() is not None:
                sys.exit("bench: the daemon did not start")
            time.sleep(0.005)
        return self

    def _answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(self.socket) == 0

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def quartiles(key, samples):
    low, middle, high = statistics.quantiles(samples, n=4)
    return {key: middle, f"{key}_p25": low, f"{key}_p75": high}


def place(daemon_pid, processors):
    """This process on the first processor, all threads of the daemon on the second."""
    os.sched_setaffinity(0, {processors[0]})
    for task in os.listdir(f"/proc/{daemon_pid}/task"):
        os.sched_setaffinity(int(task), {processors[min(1, len(processors) - 1)]})


def measure_python(daemon, rounds):
    import numpy as np
    import shmstore as shm

    place(daemon.process.pid, sorted(os.sched_getaffinity(0)))
    client = shm.connect(daemon.socket)
    client.put("bench/py", np.zeros(4096, "u1"), keep=True)
    small = np.zeros(64, "u1")
    clock, attach, put = time.perf_counter_ns, [], []
    for _ in range(rounds):
        start = clock()
        array = client.attach("bench/py")
        attach.append((clock() - start) / 1000)
        del array
        start = clock()
        array = client.put(None, small)
        put.append((clock() - start) / 1000)
        del array
    client.delete("bench/py")
    return {**quartiles("py_attach_us", attach[rounds // 10:]),
            **quartiles("py_put_64B_us", put[rounds // 10:])}


def measure_fair(options, mode):
    """One user's waiting times without and with a hostile other, who has used up his shares."""
    if os.geteuid() != 0:
        return {"fair_skipped": "needs root, for two users"}
    if len(os.sched_getaffinity(0)) < 2:
        return {"fair_skipped": "needs two processors"}
    flags = ("--user-arrays", "2000", "--user-quota", "40%")
    with Daemon(options.shmstored, *flags) as daemon:
        os.chmod(daemon.folder.name, 0o755)
        os.chmod(daemon.socket, 0o666)
        done = subprocess.run(
            [str(options.fair_bench), daemon.socket, str(daemon.process.pid), mode],
            stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: fair_bench ended with {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)


def measure(options):
    mode = "full" if options.full else "quick"
    with Daemon(options.shmstored) as daemon:
        done = subprocess.run(
            [str(options.store_bench), daemon.socket, str(daemon.process.pid), mode],
            stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"bench: store_bench ended with {done.returncode}")
        results = json.loads(done.stdout)
        results.update(measure_python(daemon, 20_000 if options.full else 3_000))
    results.update(measure_fair(options, mode))
    return results


def machine():
    """One line: what the numbers were measured on, and of which commit."""
    model = platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip() or "unknown"
    huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    setting = huge.read_text().split("[")[1].split("]")[0] if huge.exists() else "unknown"
    return (f"{len(os.sched_getaffinity(0))} x {model}, {memory:.0f} GiB, Linux "
            f"{platform.release()}, shmem huge pages {setting}, commit {commit}")


def rows(results):
    for heading, lines in TABLE:
        present = [(key, floor) for key, floor in lines if key in results]
        if present:
            yield heading, None
        for key, floor in present:
            spread = f"{results[f'{key}_p25']:.4g} - {results[f'{key}_p75']:.4g}"
            beside = ""
            if floor in results:
                ratio = results[key] / results[floor]
                if key.startswith("rpc_us"):  # measured block by block
                    ratio = results[key.replace("rpc_us", "rpc_ratio")]
                beside = f"{ratio:.2f} x {floor} ({results[floor]:.4g})"
            yield key, (f"{results[key]:.4g}", spread, beside)


def print_table(results, described):
    print(described)
    print(f"  {'':24} {'median':>10}  {'quartiles':>20}  beside")
    before = None
    for key, columns in rows(results):
        if columns is None:
            print(key)
            continue
        median, spread, beside = columns if key != before else ("", "", columns[2])
        shown = key if key != before else ""  # a second floor for the same key
        print(f"  {shown:24} {median:>10}  {spread:>20}  {beside}".rstrip())
        before = key
    if "fair_skipped" in results:
        print(f"beside a hostile user: skipped, {results['fair_skipped']}")
    else:
        print(f"  p99 beside a hostile user: {results['fair_step_p99_us']:.4g} us, alone "
              f"{results['fair_step_alone_p99_us']:.4g} us, fair_p99_ratio "
              f"{results['fair_p99_ratio']:.2f}, refused {results['fair_refused']:.0f}")


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception: stops the daemons
    described = machine()
    results = measure(options)
    print_table(results, described)
    if options.json:
        pathlib.Path(options.json).write_text(
            json.dumps({**results, "machine": described}, indent=2) + "\n")


if __name__ == "__main__":
    main()
