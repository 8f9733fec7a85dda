"""Runs CPython's own tests of multiprocessing.shared_memory against the store's drop-in.

usage: python tests/python/run_cpython_shm_tests.py [fork] [spawn] [forkserver]

Takes the tests from the standard library of the Python that runs it (some distributions put them
into a package of their own), swaps the module in this process, in those that the tests start by
multiprocessing and in the programs that they run with -c, and uses $SHMSTORE_SOCKET's daemon, or a
private one. Exit status 0: everything passed apart from DIFFERENCES, and each of those differed;
1: not so; 77: this Python has no such tests.
"""

import inspect
import multiprocessing
import multiprocessing.managers
import multiprocessing.resource_tracker
import multiprocessing.shared_memory
import os
import re
import subprocess
import sys
import unittest

from shmstore.compat import shared_memory as drop_in

#: Tests that the drop-in fails on purpose, and why.
DIFFERENCES = {
    "test_shared_memory_cleaned_after_process_termination": (
        "the block is gone after a kill, as the test wants, but no tracker prints that it leaked"
    ),
    "test_shared_memory_tracking": (
        "a process that attaches does not destroy the block when it ends; the test wants a tracker "
        "to do that and to print it"
    ),
}
METHODS = ("fork", "spawn", "forkserver")
NO_TESTS = 77


def swap():
    """Puts the drop-in where the standard library's module is."""
    multiprocessing.shared_memory = drop_in
    sys.modules["multiprocessing.shared_memory"] = drop_in
    multiprocessing.managers.shared_memory = drop_in
    multiprocessing.managers.SharedMemoryManager = drop_in.SharedMemoryManager


def swap_in_programs():
    """The same in every `python … -c program` that this process starts."""
    folder, name = os.path.split(os.path.splitext(os.path.abspath(__file__))[0])
    prelude = f"import sys; sys.path.insert(0, {folder!r}); import {name}\n"
    start = subprocess.Popen.__init__

    def start_swapped(self, args, *more, **options):
        if isinstance(args, (list, tuple)) and "-c" in args[:-1]:
            args = list(args)
            place = args.index("-c") + 1
            args[place] = prelude + args[place]
        start(self, args, *more, **options)

    subprocess.Popen.__init__ = start_swapped


def the_tests():
    """The standard library's module of them, which a fork server may have imported before the swap:
    up to 3.10 it does not import the main program first. Early releases of 3.9 hide the class in a
    function, by mistake, and run none of these tests themselves."""
    from test import _test_multiprocessing

    _test_multiprocessing.shared_memory = drop_in
    hidden = _test_multiprocessing._TestSharedMemory
    _test_multiprocessing._TestSharedMemory = inspect.unwrap(hidden)
    return _test_multiprocessing


swap()  # at import, so that it also happens in spawned children
if __name__ == "__mp_main__":
    the_tests()


class Result(unittest.TextTestResult):
    """Sorts the tests that differ from the rest."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.passed, self.differed = [], {}

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed.append(name_of(test))

    def addFailure(self, test, error):
        if not self._expected(test, error):
            super().addFailure(test, error)

    def addError(self, test, error):
        if not self._expected(test, error):
            super().addError(test, error)

    def _expected(self, test, error):
        about_tracker = name_of(test) in DIFFERENCES and "resource_tracker" in str(error[1])
        if about_tracker:
            self.differed[name_of(test)] = f"{error[0].__name__}: {str(error[1])[:100]}"
            self.stream.writeln("different, on purpose")
        return about_tracker


def name_of(test):
    return re.sub(r".*\.", "", test.id())


def run(method, tests):
    """One start method; returns whether all is as it should be."""
    print(f"--- {method}", flush=True)
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result)
    result = runner.run(unittest.defaultTestLoader.loadTestsFromTestCase(tests))
    wrong = [name for name in result.passed if name in DIFFERENCES]
    for name in wrong:
        print(f"{name} passed: it is listed as different")
    for name, how in result.differed.items():
        print(f"different: {name}: {DIFFERENCES[name]} ({how})")
    failed = len(result.failures) + len(result.errors)
    print(
        f"{method}: {len(result.passed)} passed, {len(result.differed)} different on purpose, "
        f"{len(result.skipped)} skipped, {failed} failed",
        flush=True,
    )
    return failed == 0 and not wrong and len(result.passed) > 0


def main(methods):
    try:
        tests = the_tests()
    except ImportError as error:
        print(f"no tests: {error}")
        return NO_TESTS
    if "SHMSTORE_SOCKET" not in os.environ:
        from shmstore.compat.plasma import start_plasma_store

        with start_plasma_store(1 << 28) as (path, _):
            os.environ["SHMSTORE_SOCKET"] = path
            return main(methods)
    swap_in_programs()
    if len(methods) == 1:
        tests.install_tests_in_module_dict(globals(), methods[0])
        return 0 if run(methods[0], globals()["WithProcessesTestSharedMemory"]) else 1
    # A start method is set once in a process.
    command = [sys.executable, os.path.abspath(__file__)]
    return max(subprocess.run([*command, method]).returncode for method in methods)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or METHODS))
