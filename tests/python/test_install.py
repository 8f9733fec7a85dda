"""What `cmake --install` puts where, by components, and what `uninstall` leaves. The build folder
is not touched: the manifest goes into the test's folder."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
UNITS = ("shmstored.socket", "shmstored.service")


class Installation:
    """An installation to `prefix` below `folder`, with its manifests in `folder`/build."""

    def __init__(self, folder, prefix):
        self.top, self.build, self.prefix = folder / "root", folder / "build", prefix
        self.top.mkdir()
        self.build.mkdir()
        text = (BUILD / "cmake_install.cmake").read_text()
        manifest = "/${CMAKE_INSTALL_MANIFEST}"
        assert f"{BUILD}{manifest}" in text
        self.script = folder / "install.cmake"
        self.script.write_text(text.replace(f"{BUILD}{manifest}", f"{self.build}{manifest}"))

    def cmake(self, *arguments):
        done = subprocess.run(
            ["cmake", *map(str, arguments)],
            env=dict(os.environ, DESTDIR=str(self.top)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    def install(self, component=None):
        part = [f"-DCMAKE_INSTALL_COMPONENT={component}"] if component else []
        self.cmake(f"-DCMAKE_INSTALL_PREFIX={self.prefix}", *part, "-P", self.script)

    def uninstall(self):
        self.cmake(f"-DBUILD={self.build}", "-P", ROOT / "cmake" / "uninstall.cmake")

    def manifest(self, component=None):
        name = f"install_manifest_{component}.txt" if component else "install_manifest.txt"
        return set((self.build / name).read_text().split())

    def files(self):
        paths = (path for path in self.top.rglob("*") if path.is_symlink() or path.is_file())
        return {f"/{path.relative_to(self.top)}" for path in paths}


@pytest.fixture
def local(tmp_path):
    if not (BUILD / "lib" / "libshmstore.so").exists():
        pytest.skip("build/release has no library: tools/test builds it")
    return Installation(tmp_path, "/usr/local")


def test_the_manifest_names_every_file_and_uninstall_removes_it(local):
    local.install()
    files = local.files()
    assert local.manifest() == files
    units = "/usr/local/lib/systemd/system/"
    assert {units + name for name in UNITS} | {"/usr/local/bin/shmstored"} <= files
    assert "/usr/local/include/shmstore/client.hpp" in files
    assert any(name.endswith("/pkgconfig/shmstore.pc") for name in files)
    strangers = local.top / "usr/local/include/other.hpp"
    strangers.touch()
    local.uninstall()
    assert local.files() == {"/usr/local/include/other.hpp"}
    assert not (local.top / "usr/local/include/shmstore").exists()
    assert not list(local.build.iterdir())


def test_components_divide_what_is_installed(local):
    parts = {}
    for component in ("lib", "dev", "daemon"):
        local.install(component)
        parts[component] = local.manifest(component)
    local.install()
    assert set().union(*parts.values()) == local.manifest()
    assert sum(map(len, parts.values())) == len(local.manifest()), "a file in two components"
    assert all(".so." in name for name in parts["lib"])
    assert {Path(name).suffix for name in parts["dev"]} <= {".hpp", ".cmake", ".pc", ".so"}
    of_daemon = {Path(name).name for name in parts["daemon"]}
    assert {"shmstored", "shmctl", "shmctl.1", *UNITS} <= of_daemon
    local.uninstall()
    assert not local.files()


def test_fish_finds_its_completions_under_usr_local(local):
    local.install("daemon")
    assert "/etc/fish/completions/shmctl.fish" in local.files()


def test_the_python_package_has_the_manual_pages():
    pages = Path(sysconfig.get_path("data")) / "share" / "man"
    for name in ("man1/shmctl.1", "man8/shmstored.8", "man7/shmstore.7"):
        assert (pages / name).exists(), name
