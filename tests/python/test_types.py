"""Type hints, the extension's stub, documentation."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import shmstore

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "client" / "python" / "shmstore"
INSTALLED = Path(shmstore.__file__).parent


def test_the_package_says_that_it_is_typed():
    assert (INSTALLED / "py.typed").exists() and (INSTALLED / "_ext.pyi").exists()


def interface(stub):
    """What a stub declares, without texts and layout: names and signatures."""
    found = {}

    def visit(body, path):
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[path + node.name] = [ast.unparse(base) for base in node.bases]
                visit(node.body, path + node.name + ".")
            elif isinstance(node, ast.FunctionDef):
                returns = ast.unparse(node.returns) if node.returns else None
                found[path + node.name] = [ast.unparse(node.args), returns]
            elif isinstance(node, ast.AnnAssign):
                found[path + ast.unparse(node.target)] = ast.unparse(node.annotation)

    visit(ast.parse(stub).body, "")
    return found


BUFFER_PROTOCOL = {
    "Lease.__buffer__": ["self, flags: int, /", "memoryview"],
    "Lease.__release_buffer__": ["self, buffer: memoryview, /", "None"],
}


def test_the_stub_is_what_the_extension_offers(tmp_path):
    pytest.importorskip("nanobind")
    generated = tmp_path / "_ext.pyi"
    patterns = ROOT / "client" / "python" / "src" / "ext.pat"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "shmstore._ext"]
    subprocess.run([*command, "-p", patterns, "-o", generated], check=True)
    hint = f"regenerate it: {' '.join(command)} -p {patterns} -o {PACKAGE / '_ext.pyi'}"
    offered = interface(generated.read_text())
    declared = interface((PACKAGE / "_ext.pyi").read_text())
    # Python names the buffer protocol from 3.12 on, without types; checkers take it from the stub.
    for name, types in BUFFER_PROTOCOL.items():
        has_name = offered.pop(name, None) is not None
        assert has_name == (sys.version_info >= (3, 12)), name
        assert declared.pop(name) == types
    assert offered == declared, hint


def test_everything_public_is_documented():
    for name in shmstore.__all__:
        member = getattr(shmstore, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(member), name
        if inspect.isclass(member):
            for attribute, value in vars(member).items():
                public = not attribute.startswith("_") and member.__module__ == "shmstore"
                if public and (callable(value) or isinstance(value, (property, staticmethod))):
                    assert inspect.getdoc(getattr(member, attribute)), f"{name}.{attribute}"


def test_everything_public_is_listed():
    public = {name for name in vars(shmstore) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(shmstore, name))}
    imported = {"annotations", "Any", "Callable", "Iterable", "Mapping", "Optional", "TypeVar",
                "TYPE_CHECKING"}  # fmt: skip
    assert public - modules - imported == set(shmstore.__all__) - {"__version__"}


USER = '''
import numpy as np
import shmstore as shm
from shmstore import SharedArray

a: SharedArray = shm.put("grid", np.arange(12.0).reshape(3, 4))
with shm.create("field", (1024, 1024), "f8") as w:
    w[:] = 0
b: np.ndarray = shm.attach("grid", "c", timeout=1.5)
c: SharedArray = shm.cached("k", lambda: np.zeros(3))
d: dict[str, SharedArray] = shm.put_many({"a": a, "b": [1, 2]})
e: bool = shm.release(a)
f = shm.connect("/tmp/x", grace=3)
g: int = f.wait("x", newer_than=3, timeout=None)
if a.shm is not None:
    h: str = a.shm.id
i: SharedArray = w.seal(hard=True, wait=3)
for one in shm.list("sim/"):
    print(one["name"])
'''


def check_types(folder, *what):
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", folder / "cache", *what],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_check(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    check_types(tmp_path, "-m", "shmstore", "-m", "user")


def test_types_check_in_all_modules(tmp_path):
    """Dask, Ray and PyCOMPSs may change their annotations, and be missing; these two are needed."""
    pytest.importorskip("joblib")
    pytest.importorskip("proxystore")
    check_types(tmp_path, "-p", "shmstore")
    assert not [path for path in PACKAGE.rglob("*.py") if "mypy: ignore" in path.read_text()]
