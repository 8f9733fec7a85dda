"""Ray: arrays are objects of its store, immutable; what a task writes is a new object."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from tasks import data, workers
from tasks.backends.base import Base
from tasks.programs import levels

OBJECT_STORE_BYTES = 6 << 30


def perform(kernel, extra, *references):
    """Ray gives a task its objects where they are arguments, not inside of lists."""
    return data.perform(kernel, references, extra)


class Backend(Base):
    def start(self):
        ray.init(
            "local",  # not one that happens to run on this machine
            num_cpus=self.workers,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
        )
        self.task = ray.remote(num_returns=2)(perform)
        self.as_objects = type(self.way) is data.Copy
        ready = ray.remote(workers.ready if self.as_objects else workers.start_worker)
        ray.get([ready.remote() for _ in range(self.workers)])

    def stop(self):
        ray.shutdown()

    def share(self, array):
        return ray.put(array) if self.as_objects else super().share(array)

    def output(self, array):
        return ray.put(array) if self.as_objects else super().output(array)

    def run_wave(self, tasks):
        if self.as_objects:  # Ray knows by the objects which task has to wait for which
            return ray.get([self.submit(task) for task in tasks])
        results = {}
        for level in levels(tasks):
            done = ray.get([self.submit(task) for task in level])
            results.update((id(task), result) for task, result in zip(level, done))
        return [results[id(task)] for task in tasks]

    def submit(self, task):
        kernel, references, extra = self.arguments(task)
        written, result = self.task.remote(kernel, extra, *references)
        if self.as_objects:
            self.references[task.arrays[-1]] = written
        return result

    def collect(self, name):
        return ray.get(self.references[name]) if self.as_objects else super().collect(name)
