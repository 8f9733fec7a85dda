"""In the place of `compss`, PyCOMPSs' extension module: a runtime without Java, for one node.

The master side of PyCOMPSs (decorators, serializer, object tracker) and its worker processes (the
"piper") are the real ones; this module is what lies between them. It does what COMPSs does with
data: an object is a file with versions; a task that changes it reads one version and writes the
next, into a file of its own, so that a reader of the old one need not be waited for. A task runs
when the versions it reads exist, on whichever worker process is free.

Not here: more than one node, priorities, constraints, task groups, nested collections. A task that
raises, or whose process dies, is run once more; if it fails again, the next synchronisation raises.

Set by run.py: MINICOMPSS_DIR (scratch folder), MINICOMPSS_WORKERS (processes, default 2),
MINICOMPSS_STORAGE (storage configuration, default null). Workers import this module as well; for
them it reads tasks from a pipe.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

FILE, EXTERNAL_PSCO, COLLECTION, DICT_COLLECTION = 10, 13, 27, 28  # of DataType.java
STRINGS = (8, 9)
IN, OUT, INOUT, CONCURRENT, COMMUTATIVE, IN_DELETE = range(6)
TRIES = 2

# --- in a worker ----------------------------------------------------------------------------------

_commands = None


def set_pipes(_out_path, in_path):
    global _commands
    _commands = open(in_path, "r")


def read_pipes():
    line = _commands.readline()
    if not line:  # Its master is gone.
        os._exit(1)
    return line


def set_debug(_on):
    pass


def emit_event(*_event):
    pass


# --- data and tasks -------------------------------------------------------------------------------


class Version:
    """What an object was at some time: the path of a file, or the id of a stored object."""

    def __init__(self, value, kind=FILE, producer=None):
        self.value = value
        self.kind = kind
        self.producer = producer

    @property
    def ready(self):
        return self.producer is None or self.producer.state == "done"


class Task:
    def __init__(self, number, module, function, has_target, num_returns):
        self.number = number
        self.module = module
        self.function = function
        self.has_target = has_target
        self.num_returns = num_returns
        self.parameters = []  # (type, stream, prefix, name, content type, value)
        self.reads = []
        self.writes = {}  # index of parameter: the version it makes
        self.copies = []  # (from, to): for what it changes
        self.state = "waiting"
        self.tries = 0

    @property
    def name(self):
        return f"{self.module}.{self.function}"

    def message(self, folder):
        """The line that the piper worker takes a task from."""
        log = os.path.join(folder, f"job{self.number}_{self.tries}")
        words = ["EXECUTE_TASK", self.number, folder, log + ".out", log + ".err"]
        words += [0, self.number, "false", _storage(), "METHOD", self.module, self.function]
        words += [0, 1, "localhost", 1, str(self.has_target).lower(), "null"]
        words += [self.num_returns, len(self.parameters)]
        for kind, stream, prefix, name, content, value in self.parameters:
            if isinstance(value, Version):
                kind, value = value.kind, value.value
                if kind == FILE:
                    value = f"{value}:{os.path.basename(value)}:true:true:{value}"
                elif kind == EXTERNAL_PSCO:
                    value = f"{value} R"
            elif callable(value):
                value = value()
            words += [kind, stream, prefix, name, content.replace(" ", "_"), value]
        return " ".join(str(word) for word in [*words, "-", "-", 0]) + "\n"


class Executor:
    """A worker process and its pipes."""

    def __init__(self, number, folder):
        self.number = number
        self.in_path = os.path.join(folder, f"in{number}")
        self.out_path = os.path.join(folder, f"out{number}")
        os.mkfifo(self.in_path)
        os.mkfifo(self.out_path)
        # For reading and writing both, so that neither end is ever without the other.
        self.in_fd = os.open(self.in_path, os.O_RDWR)
        self.out_fd = os.open(self.out_path, os.O_RDWR)
        self.pid_fd = -1
        self.buffer = b""
        self.task = None

    def send(self, text):
        data = text.encode()
        while data:
            data = data[os.write(self.in_fd, data) :]

    def lines(self):
        self.buffer += os.read(self.out_fd, 65536)
        *lines, self.buffer = self.buffer.split(b"\n")
        return [line.decode() for line in lines if line.strip()]


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _storage():
    return os.environ.get("MINICOMPSS_STORAGE", "null")


# --- the runtime ----------------------------------------------------------------------------------


class Runtime:
    def __init__(self):
        self.folder = os.environ["MINICOMPSS_DIR"]
        self.data = {}
        self.tasks = []
        self.failed = None
        self.signatures = {}
        count = int(os.environ.get("MINICOMPSS_WORKERS", "2"))
        self.control = Executor("control", self.folder)
        self.executors = [Executor(i, self.folder) for i in range(1, count + 1)]
        self.worker = self._start_worker()
        for executor in self.executors:
            self._learn_pid(executor)

    def _start_worker(self):
        import pycompss.worker.piper.piper_worker as program

        command = [sys.executable, program.__file__, self.folder, self.folder, self.folder]
        command += ["false", "false", "0", _storage(), "NONE", "localhost", "0"]
        command += ["false", "false", "false", len(self.executors)]
        command += [e.number for e in self.executors]
        command += [e.in_path for e in self.executors]
        command += [e.out_path for e in self.executors]
        command += [self.control.in_path, self.control.out_path]
        with open(os.path.join(self.folder, "worker.log"), "wb") as log:
            return subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_die_with_parent,
            )  # fmt: skip

    def _learn_pid(self, executor):
        self.control.send(f"QUERY_EXECUTOR_ID {executor.in_path} {executor.out_path}\n")
        reply = None
        while reply is None:
            if not select.select([self.control.out_fd], [], [], 1)[0]:
                self._check_worker()
                continue
            reply = next(iter(self.control.lines()), None)
        executor.pid_fd = os.pidfd_open(int(reply.split()[3]))

    def _check_worker(self):
        if self.worker.poll() is not None:
            with open(os.path.join(self.folder, "worker.log")) as log:
                raise RuntimeError(f"the worker ended:\n{log.read()[-4000:]}")

    # -- submission --------------------------------------------------------------------------------

    def submit(self, signature, has_target, num_returns, values, names, types, directions,
               streams, prefixes, contents):  # fmt: skip
        module, function = self.signatures[signature]
        task = Task(len(self.tasks) + 1, module, function, has_target, num_returns)
        for index, value in enumerate(values):
            kind, direction = types[index], directions[index]
            if kind in (FILE, EXTERNAL_PSCO):
                value = self._access(task, index, kind, value, direction)
            elif kind in (COLLECTION, DICT_COLLECTION):
                value = self._collection(task, value)
            elif kind in STRINGS:
                value = f"{len(value.split())} {value}"
            elif isinstance(value, bool):
                value = str(value).lower()
            task.parameters.append(
                (kind, streams[index], prefixes[index], names[index], contents[index], value)
            )
        self.tasks.append(task)
        self.step(0)

    def _current(self, kind, value):
        if kind == EXTERNAL_PSCO:
            return self.data.setdefault(f"storage://{value}", Version(value, kind))
        return self.data.setdefault(value, Version(value))

    def _access(self, task, index, kind, value, direction):
        old = self._current(kind, value)
        if direction != OUT:
            task.reads.append(old)
        if direction in (IN, IN_DELETE, CONCURRENT):
            return old
        path = os.path.join(self.folder, f"d{len(self.data)}v{task.number}_{index}.IT")
        # A stored object is changed where it is; a file is copied first.
        if kind == EXTERNAL_PSCO:
            new = Version(value, kind, task)
        else:
            new = Version(path, FILE, task)
            if direction != OUT:
                task.copies.append((old, new))
        task.writes[index] = new
        self.data[f"storage://{value}" if kind == EXTERNAL_PSCO else value] = new
        return new

    def _collection(self, task, text):
        
        words = text.split()
        path = os.path.join(self.folder, f"collection{task.number}_{len(task.parameters)}")
        elements = []
        for kind, value, content in zip(words[3::3], words[4::3], words[5::3]):
            kind = int(kind)
            version = value
            if kind in (FILE, EXTERNAL_PSCO):
                version = self._current(kind, value)
                task.reads.append(version)
            elements.append((kind, version, content))

        def write():
            with open(path, "w") as file:
                for kind, version, content in elements:
                    if isinstance(version, Version):
                        kind, version = version.kind, version.value
                    file.write(f"{kind} {version} {content}\n")
            return path

        return write

    # -- running -----------------------------------------------------------------------------------

    def step(self, timeout):
        """Starts what can start, then takes in what has ended, waiting for it `timeout` seconds."""
        for task in self.tasks:
            free = next((e for e in self.executors if e.task is None), None)
            if free is None or self.failed:
                break
            if task.state == "waiting" and all(version.ready for version in task.reads):
                self._start(task, free)
        busy = [e for e in self.executors if e.task is not None]
        watched = {e.out_fd: e for e in busy} | {e.pid_fd: e for e in busy}
        for fd in select.select(list(watched), [], [], timeout)[0]:
            executor = watched[fd]
            if fd == executor.out_fd:
                for line in executor.lines():
                    self._ended(executor, line.split())
            elif executor.task is not None:
                self.executors.remove(executor)
                text = "its process died" if self.executors else "no process is left"
                self._failed(executor.task, text, again=bool(self.executors))
        self._check_worker()

    def _start(self, task, executor):
        for old, new in task.copies:
            if old.kind == FILE:
                shutil.copyfile(old.value, new.value)
            else:
                new.kind, new.value = old.kind, old.value
        task.state = "running"
        task.tries += 1
        executor.task = task
        executor.send(task.message(self.folder))

    def _ended(self, executor, words):
        if words[0] not in ("END_TASK", "COMPSS_EXCEPTION"):
            return
        task, executor.task = executor.task, None
        if words[0] == "END_TASK" and words[2] == "0":
            task.state = "done"
            for index, new in task.writes.items():
                if int(words[4 + 2 * index]) == EXTERNAL_PSCO:
                    new.kind, new.value = EXTERNAL_PSCO, words[5 + 2 * index]
        else:
            log = os.path.join(self.folder, f"job{task.number}_{task.tries}.err")
            with open(log) as file:
                self._failed(task, f"failed:\n{file.read()[-6000:]}")

    def _failed(self, task, text, again=True):
        if again and task.tries < TRIES:
            task.state = "waiting"
        else:
            task.state = "failed"
            self.failed = f"task {task.name}: {text}"

    def wait(self, done):
        while not done():
            if self.failed and not any(e.task for e in self.executors):
                raise RuntimeError(self.failed)
            self.step(1)

    def stop(self, well):
        for executor in [*self.executors, self.control]:
            executor.send("QUIT\n")
        if not well:  # Maybe it waits for ever.
            for executor in self.executors:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(executor.pid_fd, signal.SIGKILL)
        self.worker.wait()


_runtime = None


def start_runtime():
    global _runtime
    _runtime = Runtime()


def stop_runtime(code):
    if code == 0:
        barrier(0, True)
    _runtime.stop(well=code == 0)


def register_core_element(_signature, impl_signature, _constraints, _type, *more):
    if impl_signature:
        _runtime.signatures[impl_signature] = tuple(more[-1][:2])


def process_task(_app, signature, _on_failure, _time_out, _priority, _nodes, _reduction, _chunk,
                 _replicated, _distributed, has_target, num_returns, values, names, types,
                 directions, streams, prefixes, contents, _weights, _renames):  # fmt: skip
    _runtime.submit(signature, has_target, num_returns, values, names, types, directions, streams,
                    prefixes, contents)  # fmt: skip


def open_file(_app, name, mode):
    version = _runtime.data.setdefault(name, Version(name))
    _runtime.wait(lambda: version.ready)
    return f"storage://{version.value}" if name.startswith("storage://") else version.value


def get_file(app, name):
    open_file(app, name, IN)


def barrier(_app, _no_more):
    _runtime.wait(lambda: all(task.state == "done" for task in _runtime.tasks))


def close_file(_app, _name, _mode):
    pass


def delete_file(_app, name, *_mode):
    return _runtime is not None and _runtime.data.pop(name, None) is not None


def accessed_file(_app, name):
    return name in _runtime.data


def cancel_application_tasks(_app, _value):
    _runtime.failed = _runtime.failed or "cancelled"


def get_logging_path():
    return _runtime.folder + "/"


def get_master_working_path():
    return _runtime.folder
