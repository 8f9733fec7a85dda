"""Runs a PyCOMPSs program with the real Python side of PyCOMPSs and the runtime in compss.py.

    PYCOMPSS_SRC=~/compss python tests/python/minicompss/run.py [--storage CONFIG] app.py [ARG…]

PYCOMPSS_SRC is a clone of https://github.com/bsc-wdc/compss, or the folder of an installed COMPSs;
without it COMPSS_HOME is that folder. Nothing in it is changed. The number of worker processes is
MINICOMPSS_WORKERS, 2 unless set.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BINDING = "compss/programming_model/bindings/python"
DATA_TYPES = (
    "compss/programming_model/java/api/src/main/java/es/bsc/compss/types/annotations/parameter/"
    "DataType.java"
)
INSTALLED = "Bindings/python/3"
GENERATED = "pycompss/api/commons/data_type.py"


def where():
    """The folder that the environment names; None if none."""
    return os.environ.get("PYCOMPSS_SRC") or os.environ.get("COMPSS_HOME") or None


def why_not(source):
    """Why there is no usable tree at `source`; None if there is."""
    if not source:
        return "neither PYCOMPSS_SRC nor COMPSS_HOME names a source tree or an installed COMPSs"
    if (Path(source) / INSTALLED).exists():
        needs = [f"{INSTALLED}/{GENERATED}", f"{INSTALLED}/log"]
    else:
        needs = [f"{BINDING}/src/pycompss", f"{BINDING}/log", DATA_TYPES]
    for needed in needs:
        if not (Path(source) / needed).exists():
            return f"{source} is no source tree of PyCOMPSs, {needed} is missing"
    return None


def prepare(source, folder):
    """Makes an importable copy of the binding in `folder`; returns the folder for PYTHONPATH."""
    installed = Path(source) / INSTALLED
    binding = installed if installed.exists() else Path(source) / BINDING
    package = binding / ("pycompss" if installed.exists() else "src/pycompss")
    packages = Path(folder) / "src"
    ignored = shutil.ignore_patterns("tests", "__pycache__")
    shutil.copytree(package, packages / "pycompss", ignore=ignored)
    shutil.copytree(binding / "log", Path(folder) / "log")
    log = Path(folder) / "home" / "Bindings" / "python" / "3"
    log.mkdir(parents=True)
    (log / "log").symlink_to(Path(folder) / "log")
    if (packages / GENERATED).exists():
        return packages
    # COMPSs' build makes this module from the Java source.
    names = re.findall(r"^\s+([A-Z0-9_]+)_T[,;]", (Path(source) / DATA_TYPES).read_text(), re.M)
    lines = [f"    {name} = {number}\n" for number, name in enumerate(names)]
    text = f"class SupportedDataTypes:\n{''.join(lines)}\n\nDataType = SupportedDataTypes()\n"
    (packages / GENERATED).write_text(text)
    return packages


def environment(tree, scratch, app, storage="null", **more):
    """What to set for a process that runs `app` as the master of an application."""
    paths = [str(HERE), str(Path(tree) / "src"), str(Path(app).resolve().parent)]
    paths += [path for path in (more.pop("PYTHONPATH", os.environ.get("PYTHONPATH")),) if path]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "COMPSS_HOME": str(Path(tree) / "home"),
        "MINICOMPSS_DIR": str(scratch),
        "MINICOMPSS_STORAGE": str(storage),
        **more,
    }


def command(tree, app, arguments=(), storage="null"):
    launcher = Path(tree) / "src" / "pycompss" / "runtime" / "launch.py"
    options = ["0", "off", "false", "false", str(storage), "null", "null", "null"]
    return [sys.executable, "-u", str(launcher), *options, str(app), *map(str, arguments)]


def main():
    arguments = sys.argv[1:]
    storage = "null"
    if arguments[:1] == ["--storage"]:
        storage = os.path.abspath(arguments[1])
        arguments = arguments[2:]
    problem = why_not(where())
    if problem or not arguments:
        sys.exit(problem or __doc__)
    app = os.path.abspath(arguments[0])
    with tempfile.TemporaryDirectory(prefix="minicompss-") as folder:
        prepare(where(), folder)
        scratch = os.path.join(folder, "scratch")
        os.mkdir(scratch)
        done = subprocess.run(
            command(folder, app, arguments[1:], storage),
            env={**os.environ, **environment(folder, scratch, app, storage)},
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
