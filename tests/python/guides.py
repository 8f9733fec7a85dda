"""The code blocks of the Markdown pages, and how they are run: each as a reader would paste it.

A block is run unless an HTML comment in the lines before it, which no reader sees, says otherwise.
A block that is neither run nor skipped with a reason is a problem, and a problem is a failed test.
Where a block that runs has the comment `# prints TEXT`, it has to print that line.

    python, sh                           run, each in an empty folder
    <!-- test: skip because REASON -->   cannot run here; no other way to skip a block
    <!-- test: needs MODULE ... -->      runs if Python has these modules
    <!-- test: save as NAME -->          a file in the folder of the next block that runs
    <!-- test: printed -->               the output of the block before; `…` stands for anything
    <!-- test: terminal NAME -->         for a shell, or a Python, that stays for the next blocks
    <!-- test: terminal NAME, last words -->   the same, and the block ends that program
    <!-- test: compss [with storage] --> the main program of a COMPSs application
"""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(
    str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")
)]  # fmt: skip
RUNS = {"python": "block.py", "sh": "block.sh"}  # what runs without a comment, and as which file
PATIENCE = 240

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)[^`]*$")
COMMENT = re.compile(r"<!-- test: (?P<text>.*?) -->", re.S)
WAYS = {
    "skip": r"skip because (?P<reason>\S.{9,})",
    "needs": r"needs (?P<modules>[\w. ]+)",
    "save": r"save as (?P<name>[\w.-]+)",
    "printed": r"printed",
    "terminal": r"terminal (?P<terminal>\w+)(?P<last>, last words)?",
    "compss": r"compss(?P<storage> with storage)?",
}


@dataclass
class Block:
    page: str
    line: int
    language: str
    text: str
    way: str = "run"
    said: dict = field(default_factory=dict)  # the words of its comment

    def __str__(self):
        return f"{self.page}:{self.line}"


@dataclass
class Case:
    """Blocks that are one test: files, what runs (in terminals: several), what it prints."""

    runs: list = field(default_factory=list)
    files: list = field(default_factory=list)
    printed: list = field(default_factory=list)
    problem: str = ""

    def __str__(self):
        return str((self.runs or self.files or self.printed)[0])

    def skipped(self):
        """Why it cannot run here; None if it can."""
        for block in self.runs:
            if block.way == "skip":
                return block.said["reason"]
            for module in block.said.get("modules", "").split():
                if importlib.util.find_spec(module) is None:
                    return f"{module} is not installed"
        return None


def blocks(page, text):
    """Yields the page's fenced blocks; raises ValueError for a comment that nobody understands."""
    comment, opened, lines = "", None, text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.lstrip().startswith("<!-- test:"):
            comment = line.strip()
            while "-->" not in comment:
                comment += " " + lines[number].strip()
                number += 1
        elif opened := FENCE.match(line):
            start, body = number, []
            closing = re.compile(rf" *{opened['fence']} *$")
            while number < len(lines) and not closing.match(lines[number]):
                body.append(lines[number][len(opened["indent"]):])
                number += 1
            number += 1
            yield said(Block(page, start, opened["language"], "\n".join(body) + "\n"), comment)
            comment = ""
        elif line.strip():
            if comment:
                raise ValueError(f"{page}:{number}: no code block follows {comment}")


def said(block, comment):
    """The block with what its comment says."""
    if not comment:
        return block
    text = COMMENT.fullmatch(comment)
    for way, words in WAYS.items():
        if text and (match := re.fullmatch(words, text["text"])):
            block.way, block.said = way, match.groupdict()
            return block
    raise ValueError(f"{block}: {comment} is not understood; see tests/python/guides.py")


def cases(page, text):
    """The tests that a page is. What nobody runs is a case with a problem."""
    found, files, terminals = [], [], None
    try:
        for block in blocks(page, text):
            if block.way == "printed":
                case = found[-1] if found and not files else Case(problem="nothing before it runs")
                case.printed.append(block)
                if case.problem:
                    found.append(case)
            elif block.way == "save":
                files.append(block)
            elif block.way == "terminal":
                if terminals is None:
                    terminals = Case([], files)
                    found.append(terminals)
                    files = []
                terminals.runs.append(block)
            elif block.way != "skip" and block.language not in RUNS:
                hint = f"a block of {block.language or 'no language'} that nothing runs"
                found.append(Case([block], problem=f"{hint}; see tests/python/guides.py"))
            else:
                found.append(Case([block], files))
                files = []
    except ValueError as error:
        found.append(Case([Block(page, 0, "", "")], problem=str(error)))
    if files:
        found.append(Case([], files, problem="no block after it uses this file"))
    return found


def run(case, folder, environment, compss=None, ended=lambda pid: None):
    """Runs a case in the empty `folder`; raises AssertionError with the output if it fails.
    compss(path, storage) runs a program as COMPSs would; ended(pid) is called when a terminal has
    ended."""
    assert not case.problem, f"{case}: {case.problem}"
    for block in case.files:
        (folder / block.said["name"]).write_text(block.text)
    if case.runs[0].way == "terminal":
        output = run_in_terminals(case.runs, folder, environment, ended)
    else:
        output = run_block(case.runs[0], folder, environment, compss)
    expected = [(block, block.text) for block in case.printed]
    for block in [*case.files, *case.runs]:
        expected += [(block, text) for text in re.findall(r"# prints (.*)$", block.text, re.M)]
    for block, text in expected:
        assert matches(text, output), f"{block}: expected\n{text}\nprinted\n{output}"


def run_block(block, folder, environment, compss):
    script = folder / RUNS[block.language]
    script.write_text(block.text)
    if block.way == "compss":
        done = compss(script, bool(block.said["storage"]))
    else:
        program = [sys.executable] if block.language == "python" else ["bash", "-eu"]
        done = run_group([*program, script.name], folder, environment)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{block}: exit status {done.returncode}\n{output}"
    warned = re.search(rf"{script.name}:\d+: \w*Warning", done.stderr)
    assert not warned, f"{block}: a reader would be warned\n{output}"
    return done.stdout


def run_group(command, folder, environment):
    """As subprocess.run; what the program started and left behind is ended."""
    out, errors = folder / "stdout", folder / "stderr"
    with out.open("w") as to, errors.open("w") as errors_to:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=to,
            stderr=errors_to, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return subprocess.CompletedProcess(
        command, process.returncode, out.read_text(), errors.read_text()
    )


def matches(expected, output):
    """Whether `output` has these lines, in this order, as one piece; `…` is anything in a line."""
    wanted = "\n".join(line.rstrip() for line in expected.strip("\n").splitlines())
    printed = "\n".join(line.rstrip() for line in output.splitlines())
    pattern = re.escape(wanted).replace(re.escape("…"), ".*")
    return re.search(rf"^{pattern}$", printed, re.M) is not None


# --- terminals -----------------------------------------------------------------------------------


class Terminal:
    """A shell, or a Python, at which a reader pastes one block after the other."""

    def __init__(self, language, folder, environment):
        self.language = language
        program = [sys.executable, "-i", "-q", "-u"] if language == "python" else ["bash", "-e"]
        self.process = subprocess.Popen(
            program, cwd=folder, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = ""
        self.grown = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.grown:
                self.output += line
                self.grown.notify_all()
        with self.grown:
            self.reader = None
            self.grown.notify_all()

    def paste(self, text, mark, ends):
        """Types `text`, and waits until it has been carried out; returns what it printed."""
        before = len(self.output)
        say = f"print('{mark[:4]}' '{mark[4:]}')" if self.language == "python" else f"echo {mark}"
        self.process.stdin.write(f"{text}\n{say}\n" if not ends else f"{text}\n")
        with self.grown:
            done = self.grown.wait_for(
                lambda: self.reader is None or (mark in self.output and not ends), PATIENCE
            )
            printed = self.output[before:]
        assert done, f"no end in {PATIENCE} s; so far:\n{printed}"
        assert ends or mark in printed, f"the terminal's program ended:\n{printed}"
        assert "Traceback (most recent call last)" not in printed, printed
        assert "SyntaxError" not in printed, printed
        lines = [re.sub(r"^(>>> |\.\.\. )*", "", line) for line in printed.splitlines()]
        return "".join(f"{line}\n" for line in lines if line and line != mark)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


def run_in_terminals(runs, folder, environment, ended):
    terminals, output = {}, ""
    try:
        for number, block in enumerate(runs):
            name = block.said["terminal"]
            if name not in terminals:
                terminals[name] = Terminal(block.language, folder, environment)
            assert terminals[name].language == block.language, f"{block}: another language"
            try:
                mark = f"done-{number}-with-it"
                output += terminals[name].paste(block.text, mark, bool(block.said["last"]))
            except AssertionError as error:
                raise AssertionError(f"{block}: {error}") from None
            if block.said["last"]:
                gone = terminals.pop(name)
                gone.close()
                ended(gone.process.pid)
    finally:
        for terminal in terminals.values():
            terminal.close()
    return output
