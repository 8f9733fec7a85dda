"""Dask: arrays are scattered to the workers, which send them to each other over TCP; what a task
writes is a new array. With --data store what tasks read is broadcast: it crosses to each node once,
and all workers of the node map that copy."""

import logging
import operator

import distributed
from tasks import data, wire
from tasks.backends.base import Base
from tasks.programs import levels


QUIET = {"silence_logs": logging.WARNING}


class Backend(Base):
    crosses_nodes = True

    def start(self):
        self.broadcasts = []
        self.cluster = self.cluster_on_nodes() if self.sockets else self.cluster_here()
        self.client = distributed.Client(self.cluster)
        self.client.wait_for_workers(self.workers)

    def cluster_here(self):
        return distributed.LocalCluster(
            self.workers, processes=True, threads_per_worker=1, dashboard_address=":0"
        )

    def cluster_on_nodes(self):
        """Workers are told apart by their store's socket, in turn."""
        workers = {}
        for number in range(self.workers):
            socket = self.sockets[number % len(self.sockets)]
            options = {"nthreads": 1, "host": "127.0.0.1", "dashboard": False, **QUIET}
            options["env"] = {"SHMSTORE_SOCKET": socket, "SHMSTORE_AUTOSTART": "0"}
            workers[number] = {"cls": distributed.Nanny, "options": options}
        scheduler = {"dashboard_address": ":0", "port": 0, "host": "127.0.0.1"}
        return distributed.SpecCluster(
            workers=workers,
            scheduler={"cls": distributed.Scheduler, "options": scheduler},
            **QUIET,
        )

    def stop(self):
        self.broadcasts.clear()
        self.client.close()
        self.cluster.close()

    def share(self, array):
        if type(self.way) is data.Copy:
            return self.scatter(array)
        if type(self.way) is data.Store:
            import shmstore.dask

            there = shmstore.dask.broadcast(
                self.client, array, min_bytes=0, fallback=False, hash=False
            )
            self.broadcasts.append(there)
            return there
        return super().share(array)

    def output(self, array):
        return super().output(array) if type(self.way) is data.File else self.scatter(array)

    def scatter(self, array):
        return self.client.scatter(array, hash=False)

    def run_wave(self, tasks):
        if type(self.way) is not data.File:  # Dask knows by the futures what has to wait for what
            return self.client.gather([self.submit(task) for task in tasks])
        results = {}
        for level in levels(tasks):
            done = self.client.gather([self.submit(task) for task in level])
            results.update((id(task), result) for task, result in zip(level, done))
        return [results[id(task)] for task in tasks]

    def submit(self, task):
        done = self.client.submit(data.perform, *self.arguments(task), pure=False)
        if type(self.way) is not data.File:
            written = self.client.submit(operator.itemgetter(0), done, pure=False)
            self.references[task.arrays[-1]] = written
        return self.client.submit(operator.itemgetter(1), done, pure=False)

    def collect(self, name):
        reference = self.references[name]
        if isinstance(reference, distributed.Future):
            return self.client.gather(reference)
        return super().collect(name)

    def report(self):
        if self.broadcasts:
            wire.report([(one.nbytes, one.wire()) for one in self.broadcasts], len(self.sockets))
