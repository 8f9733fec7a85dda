"""joblib: arguments of a megabyte and more are written to files, which workers map. What tasks
write is a mapped file from the start, as joblib's documentation says."""

import os

import numpy as np

import joblib
from tasks import data, ending
from tasks.backends.base import Base
from tasks.programs import levels
from tasks.workers import start_worker


class Backend(Base):
    def start(self):
        self.folder = ending.make_folder(mapped_folder())
        options = {} if type(self.way) is data.Copy else {"initializer": start_worker}
        self.parallel = joblib.Parallel(self.workers, temp_folder=self.folder, **options)
        self.parallel.__enter__()

    def stop(self):
        self.parallel.__exit__(None, None, None)
        ending.remove_folder(self.folder)

    def output(self, array):
        if type(self.way) is not data.Copy:
            return super().output(array)
        number = len(os.listdir(self.folder))
        mapped = np.memmap(f"{self.folder}/output-{number}", array.dtype, "w+", shape=array.shape)
        mapped[:] = array
        return mapped

    def run_wave(self, tasks):
        results = {}
        for level in levels(tasks):
            done = self.parallel(
                joblib.delayed(data.perform)(*self.arguments(task)) for task in level
            )
            results.update((id(task), self.note(task, one)) for task, one in zip(level, done))
        return [results[id(task)] for task in tasks]


def mapped_folder():
    """Where joblib puts its files as well: memory, if there is a file system for it."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
