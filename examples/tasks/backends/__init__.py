"""The engines, one module each; each has a class Backend. See base.py for what that is."""

import importlib

NAMES = ("pool", "joblib", "dask", "ray", "pycompss")


class Missing(Exception):
    """An engine is not installed; the text says what to do."""


def load(name):
    """The Backend of an engine. Raises Missing."""
    try:
        return importlib.import_module(f"tasks.backends.{name}").Backend
    except ImportError as error:
        raise Missing(
            f"{name}: {error}. tools/setup --extras installs Dask and Ray beside joblib; PyCOMPSs "
            "needs its runtime, or at least its Python sources on PYTHONPATH."
        ) from error
