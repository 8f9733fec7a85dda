"""Checks the house rules that no compiler knows. Run it without arguments: it prints problems as
`file:line: text`, ends with a count, and exits 1 if there is one.

A check is a function from a tree ({path: text}) to problems (path, line, text). Before the real
tree is checked, each check has to find the fault that tidy_canaries.py plants for it and to be
silent about the corrected version, so that none can pass because it looks at nothing.

A line that has to break a rule says so, with its reason: `tidy: allow(RULE) because …`, where
RULE is the word in brackets at the end of the problem.
"""

import ast
import re
import sys
from pathlib import Path

from tidy_canaries import CANARIES

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("include", "server", "client", "tools", "tests", "examples", "cmake", "docs", "systemd")
LINE_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
ASIO_UNITS_MAX = 4
JSON_UNITS_MAX = 8
RESERVED_OPS = {"fork", "put_batch", "attach_batch"}  # numbered, not implemented: nothing to kill
DATA_PLANE_END = 64  # ops from here on are JSON documents of the admin plane


def is_cpp(path):
    return path.endswith((".cpp", ".hpp"))


def is_source(path):
    return is_cpp(path) or path.endswith((".py", ".sh")) or is_script(path)


def is_script(path):
    return path.startswith("tools/") and "." not in path.rsplit("/", 1)[-1]


def numbered(text):
    return enumerate(text.splitlines(), 1)


def without_literals(text):
    """C++ text with comments, strings and characters blanked out, line numbers kept."""
    pattern = (
        r'R"([^(\s]*)\((?:.|\n)*?\)\1"|//[^\n]*|/\*(?:.|\n)*?\*/'
        r"|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'"
    )

    def blank(match):
        kept = '""' if match.group(0)[0] in "\"R" else ""
        return kept + "\n" * match.group(0).count("\n")

    return re.sub(pattern, blank, text)


# --- size ----------------------------------------------------------------------------------------


def check_line_length(tree):
    for path, text in tree.items():
        if not is_source(path):
            continue
        for number, line in numbered(text):
            if len(line) > LINE_MAX:
                yield path, number, f"{len(line)} characters, at most {LINE_MAX} [length]"


def check_function_length(tree):
    for path, text in tree.items():
        if is_cpp(path):
            functions = cpp_functions(text)
        elif path.endswith(".py"):
            functions = python_functions(text)
        else:
            continue
        for name, first, last in functions:
            lines = last - first + 1
            if lines > FUNCTION_LINES_MAX:
                text_of = f"{name}: {lines} lines, at most {FUNCTION_LINES_MAX} [function]"
                yield path, first, text_of


def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno, node.end_lineno


def cpp_functions(text):
    """(name, first line, last line) of each function body: a `{` after white space whose statement
    has a `(`, in a scope that is not itself a function. Relies on clang-format's layout: braces of
    initialisers touch the word before them."""
    code = re.sub(r"^[ \t]*#(?:.*\\\n)*.*$", "", without_literals(text), flags=re.M)
    line, head, head_line, stack = 1, "", 1, []
    for index, char in enumerate(code):
        line += char == "\n"
        if char == "{":
            initialiser = index > 0 and (code[index - 1].isalnum() or code[index - 1] in "_>)]({,")
            if initialiser and code[index - 1] != ")" or head.rstrip().endswith(("=", "return")):
                stack.append(("initialiser", head, head_line))
                continue
            inside = any(kind == "function" for kind, _, _ in stack)
            scope = re.match(r"\s*(?:inline\s+)?(namespace|extern|enum)\b", head)
            kind = "function" if "(" in head and not inside and not scope else "scope"
            stack.append((kind, head, head_line))
            head = ""
        elif char == "}" and stack:
            kind, opened, first = stack.pop()
            if kind == "function":
                name = re.search(r"([\w:~]+|operator\S+)\s*\(", opened)
                yield (name.group(1) if name else "function"), first, line
            head = opened + "{}" if kind == "initialiser" else ""
            head_line = first if kind == "initialiser" else line
        elif char == ";":
            head = ""
        else:
            if not head.strip():
                head_line = line
            head += char


