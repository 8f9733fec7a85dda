"""concurrent.futures.ProcessPoolExecutor: arguments and results are pickled through pipes."""

import concurrent.futures

from tasks.backends.base import Base
from tasks.data import perform
from tasks.programs import levels
from tasks.workers import START, ready, start_worker


class Backend(Base):
    def start(self):
        self.pool = concurrent.futures.ProcessPoolExecutor(
            self.workers, mp_context=START, initializer=start_worker
        )
        self.pool.submit(ready).result()

    def stop(self):
        self.pool.shutdown()

    def run_wave(self, tasks):
        results = {}
        for level in levels(tasks):
            futures = [self.pool.submit(perform, *self.arguments(task)) for task in level]
            for task, future in zip(level, futures):
                results[id(task)] = self.note(task, future.result())
        return [results[id(task)] for task in tasks]
