"""joblib, Dask and Ray in their own way, with their own schedulers: the backends of examples/ with
`--data copy`. Only the wall clock can be compared; it starts when workers are there."""

import importlib

from engine import Times, clock
from tasks import backends


class Scheduled:
    """A path that brings its engine; stands where paths.Path does."""

    inherits = False

    @classmethod
    def missing(cls):
        try:
            importlib.import_module(cls.package)
            backends.load(cls.package)
        except (ImportError, backends.Missing):
            return f"{cls.package} is not installed"
        return None

    def run(self, program, workers):
        times = Times()
        with backends.load(self.package)(workers, "copy") as backend:
            started = clock()
            backend.run(program)
            times.wall = clock() - started
            return times, {name: backend.collect(name).copy() for name in program.outputs}


class Joblib(Scheduled):
    name = package = "joblib"


class Dask(Scheduled):
    name = "dask"
    package = "dask"


class Ray(Scheduled):
    name = package = "ray"


ALL = (Joblib, Dask, Ray)