def check_file_length(tree):
    for path, text in tree.items():
        lines = text.count("\n")
        head = "\n".join(text.splitlines()[:25])
        if is_source(path) and lines > FILE_LINES_MAX and f"{FILE_LINES_MAX} lines" not in head:
            reason = f'say why in the head comment: "over {FILE_LINES_MAX} lines because …"'
            yield path, 1, f"{lines} lines: split it, or {reason} [file]"


# --- layers --------------------------------------------------------------------------------------

SERVER_LAYERS = {"registry": 1, "dispatch": 2, "session": 3, "daemon": 4, "main": 5}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SYSCALL_HEADERS = re.compile(r"^(sys/|linux/|unistd\.h|fcntl\.h|signal\.h|poll\.h|pthread\.h)")


def includes(text):
    for number, line in numbered(text):
        if match := INCLUDE.match(line):
            yield number, match.group(2), line


def server_layer(path):
    """Layer of a file in server/ by its name; 0 for those that any layer may use. A file that is
    named after a layer (session_limits.hpp) belongs to it."""
    stem = path.rsplit("/", 1)[-1].split(".")[0]
    return next((n for name, n in SERVER_LAYERS.items() if re.match(rf"{name}(_|$)", stem)), 0)


def resolve(tree, path, name):
    """The tree's file that an include names, or None."""
    folder = path.rsplit("/", 1)[0]
    return next((c for c in (f"include/{name}", f"{folder}/{name}", name) if c in tree), None)


def forbidden_include(tree, path, name):
    """Why `path` may not include `name`; None if it may."""
    target = resolve(tree, path, name) or name
    library = name.startswith(("boost/", "nlohmann/", "CLI/"))
    if path.startswith("include/"):
        if library or not (target.startswith("include/") or "/" not in name or "sys/" in name):
            return "public headers include the standard library and each other only"
    elif path.startswith(("client/", "tools/")):
        if target.startswith("server/"):
            return "clients do not know the server"
        if path.startswith("client/") and target.startswith("tools/"):
            return "the client library does not know its tools"
    elif path.startswith("server/"):
        if target.startswith(("client/", "tools/", "tests/")):
            return "the server does not know its clients"
        mine, other = server_layer(path), server_layer(target)
        if target.startswith("server/") and mine and other > mine:
            return "main → daemon → session → dispatch → registry → include"
        if target.startswith("server/") and not mine and other > SERVER_LAYERS["dispatch"]:
            return "only main, daemon and session know daemon and session"
        if re.match(r"server/(registry|quota)", path):
            if library or SYSCALL_HEADERS.match(name):
                return "the registry knows no Asio, JSON or system calls"
    return None


def check_include_direction(tree):
    for path, text in tree.items():
        if not is_cpp(path):
            continue
        for number, name, line in includes(text):
            why = forbidden_include(tree, path, name)
            if why and "tidy: allow(layer)" not in line:
                yield path, number, f"includes {name}: {why} [layer]"


def units_including(tree, header):
    """Translation units that reach a header matching `header`, through the tree's own headers."""

    def reaches(path, seen):
        for _, name, _ in includes(tree[path]):
            if re.match(header, name):
                return True
            inner = resolve(tree, path, name)
            if inner and inner not in seen and reaches(inner, seen | {inner}):
                return True
        return False

    return [p for p in tree if p.endswith(".cpp") and reaches(p, {p})]


def check_heavy_headers(tree):
    for what, header, most in (
        ("Asio", r"boost/asio", ASIO_UNITS_MAX),
        ("JSON", r"nlohmann/json\.hpp", JSON_UNITS_MAX),
    ):
        units = units_including(tree, header)
        if len(units) > most:
            text = f"{what} in {len(units)} units, at most {most}: {' '.join(units)} [heavy]"
            yield units[0], 1, text


# --- words ---------------------------------------------------------------------------------------

