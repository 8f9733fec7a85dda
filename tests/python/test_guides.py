"""README, guides and the other pages: every code block runs as pasted (see guides.py), every link
leads somewhere, every picture can be drawn."""

import os
import re
import subprocess
import sysconfig
import textwrap
import xml.etree.ElementTree
from pathlib import Path

import guides
import pytest
from conftest import daemon_program, wait_until
from guides import PAGES, ROOT
from pycompss_tree import problem as no_compss
from pycompss_tree import application, tree  # noqa: F401 - fixtures

import shmstore
from shmstore import pycompss

CASES = [case for page in PAGES for case in guides.cases(page, (ROOT / page).read_text())]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Where the C++ library is installed; build/release stays as it is, its manifest too."""
    build = ROOT / "build" / "release"
    if not (build / "lib" / "libshmstore.so").exists():
        pytest.skip("build/release has no library: tools/test builds it")
    folder = tmp_path_factory.mktemp("installed")
    manifest = "/${CMAKE_INSTALL_MANIFEST}"
    text = (build / "cmake_install.cmake").read_text()
    script = folder / "install.cmake"
    script.write_text(text.replace(f"{build}{manifest}", f"{folder}{manifest}"))
    prefix = folder / "prefix"
    command = ["cmake", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-P", str(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return prefix


@pytest.fixture
def surroundings(daemon, tmp_path):
    """A reader's: the programs are on the path, the daemon is the test's, the folder is empty."""
    home = tmp_path / "home"
    home.mkdir()
    programs = [sysconfig.get_path("scripts"), str(Path(daemon_program()).parent)]
    return daemon.environment(
        PATH=os.pathsep.join([*programs, os.environ["PATH"]]),
        HOME=str(home),
        SHMSTORED=daemon_program(),
        PYTHONFAULTHANDLER="1",
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_block(case, surroundings, daemon, tmp_path, request):
    if reason := case.skipped():
        pytest.skip(reason)
    compss = None
    if case.runs and case.runs[0].way == "compss":
        if no_compss:
            pytest.skip(no_compss)
        compss = compss_runner(request.getfixturevalue("application"), daemon, tmp_path)
    if any(block.language == "cpp" for block in case.files):
        prefix = request.getfixturevalue("installed")
        surroundings["PKG_CONFIG_PATH"] = str(prefix / "lib" / "pkgconfig")
        surroundings["CMAKE_PREFIX_PATH"] = str(prefix)
        surroundings["LD_LIBRARY_PATH"] = str(prefix / "lib")
    folder = tmp_path / "empty"
    folder.mkdir()
    guides.run(case, folder, surroundings, compss, ended=lambda pid: wait_until_gone(daemon, pid))


def compss_runner(application, daemon, tmp_path):  # noqa: F811
    configuration = tmp_path / "storage.conf"
    configuration.write_text(f"socket = {daemon.socket}\n")

    def run(path, with_storage):
        if not with_storage:
            return application(path)
        return application(path, storage=configuration, paths=pycompss.storage_path())

    return run


def wait_until_gone(daemon, pid):
    """A reader looks at the other terminal only after the daemon has noticed."""
    client = daemon.client()

    def gone():
        arrays = [array["id"] for array in client.list()]
        return not any(h["pid"] == pid for id in arrays for h in client.holders(id=id))

    wait_until(gone, "the end of the terminal's session")


def test_the_example_of_the_package_runs(surroundings, tmp_path):
    """What help(shmstore) begins with."""
    [code] = re.findall(r"(?:^    .*\n|^\n(?=    ))+", shmstore.__doc__, re.M)
    folder = tmp_path / "empty"
    folder.mkdir()
    guides.run(*page(f"```python\n{textwrap.dedent(code)}```"), folder, surroundings)


def page(text):
    return guides.cases("page.md", text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("```python\nraise KeyError('planted')\n```", "planted"),
        ("```python\nimport warnings\nwarnings.warn('planted')\n```", "would be warned"),
        ("```sh\nfalse | true\nls missing\n```", "missing"),
        ("```python\nprint(1)\n```\n<!-- test: printed -->\n```\n2\n```", "expected"),
        ("<!-- test: terminal a -->\n```python\n1 / 0\n```", "ZeroDivisionError"),
        ("<!-- test: terminal a -->\n```sh\nls missing\n```", "missing"),
        ("<!-- test: save as a.cpp -->\n```cpp\nint main() { x; }\n```\n"
         "```sh\nc++ -std=c++20 a.cpp\n```", "error: .*x"),
    ],
    ids=["python", "warning", "sh", "printed", "terminal", "shell", "cpp"],
)  # fmt: skip
def test_a_broken_block_is_found(text, words, tmp_path):
    """The canary: what is planted here has to fail."""
    [case] = page(text)
    with pytest.raises(AssertionError, match=words):
        guides.run(case, tmp_path, dict(os.environ))


@pytest.mark.parametrize(
    "text, words",
    [
        ("```\nwhat is this\n```", "that nothing runs"),
        ("```console\n$ ls\n```", "that nothing runs"),
        ("* indented\n\n  ```cpp\n  int x;\n  ```", "that nothing runs"),
        ("<!-- test: skip -->\n```sh\nls\n```", "not understood"),
        ("<!-- test: skip because no -->\n```sh\nls\n```", "not understood"),
        ("<!-- test: skip because nobody is here -->\n\ntext\n```sh\nls\n```", "no code block"),
        ("<!-- test: save as x.py -->\n```python\nprint(1)\n```", "no block after it"),
        ("<!-- test: printed -->\n```\n1\n```", "nothing before"),
    ],
    ids=["text", "console", "indented", "bare", "short", "apart", "unused", "alone"],
)
def test_a_block_that_nobody_runs_is_found(text, words):
    problems = [case.problem for case in page(text) if case.problem]
    assert len(problems) == 1 and re.search(words, problems[0])


def test_a_block_runs_in_its_surroundings(surroundings, tmp_path):
    """What the runner promises: files, terminals, output with gaps, death where it is announced."""
    text = (
        "<!-- test: save as one.txt -->\n```\n1\n2\n```\n```sh\ncat one.txt; echo 3 4\n```\n"
        "<!-- test: printed -->\n```\n2\n3 …\n```\n"
        "<!-- test: terminal a -->\n```python\nx = 1\ndef f():\n    return 5\n\nprint(f())\n```\n"
        "<!-- test: terminal b, last words -->\n```sh\necho 6\nkill -9 $$\n```\n"
        "<!-- test: terminal a -->\n```python\nprint(x + 6)\n```\n"
        "<!-- test: printed -->\n```\n5\n6\n7\n```\n"
        "<!-- test: skip because\nit is a canary -->\n```sh\nfalse\n```\n"
        "<!-- test: needs no_such_module -->\n```python\n1 / 0\n```\n"
    )
    first, second, third, fourth = page(text)
    for number, case in enumerate((first, second)):
        assert case.skipped() is None
        folder = tmp_path / str(number)
        folder.mkdir()
        guides.run(case, folder, surroundings)
    assert third.skipped() == "it is a canary"
    assert fourth.skipped() == "no_such_module is not installed"


def anchors(text):
    """GitHub's: of each heading."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name}: {link}"
        if target.suffix == ".svg":
            xml.etree.ElementTree.parse(target)


def test_guides_are_reached_from_the_readme():
    text = (ROOT / "README.md").read_text()
    for guide in sorted((ROOT / "docs" / "guides").glob("*.md")):
        assert f"(docs/guides/{guide.name})" in text, guide.name
