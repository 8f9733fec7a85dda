"""Checks the house rules that no compiler knows. Run it without arguments: it prints problems as
`file:line: text`, ends with a count, and exits 1 if there is one.

A check is a function from a tree ({path: text}) to problems (path, line, text). Before the real
tree is checked, each check has to find the fault that CANARIES plants for it and to be silent
about the corrected version, so that none can pass because it looks at nothing.

A line that has to break a rule says so, with its reason: `tidy: allow(RULE) because …`, where
RULE is the word in brackets at the end of the problem.
"""

import ast
import re
import sys
from pathlib import Path

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
    ("atoi", "", r"\bato(i|l|ll|f)\s*\(|\bsto(i|l|ll|ul|ull|d|f)\s*\(", "std::from_chars"),
    ("rand", "", r"\bs?rand\s*\(", "<random> with a printed seed"),
    ("regex", "", r"\bstd::regex|<regex>", "a hand-written match: std::regex is slow and throws"),
    ("iostream", r"server/|client/", r"\bstd::(cout|cerr|endl)\b", "the log, or a returned text"),
    ("namespace", "", r"\busing\s+namespace\s+std\s*;", "std:: where it is used"),
    ("shell", "", r"\b(system|popen)\s*\(", "posix_spawn or fork and exec"),
    ("signal", "", r"(?<![\w.>])signal\s*\(\s*SIG\w+,(?!\s*SIG_)", "sigaction"),
    ("exit", r"client/", r"\bstd::(abort|exit|quick_exit|terminate)\b|\bassert\s*\(", "an Error"),
    ("sleep", r"tests/(?!support)|server/", r"\b(u|nano)?sleep\s*\(|\bsleep_(for|until)\s*\(", "wait_until"),
    ("lookup", r"server/", r"\b(getpw|getgr|getaddrinfo|gethostby)\w*\s*\(", "numbers: W5"),
)
BANNED_PYTHON = (
    ("sleep", r"tests/", r"\btime\.sleep\s*\(", "wait_until"),
    ("shell", "", r"\bos\.(system|popen)\s*\(|shell\s*=\s*True", "subprocess with a list"),
    ("eval", "", r"(?<![\w.])(eval|exec)\s*\(", "ast.literal_eval, json"),
    ("except", "", r"^\s*except\s*:", "except with the class that is meant"),
    ("assert", r"client/python/shmstore/", r"^\s*assert\b", "an exception: -O drops assertions"),
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
    """pytest collects test_*.py below tests/python only, and only functions named test_*."""
    for path, text in tree.items():
        if not path.startswith("tests/") or not path.endswith(".py"):
            continue
        name = path.rsplit("/", 1)[-1]
        collected = path.startswith("tests/python/") and name.startswith("test_")
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


# --- the checks and their canaries ---------------------------------------------------------------

CHECKS = (
    check_line_length,
    check_function_length,
    check_file_length,
    check_include_direction,
    check_heavy_headers,
    check_banned,
    check_leftovers,
    check_built,
    check_collected,
    check_pragma_once,
    check_kill_points,
)

OPS = "enum class Op : std::uint16_t {\n  seal = 4,  ///< x\n  fork = 13,\n  list = 64,\n};\n"
POINTS = 'constexpr std::string_view kKillPoints[] = {"seal.before_send", "seal.after_send"};\n'
BEFORE = 'SHMSTORE_KILL_POINT("seal.before_send");\n'
AFTER = 'SHMSTORE_KILL_POINT("seal.after_send");\n'
KILL = {"include/shmstore/protocol.hpp": OPS, "client/kill_points.hpp": POINTS}
LONG = "  ++x;\n" * FUNCTION_LINES_MAX
JSON = '#include <nlohmann/json.hpp>\n'

CANARIES = (  # (check, tree with one fault or more, the same tree without)
    (check_line_length, {"server/a.cpp": "/" * 101}, {"server/a.cpp": "/" * 100}),
    (
        check_function_length,
        {"server/a.cpp": f"namespace a {{\nA::A(int x) : b_{{1}}, c_(2) {{\n{LONG}}}\n}}\n"},
        {"server/a.cpp": f"struct A {{\n{LONG}  int b{{}};\n  void f() {{ g(); }}\n}};\n"},
    ),
    (
        check_function_length,
        {"server/a.cpp": f'TEST_CASE("x") {{\n{LONG}}}\n'},
        {"server/a.cpp": f"const T t = {{\n{LONG}}};\n"},
    ),
    (
        check_function_length,
        {"tests/a.py": "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX},
        {"tests/a.py": "def f():\n    x = 1\n" + "x = 1\n" * FUNCTION_LINES_MAX},
    ),
    (
        check_file_length,
        {"server/a.cpp": "//\n" * 601},
        {"server/a.cpp": "// Over 600 lines because it is a table.\n" + "//\n" * 601},
    ),
    (
        check_include_direction,
        {"server/registry.cpp": '#include "server/session.hpp"\n', "server/session.hpp": ""},
        {"server/session.cpp": '#include "server/registry.hpp"\n', "server/registry.hpp": ""},
    ),
    (
        check_include_direction,
        {"include/shmstore/a.hpp": "#include <boost/asio.hpp>\n"},
        {"include/shmstore/a.hpp": "#include <vector>\n"},
    ),
    (
        check_include_direction,
        {"client/a.cpp": '#include "server/quota.hpp"\n', "server/quota.hpp": ""},
        {"client/a.cpp": '#include "client/a.hpp"\n', "client/a.hpp": ""},
    ),
    (
        check_heavy_headers,
        {"server/j.hpp": JSON, **{f"server/{i}.cpp": '#include "j.hpp"\n' for i in range(9)}},
        {"server/j.hpp": JSON, **{f"server/{i}.cpp": '#include "j.hpp"\n' for i in range(8)}},
    ),
    (
        check_banned,
        {"tests/unit/a.cpp": "std::this_thread::sleep_for(1s);\n"},
        {"tests/unit/a.cpp": '// sleep_for(1s)\nf("sleep_for(1s)");\n'},
    ),
    (
        check_banned,
        {"server/a.cpp": "sprintf(b, f);\n"},
        {"server/a.cpp": "snprintf(b, n, f);\nsprintf(b, f);  // tidy: allow(sprintf) because\n"},
    ),
    (
        check_banned,
        {"tests/python/test_a.py": "time.sleep(1)\n"},
        {"tests/python/test_a.py": '"""time.sleep(1)"""\n'},
    ),
    (check_leftovers, {"docs/a.md": "FIX" + "ME\n"}, {"docs/a.md": "fixed\n"}),
    (
        check_built,
        {"tests/unit/a.cpp": "", "tests/unit/CMakeLists.txt": "add_executable(unit_tests ba.cpp)"},
        {"tests/unit/a.cpp": "", "tests/unit/CMakeLists.txt": "add_executable(unit_tests a.cpp)"},
    ),
    (
        check_collected,
        {"tests/python/helpers.py": "def test_x():\n    pass\n"},
        {"tests/python/test_x.py": "def test_x():\n    pass\n"},
    ),
    (check_pragma_once, {"client/a.hpp": ""}, {"client/a.hpp": "#pragma once\n"}),
    (check_kill_points, {**KILL, "client/a.cpp": BEFORE}, {**KILL, "client/a.cpp": BEFORE + AFTER}),
    (
        check_kill_points,
        {**KILL, "client/a.cpp": BEFORE + AFTER + 'SHMSTORE_KILL_POINT("x.before_map");\n'},
        {**KILL, "client/a.cpp": BEFORE + AFTER},
    ),
    (
        check_kill_points,
        {**KILL, "client/kill_points.hpp": POINTS.replace("seal", "s"), "client/a.cpp": BEFORE},
        {**KILL, "client/a.cpp": BEFORE + AFTER},
    ),
)


def check_canaries():
    """Each check finds what is planted for it, and nothing once that is mended."""
    for index, (check, bad, good) in enumerate(CANARIES):
        where = "tests/tidy.py"
        if not list(check(bad)):
            yield where, 1, f"canary {index}: {check.__name__} overlooks its planted fault [canary]"
        for path, line, text in check(good):
            yield where, 1, f"canary {index}: {check.__name__} cries wolf: {path}:{line} {text}"
    for check in CHECKS:
        if check not in [canary[0] for canary in CANARIES]:
            yield "tests/tidy.py", 1, f"{check.__name__} has no canary [canary]"


def read_tree():
    paths = [p for p in ROOT.iterdir() if p.is_file()]
    for folder in FOLDERS:
        paths += (p for p in (ROOT / folder).rglob("*") if p.is_file())
    tree = {}
    for path in sorted(paths):
        name = path.relative_to(ROOT).as_posix()
        if "__pycache__" in name or name.startswith("docs/") and path.suffix not in (".md", ""):
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