BANNED_CPP = (  # (rule, where, pattern, what to use)
    ("sprintf", "", r"\bv?sprintf\s*\(", "std::snprintf with the buffer's size"),
    ("strcpy", "", r"\b(strn?cpy|strn?cat|stpcpy|gets)\s*\(", "std::string or std::memcpy"),
    ("strtok", "", r"\bstrtok(_r)?\s*\(", "std::string_view::find"),
    ("atoi", r"(?!tests/)", r"\b(ato(i|l|ll|f)|sto(i|l|ll|ul|ull|d|f))\s*\(", "std::from_chars"),
    ("rand", "", r"\bs?rand\s*\(", "<random> with a printed seed"),
    ("regex", "", r"\bstd::regex|<regex>", "a hand-written match: std::regex is slow and throws"),
    ("iostream", r"server/|client/", r"\bstd::(cout|cerr|endl)\b", "the log, or a returned text"),
    ("namespace", "", r"\busing\s+namespace\s+std\s*;", "std:: where it is used"),
    ("shell", "", r"(std::|[^:\w]::)system\s*\(|\bpopen\s*\(", "posix_spawn"),
    ("signal", "", r"(?<![\w.>])signal\s*\(\s*SIG\w+,(?!\s*SIG_)", "sigaction"),
    ("exit", r"client/", r"\bstd::(abort|exit|quick_exit|terminate)\b|\bassert\s*\(", "an Error"),
    ("sleep", r"tests/(?!support)|server/", r"\b(sleep_for|(u|nano)?sleep)\s*\(", "wait_until"),
    ("lookup", r"server/", r"\b(getpw|getgr|getaddrinfo|gethostby)\w*\s*\(", "numbers: W5"),
)
BANNED_PYTHON = (
    ("shell", "", r"\bos\.(system|popen)\s*\(|shell\s*=\s*True", "subprocess with a list"),
    ("eval", "", r"(?<![\w.])(eval|exec)\s*\(", "ast.literal_eval, json"),
    ("except", "", r"^\s*except\s*:", "except with the class that is meant"),
)
LEFTOVER_WORDS = ("FIX" + "ME", "TO" + "DO", "X" + "XX", "HA" + "CK")  # in halves: not this line
LEFTOVERS = re.compile(r"\b(" + "|".join(LEFTOVER_WORDS) + r")\b")


def check_banned(tree):
    for path, text in tree.items():
        if not is_cpp(path) and not path.endswith(".py"):
            continue
        rules = BANNED_CPP if is_cpp(path) else BANNED_PYTHON
        code = without_literals(text) if is_cpp(path) else without_python_literals(text)
        raw = text.splitlines()
        for number, line in numbered(code):
            for rule, where, pattern, instead in rules:
                if re.match(where, path) and re.search(pattern, line):
                    if f"tidy: allow({rule})" not in raw[number - 1]:
                        yield path, number, f"not here; use {instead} [{rule}]"


def check_fixed_sleeps(tree):
    """Python tests sleep in a loop that looks for something, never for a time."""
    for path, text in tree.items():
        if not path.startswith("tests/") or not path.endswith(".py"):
            continue
        module = ast.parse(text)
        loops = [n for n in ast.walk(module) if isinstance(n, ast.While)]
        polling = {id(call) for loop in loops for call in ast.walk(loop)}
        for node in ast.walk(module):
            call = isinstance(node, ast.Call) and ast.unparse(node.func)
            if call in ("time.sleep", "sleep") and id(node) not in polling:
                if "tidy: allow(sleep)" not in text.splitlines()[node.lineno - 1]:
                    yield path, node.lineno, "a fixed time; look for the condition [sleep]"


def without_python_literals(text):
    long = r'"""(?:.|\n)*?"""|\'\'\'(?:.|\n)*?\'\'\'|'
    pattern = long + r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*'
    return re.sub(pattern, lambda m: "\n" * m.group(0).count("\n"), text)


def check_leftovers(tree):
    for path, text in tree.items():
        for number, line in numbered(text):
            if match := LEFTOVERS.search(line):
                yield path, number, f"leftover {match.group(0)}: do it or file it [leftover]"


# --- nothing lies about --------------------------------------------------------------------------


