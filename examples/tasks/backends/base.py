"""What an engine has to do for the programs."""

from tasks import data
from tasks.programs import drive


class Base:
    """Runs programs with `workers` worker processes; a context manager: the engine runs in it.

    A subclass starts and stops the engine, and runs a wave of tasks.
    """

    own_stores = True  # whether its workers are told which store to use
    crosses_nodes = False  # whether workers of several nodes can take part

    def __init__(self, workers, way, sockets=()):
        """way: "store", "copy" or "file"; sockets: one for each node's store. Raises ValueError for
        what the engine cannot do."""
        if len(sockets) > 1 and not self.crosses_nodes:
            raise ValueError("it runs on one node only; leave --nodes away")
        self.workers = workers
        self.way = data.WAYS[way]()
        self.sockets = sockets
        self.references = {}

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.references = {}
        self.stop()
        self.way.close()

    def start(self):
        """Starts the engine and its workers."""

    def stop(self):
        """Ends them."""

    def run(self, program):
        """Runs a program. Its outputs are there for `collect` afterwards."""
        self.references = {name: self.share(array) for name, array in program.inputs.items()}
        for name, array in program.outputs.items():
            self.references[name] = self.output(array)
        drive(program, self.run_wave)

    def share(self, array):
        """Publishes an array that tasks only read; returns the reference that they get."""
        return self.way.share(array)

    def output(self, array):
        """The same for an array that tasks write."""
        return self.way.output(array)

    def run_wave(self, tasks):
        """Runs tasks, returns their results in order."""
        raise NotImplementedError

    def collect(self, name):
        """An array, or what tasks have made of it."""
        return self.way.array(self.references[name])

    def report(self):
        """Prints what there is to say about a run."""

    def arguments(self, task):
        """What `perform` gets for a task."""
        return task.kernel, [self.references[name] for name in task.arrays], task.extra

    def note(self, task, done):
        """Takes in what `perform` returned; returns the task's result."""
        written, result = done
        if written is not None:
            self.references[task.arrays[-1]] = written
        return result
