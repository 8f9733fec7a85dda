"""Faults planted for tests/tidy.py, a tree for each, and the same tree without the fault."""

LINE_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600

OPS = "enum class Op : std::uint16_t {\n  seal = 4,  ///< x\n  fork = 13,\n  list = 64,\n};\n"
POINTS = 'constexpr std::string_view kKillPoints[] = {"seal.before_send", "seal.after_send"};\n'
BEFORE = 'SHMSTORE_KILL_POINT("seal.before_send");\n'
AFTER = 'SHMSTORE_KILL_POINT("seal.after_send");\n'
KILL = {"include/shmstore/protocol.hpp": OPS, "client/kill_points.hpp": POINTS}
LONG = "  ++x;\n" * FUNCTION_LINES_MAX
TOO_MANY = "//\n" * (FILE_LINES_MAX + 1)
TESTPATHS = {"tools/test": "pytest_folders=(tests/python tests/shmctl)\n"}
JSON = '#include <nlohmann/json.hpp>\n'

SEND = "pass_kill_point(op, Step::before_send);\n  send_frame(fd, parts);\n"
SENT = "pass_kill_point(op, Step::after_send);\n"

CANARIES = (  # (check, tree with one fault or more, the same tree without)
    ("check_line_length", {"server/a.cpp": "/" * (LINE_MAX + 1)}, {"server/a.cpp": "/" * LINE_MAX}),
    (
        "check_function_length",
        {"server/a.cpp": f"namespace a {{\nA::A(int x) : b_{{1}}, c_(2) {{\n{LONG}}}\n}}\n"},
        {"server/a.cpp": f"struct A {{\n{LONG}  int b{{}};\n  void f() {{ g(); }}\n}};\n"},
    ),
    (
        "check_function_length",
        {"server/a.cpp": f'TEST_CASE("x") {{\n{LONG}}}\n'},
        {"server/a.cpp": f"const T t = {{\n{LONG}}};\n"},
    ),
    (
        "check_function_length",
        {"tests/a.py": "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX},
        {"tests/a.py": "def f():\n    x = 1\n" + "x = 1\n" * FUNCTION_LINES_MAX},
    ),
    (
        "check_file_length",
        {"server/a.cpp": TOO_MANY},
        {"server/a.cpp": "// Over 600 lines because it is a table.\n" + TOO_MANY},
    ),
    (
        "check_include_direction",
        {"server/registry.cpp": '#include "server/session.hpp"\n', "server/session.hpp": ""},
        {"server/session.cpp": '#include "server/registry.hpp"\n', "server/registry.hpp": ""},
    ),
    (
        "check_include_direction",
        {"include/shmstore/a.hpp": "#include <boost/asio.hpp>\n"},
        {"include/shmstore/a.hpp": "#include <vector>\n"},
    ),
    (
        "check_include_direction",
        {"client/a.cpp": '#include "server/quota.hpp"\n', "server/quota.hpp": ""},
        {"client/a.cpp": '#include "client/a.hpp"\n', "client/a.hpp": ""},
    ),
    (
        "check_heavy_headers",
        {"server/j.hpp": JSON, **{f"server/{i}.cpp": '#include "j.hpp"\n' for i in range(9)}},
        {"server/j.hpp": JSON, **{f"server/{i}.cpp": '#include "j.hpp"\n' for i in range(8)}},
    ),
    (
        "check_banned",
        {"tests/unit/a.cpp": "std::this_thread::sleep_for(1s);\n"},
        {"tests/unit/a.cpp": '// sleep_for(1s)\nf("sleep_for(1s)");\n'},
    ),
    (
        "check_banned",
        {"server/a.cpp": "sprintf(b, f);\n"},
        {"server/a.cpp": "snprintf(b, n, f);\nsprintf(b, f);  // tidy: allow(sprintf) because\n"},
    ),
    (
        "check_banned",
        {"examples/a.py": "os.system(x)\n"},
        {"examples/a.py": '"""os.system(x)"""\n'},
    ),
    (
        "check_fixed_sleeps",
        {"tests/python/a.py": "time.sleep(1)\n"},
        {"tests/python/a.py": "while not ready():\n    time.sleep(0.1)\n"},
    ),
    ("check_leftovers", {"docs/a.md": "FIX" + "ME\n"}, {"docs/a.md": "fixed\n"}),
    (
        "check_built",
        {"tests/unit/a.cpp": "", "tests/unit/CMakeLists.txt": "add_executable(unit_tests ba.cpp)"},
        {"tests/unit/a.cpp": "", "tests/unit/CMakeLists.txt": "add_executable(unit_tests a.cpp)"},
    ),
    (
        "check_collected",
        {**TESTPATHS, "tests/python/helpers.py": "def test_x():\n    pass\n"},
        {**TESTPATHS, "tests/python/test_x.py": "def test_x():\n    pass\n"},
    ),
    ("check_pragma_once", {"client/a.hpp": ""}, {"client/a.hpp": "#pragma once\n"}),
    (
        "check_manuals",
        {"server/options.cpp": 'f("--socket");', "docs/man/shmstored.8": "\\-\\-socks"},
        {"server/options.cpp": 'f("--socket");', "docs/man/shmstored.8": "\\-\\-socket"},
    ),
    (
        "check_kill_points",
        {**KILL, "client/a.cpp": BEFORE},
        {**KILL, "client/a.cpp": BEFORE + AFTER},
    ),
    (
        "check_kill_points",
        {**KILL, "client/a.cpp": BEFORE + AFTER + 'SHMSTORE_KILL_POINT("x.before_map");\n'},
        {**KILL, "client/a.cpp": BEFORE + AFTER},
    ),
    (
        "check_kill_points",
        {**KILL, "client/kill_points.hpp": POINTS.replace("seal", "s"), "client/a.cpp": BEFORE},
        {**KILL, "client/a.cpp": BEFORE + AFTER},
    ),
    (
        "check_kill_doors",
        {**KILL, "client/a.cpp": f"void f() {{\n  {SEND}}}\nvoid g() {{\n  {SENT}}}\n"},
        {**KILL, "client/a.cpp": f"void f() {{\n  {SEND}  {SENT}}}\n"},
    ),
    (
        "check_kill_doors",
        {"client/a.cpp": "void f() {\n  munmap(at, bytes);\n}\n"},
        {"client/mapping_cache.cpp": "void f() {\n  munmap(at, bytes);\n}\n"},
    ),
)