def check_built(tree):
    """Every .cpp is named in a CMakeLists.txt of its folder or one above it; no globs for them."""
    for path, text in tree.items():
        if path.endswith("CMakeLists.txt"):
            for number, line in numbered(text):
                if re.search(r"\bGLOB\w*\b.*\.cpp", line):
                    yield path, number, "name the sources one by one [glob]"
        if not path.endswith(".cpp") or path.startswith("examples/"):
            continue
        folder, name = path.rsplit("/", 1)
        lists = [t for p, t in tree.items() if p.endswith("CMakeLists.txt")]
        near = tree.get(f"{folder}/CMakeLists.txt", "")
        if not re.search(rf"(?<![\w/]){re.escape(name)}\b", near):
            tail = "/".join(path.split("/")[-2:])
            if not any(re.search(rf"(?<!\w){re.escape(tail)}\b", text) for text in lists):
                yield path, 1, "no CMakeLists.txt names it: it is not built [built]"


def check_collected(tree):
    """tools/test gives pytest some folders; it collects functions test_* of files test_* there."""
    given = re.search(r"^pytest_folders=\((.*?)\)", tree.get("tools/test", ""), re.M)
    folders = tuple(f"{folder}/" for folder in given.group(1).split()) if given else ()
    for path, text in tree.items():
        if not path.startswith("tests/") or not path.endswith(".py"):
            continue
        name = path.rsplit("/", 1)[-1]
        collected = path.startswith(folders) and name.startswith("test_")
        tests = [n for n, _, _ in python_functions(text) if n.startswith("test_")]
        if tests and not collected:
            yield path, 1, f"pytest does not collect {tests[0]} here [collected]"
        if collected and not tests:
            yield path, 1, "a test file without a test [collected]"
        seen = set()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                if node.name in seen:
                    yield path, node.lineno, f"{node.name} is defined twice [collected]"
                seen.add(node.name)


def check_pragma_once(tree):
    for path, text in tree.items():
        if path.endswith(".hpp") and "#pragma once" not in text:
            yield path, 1, "a header without #pragma once [once]"


MANUALS = {
    "server/options.cpp": "docs/man/shmstored.8",
    "tools/shmctl/main.cpp": "docs/man/shmctl.1",
}


def check_manuals(tree):
    """Every flag that a program takes is in its manual, and the manual names no other."""
    for source, manual in MANUALS.items():
        if source not in tree:
            continue
        taken = set(re.findall(r'"(?:-\w,)?--([a-z][a-z-]+)\b', tree[source]))
        page = re.sub(r"\\f[A-Z]", " ", tree.get(manual, "")).replace("\\-", "-")
        named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", page)) - {"help", "version"}
        for flag in sorted(taken - named - {"help", "version"}):
            yield manual, 1, f"--{flag} of {source} is not in the manual [manual]"
        for flag in sorted(named - taken):
            yield manual, 1, f"--{flag} is in the manual, and {source} does not take it [manual]"


# --- kill points ---------------------------------------------------------------------------------


def data_plane_ops(tree):
    """Names in the enumeration Op below the admin plane, less the reserved ones."""
    text = tree.get("include/shmstore/protocol.hpp", "")
    body = re.search(r"enum class Op\b[^{]*\{(.*?)\n\};", text, re.S)
    pairs = re.findall(r"^\s*(\w+) = (\d+)", body.group(1), re.M) if body else []
    return [n for n, v in pairs if int(v) < DATA_PLANE_END and n not in RESERVED_OPS]


def listed_kill_points(text):
    array = re.search(r"kKillPoints\[?\]?[^=]*=\s*\{(.*?)\};", text, re.S)
    return set(re.findall(r'"([\w.]+)"', array.group(1))) if array else set()


def check_kill_points(tree):
    """The list and the code agree, and each operation that sends a message has points around it."""
    header = "client/kill_points.hpp"
    listed = listed_kill_points(tree.get(header, ""))
    used = {}
    for path, text in tree.items():
        if path.startswith("client/") and is_cpp(path):
            for number, line in numbered(text):
                for name in re.findall(r'SHMSTORE_KILL_POINT\w*\(\s*"([\w.]+)"', line):
                    used.setdefault(name, (path, number))
    for name in sorted(listed - used.keys()):
        yield header, 1, f"{name} is listed and not used [kill]"
    for name, (path, number) in sorted(used.items()):
        if name not in listed:
            yield path, number, f"{name} is not in kKillPoints [kill]"
    ops = data_plane_ops(tree)
    if not ops:
        yield "include/shmstore/protocol.hpp", 1, "no data-plane operation was found [kill]"
    for op in ops:
        for side in ("before", "after"):
            if not any(name.startswith(f"{op}.{side}") for name in used):
                yield header, 1, f"operation {op} has no kill point {op}.{side}_… [kill]"


# The only files that may talk to the kernel about messages and maps; everybody else goes through
# them, in functions that pass the kill points.
DOORS = {
    r"\bsend(msg|mmsg|to)?\s*\(\s*(fd|socket)": {"client/wire.cpp"},
    r"(?<![\w.>])m(map|unmap|remap)\s*\(": {"client/mapping_cache.cpp", "client/fork.cpp"},
}
NO_KILL_POINTS = {"client/wire.hpp", "client/watch.cpp"}  # a declaration; the admin plane's events


def check_kill_doors(tree):
    """Messages and maps go through few doors, and whoever sends a frame has points around it."""
    passed = set()
    for path, text in tree.items():
        if not path.startswith("client/") or not is_cpp(path):
            continue
        code = without_literals(text)
        for number, line in numbered(code):
            for door, allowed in DOORS.items():
                if re.search(door, line) and path not in allowed:
                    yield path, number, f"only {', '.join(sorted(allowed))} may do this [kill]"
        if "kill_points" in path:
            continue
        steps = [
            (number, step)
            for number, line in numbered(code)
            for step in re.findall(r"pass_kill_point\(.*Step::(\w+)\)", line)
        ]
        passed.update(step for _, step in steps)
        if path not in NO_KILL_POINTS:
            yield from unguarded_sends(path, code, steps)
    listed = listed_kill_points(tree.get("client/kill_points.hpp", ""))
    for step in sorted({name.split(".")[1] for name in listed} - passed):
        yield "client/kill_points.hpp", 1, f"nobody passes a point .{step} [kill]"


def unguarded_sends(path, code, steps):
    for name, first, last in cpp_functions(code):
        for number, line in list(numbered(code))[first - 1 : last]:
            if not re.search(r"(?<!Sent )\bsend_frame\(", line):
                continue
            before = any(s == "before_send" and first <= n < number for n, s in steps)
            after = any(s == "after_send" and number < n <= last for n, s in steps)
            if not (before and after):
                yield path, number, f"{name} sends without kill points around it [kill]"


# --- all of it -----------------------------------------------------------------------------------

CHECKS = (
    check_line_length,
    check_function_length,
    check_file_length,
    check_include_direction,
    check_heavy_headers,
    check_banned,
    check_fixed_sleeps,
    check_leftovers,
    check_built,
    check_collected,
    check_pragma_once,
    check_manuals,
    check_kill_points,
    check_kill_doors,
)

def check_canaries():
    """Each check finds what is planted for it, and nothing once that is mended."""
    where = "tests/tidy_canaries.py"
    for index, (name, bad, good) in enumerate(CANARIES):
        check = globals()[name]
        if not list(check(bad)):
            yield where, 1, f"canary {index}: {name} overlooks its planted fault [canary]"
        for path, line, text in check(good):
            yield where, 1, f"canary {index}: {name} cries wolf: {path}:{line} {text} [canary]"
    for name in {check.__name__ for check in CHECKS} - {canary[0] for canary in CANARIES}:
        yield where, 1, f"{name} has no canary [canary]"


DOCUMENTS = (".md", ".1", ".7", ".8")


def read_tree():
    paths = [p for p in ROOT.iterdir() if p.is_file()]
    for folder in FOLDERS:
        paths += (p for p in (ROOT / folder).rglob("*") if p.is_file())
    tree = {}
    for path in sorted(paths):
        name = path.relative_to(ROOT).as_posix()
        if "__pycache__" in name or name.startswith("docs/") and path.suffix not in DOCUMENTS:
            continue
        try:
            tree[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a golden binary
    return tree


def main():
    tree = read_tree()
    problems = list(check_canaries())
    for check in CHECKS:
        problems += check(tree)
    for path, line, text in problems:
        print(f"{path}:{line}: {text}")
    sources = sum(map(is_source, tree))
    print(f"tidy: {len(CHECKS)} checks over {sources} sources, {len(problems)} problems")
    return 1 if problems or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
