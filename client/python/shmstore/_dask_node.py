"""What shmstore.dask adds to a worker and to the scheduler.

A worker of a node (see _engines.py) holds the arrays that were brought there, under the key of each
broadcast, until the scheduler says ``shmstore-drop``. Arrays come by a name in the node's store, so
one that is there is attached to, and one that is not is fetched by exactly one worker, the one
whose draft it is: ``shmstore_read`` at a worker of another node, piece by piece, through Dask's own
connections, straight into the draft. The scheduler says ``shmstore-drop`` when no client holds the
broadcast any more and no task that it knows mentions it.

All methods of Node run in the worker's event loop, except ``value``.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

if TYPE_CHECKING:
    # Dask's annotations differ from version to version, and it need not be installed.
    Comm = Any
    Scheduler = Any
    Worker = Any
    dask_serialize: Any
    get_worker: Any
    send_recv: Any
    serialize_numpy_ndarray: Any
    sync: Any
    to_serialize: Any

    class GraphNode:
        """Dask's."""

        __slots__ = ("_dependencies", "key")
        key: Any
        _dependencies: frozenset[Any]

    class SchedulerPlugin:
        """Dask's."""

    class WorkerPlugin:
        """Dask's."""
else:
    from dask._task_spec import GraphNode
    from distributed import Scheduler, SchedulerPlugin, Worker, WorkerPlugin, get_worker
    from distributed.comm.core import Comm
    from distributed.core import send_recv
    from distributed.protocol import to_serialize
    from distributed.protocol.numpy import serialize_numpy_ndarray
    from distributed.protocol.serialize import dask_serialize
    from distributed.utils import sync

from . import _engines, _errors, _handle
from ._array import SharedArray, lease_around
from ._client import Client
from ._engines import CHUNK_BYTES, NO_STORE, Spec
from .sharing import in_store

NAME = "shmstore"

#: Store id of this process's node, told to whoever connects.
here: Optional[int] = None


class Missing(LookupError):
    """The worker that was asked does not have the array."""


async def read_all(pool: Any, address: str, spec: Spec, out: Any) -> None:
    """Fills ``out``, bytes, with the array as the worker at ``address`` has it.

    pool: the ``rpc`` of a worker or a client. Raises Missing; OSError when the worker is gone.
    """
    comm = await pool.connect(address)
    try:
        for start in range(0, spec.nbytes, CHUNK_BYTES):
            stop = min(start + CHUNK_BYTES, spec.nbytes)
            reply = await send_recv(
                comm, op="shmstore_read", spec=list(spec), start=start, stop=stop
            )
            if reply["status"] != "OK":
                raise Missing(f"{address} does not have {spec.name}")
            out[start:stop] = np.frombuffer(reply["data"], np.uint8)
    finally:
        pool.reuse(address, comm)


# --- workers --------------------------------------------------------------------------------------


class NodePlugin(WorkerPlugin):
    """Makes every worker, also one that comes later, a part of its node."""

    name = NAME
    idempotent = True

    async def setup(self, worker: Worker) -> None:
        if NAME not in worker.extensions:
            worker.extensions[NAME] = Node(worker)
        await worker.extensions[NAME].connect()


class Node:
    """A worker as a part of its node; ``worker.extensions["shmstore"]``."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._client: Optional[Client] = None
        self._error = "not connected"
        self._held: dict[str, Any] = {}
        self._drafts: dict[str, Any] = {}
        self._received: dict[str, int] = {}
        self._received_total = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._dropped: deque[str] = deque(maxlen=1000)  # a late hold() must not keep for ever
        worker.handlers.update(
            shmstore_node=self.describe,
            shmstore_read=self.read,
            shmstore_write=self.write,
            shmstore_hold=self.hold,
            shmstore_drop=self.drop,
            shmstore_open=self.open,
        )
        worker.stream_handlers["shmstore-drop"] = self.drop
        _handle.elsewhere = foreign

    async def connect(self) -> None:
        global here
        if self._client is None:
            try:
                self._client = await asyncio.to_thread(_engines.default_client)
            except _errors.Error as error:
                self._error = str(error)
            else:
                here = self._client.store_id
                # Connections from before do not know the node: they are made anew.
                self._worker.rpc.collect()

    def describe(self, spec: Any = None) -> dict[str, Any]:
        """Which node this is; and whether it has an array, filled and sealed."""
        client = self._client
        has = False
        if client is not None and spec is not None:
            try:
                has = _engines.find(client, Spec.of(spec)) is not None
            except _errors.Error:
                pass
        return {
            "status": "OK",
            "store": None if client is None else client.store_id,
            "node": self._error if client is None else _engines.node_text(client),
            "has": has,
            "received": dict(self._received),
            "received_total": self._received_total,
        }

    def read(self, spec: Any, start: int, stop: int) -> dict[str, Any]:
        """A piece of an array that this node has, for a worker of another one."""
        found = None if self._client is None else _engines.find(self._client, Spec.of(spec))
        if found is None:
            return {"status": "missing"}
        # The view keeps the array until it has been sent.
        return {"status": "OK", "data": to_serialize(_engines.bytes_of(found)[start:stop])}

    async def write(self, key: str, spec: Any, start: int, data: Any) -> dict[str, Any]:
        """A piece of an array from a client. The pieces come in order."""
        spec = Spec.of(spec)
        try:
            if start == 0:
                array, begun = await self._begin(spec)
                if not begun:
                    return self._keep(key, array, have=True)
                self._drafts[key] = array
            draft = self._drafts[key]
            piece = np.frombuffer(data, np.uint8)
            _engines.flat(draft)[start : start + len(piece)] = piece
            self._count(key, len(piece))
            if start + len(piece) < spec.nbytes:
                return {"status": "OK", "have": False}
            return self._keep(key, self._drafts.pop(key).seal(), have=True)
        except _errors.Error as error:
            return _failure(error)

    async def hold(self, key: str, spec: Any, sources: Any) -> dict[str, Any]:
        """Keeps the node's copy until ``drop``. A node that has none fetches it from the workers
        ``sources``, whichever answers; None: that is an error."""
        spec = Spec.of(spec)
        try:
            if sources is None:
                array = await self._attach(spec)
            else:
                array = await self._obtain(key, spec, sources)
        except (_errors.Error, OSError) as error:
            return _failure(error)
        return self._keep(key, array, have=True)

    def drop(self, key: str) -> None:
        self._dropped.append(key)
        for table in (self._held, self._drafts, self._received, self._locks):
            table.pop(key, None)

    def value(self, key: str, spec: Spec, origin: str) -> Any:
        """The array, read-only, for a task: any thread. Brings it here if it is not."""
        array = self._held.get(key)
        if array is None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                array = sync(self._worker.loop, self._late, key, spec, origin)
            else:
                array = None if self._client is None else _engines.find(self._client, spec)
                if array is None:
                    raise _errors.NotFound(
                        f"{spec.name}: made at {origin}, not at {self._where()}; a coroutine cannot"
                        " wait for it to be brought here, a function can"
                    )
        return array.view()

    def open(self, arguments: bytes) -> dict[str, Any]:
        """The array of a handle of this node, by value, for a worker of another one."""
        found = _handle.open(*pickle.loads(arguments))
        if isinstance(found, Foreign):
            return {"status": "missing"}
        return {"status": "OK", "data": to_serialize(np.asarray(found))}

    def fetch_foreign(self, arguments: tuple[Any, ...], error: str) -> Any:
        """The array of a handle of another node, a copy for this task: in a task's thread."""
        return sync(self._worker.loop, self._fetch_foreign, arguments, error)

    # -- inside ------------------------------------------------------------------------------------

    def _where(self) -> str:
        return self._worker.address if self._client is None else _engines.node_text(self._client)

    def _keep(self, key: str, array: Any, have: bool) -> dict[str, Any]:
        if key not in self._dropped:
            self._held[key] = array
        return {"status": "OK", "have": have}

    def _count(self, key: str, nbytes: int) -> None:
        self._received[key] = self._received.get(key, 0) + nbytes
        self._received_total += nbytes

    async def _begin(self, spec: Spec) -> Any:
        if self._client is None:
            raise _errors.Disconnected(self._error)
        # In a thread: it waits for memory, or for another process.
        return await asyncio.to_thread(_engines.find_or_begin, self._client, spec)

    async def _attach(self, spec: Spec) -> Any:
        if self._client is None:
            raise _errors.Disconnected(self._error)
        array = await asyncio.to_thread(_engines.find, self._client, spec, None)
        if array is None:
            raise _errors.NotFound(f"{spec.name}: not at {self._where()}")
        return array

    async def _obtain(self, key: str, spec: Spec, sources: Any) -> Any:
        array, begun = await self._begin(spec)
        if begun:
            with array:  # sealed at the end, dropped on an error
                await self._fetch(key, spec, _engines.flat(array), sources)
        return array

    async def _fetch(self, key: str, spec: Spec, out: Any, sources: Any) -> None:
        for address in sources:
            try:
                await read_all(self._worker.rpc, address, spec, out)
            except (OSError, Missing):
                continue  # That worker died, or let go of the array.
            self._count(key, spec.nbytes)
            return
        raise _errors.NotFound(f"{spec.name}: not at {self._where()}, and at none of {sources}")

    async def _fetch_foreign(self, arguments: tuple[Any, ...], error: str) -> Any:
        replies = await self._worker.scheduler.broadcast(
            msg={"op": "shmstore_node"}, on_error="ignore"
        )
        for address, reply in replies.items():
            if reply["store"] == arguments[0]:
                try:
                    answer = await self._worker.rpc(address).shmstore_open(
                        arguments=pickle.dumps(arguments)
                    )
                except OSError:
                    continue  # That worker died.
                if answer["status"] == "OK":
                    array = answer["data"]
                    array.flags.writeable = False  # what is written to a copy would be lost
                    return array
        raise _errors.NotFound(
            f"{error}; this is {self._where()}, and no worker of that store has it"
        )

    async def _late(self, key: str, spec: Spec, origin: str) -> Any:
        """For a worker or a node that was not there when the array was brought to all."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key in self._held:
                return self._held[key]
            try:
                array = None if self._client is None else _engines.find(self._client, spec, 0)
                if array is None:
                    array = await self._bring(key, spec, origin)
            finally:
                self._locks.pop(key, None)
            self._keep(key, array, have=True)
            return array

    async def _bring(self, key: str, spec: Spec, origin: str) -> Any:
        replies = await self._worker.scheduler.broadcast(
            msg={"op": "shmstore_node", "spec": list(spec)}, on_error="ignore"
        )
        sources = [address for address, reply in replies.items() if reply["has"]]
        try:
            if self._client is not None:
                return await self._obtain(key, spec, sources)
        except NO_STORE as error:
            warnings.warn(f"{spec.name}: a copy for this worker alone: {error}", RuntimeWarning)
        except _errors.NotFound:
            pass  # said below, better
        array = _engines.array_of(spec)
        try:
            await self._fetch(key, spec, _engines.flat(array), sources)
        except _errors.NotFound:
            raise _errors.NotFound(
                f"{spec.name}: made at {origin}, not at {self._where()}, and no worker has it any "
                "more: nobody holds the Broadcast that it belongs to"
            ) from None
        array.flags.writeable = False
        return array


def _failure(error: Exception) -> dict[str, Any]:
    return {"status": "failed", "error": type(error).__name__, "text": str(error)}


# --- between workers ------------------------------------------------------------------------------
#
# Whoever opens a connection and whoever accepts one tell each other their node. An array of the
# store is sent as a handle to the same node, otherwise, and to disk, as any ndarray.


def _introduce(original: Any) -> Any:
    def handshake_info(self: Comm) -> dict[str, Any]:
        return {**original.__get__(self, type(self))(), NAME: here}

    return handshake_info


Comm.handshake_info = _introduce(Comm.__dict__["handshake_info"])


def _serialize(x: SharedArray, context: Any = None) -> Any:
    there = ((context or {}).get("recipient") or {}).get(NAME)
    lease = lease_around(x)
    if there is None or lease is None or lease.store_id != there or not in_store(x):
        return serialize_numpy_ndarray(np.asarray(x), context)
    # Dask's own reader of ndarrays knows this form: the receiver need not have this module.
    return {"pickle": True}, [pickle.dumps(x, 5)]


dask_serialize.register(SharedArray, _serialize)


# --- handles of other nodes -----------------------------------------------------------------------
#
# Dask reads graphs and tasks in its event loop, or, large ones, in a thread, in the scheduler too.
# An exception there ends the connection, not the task. So a handle that cannot be opened there
# becomes something that is opened, or fetched, or fails, where the task runs.


def foreign(error: Exception, arguments: tuple[Any, ...]) -> Optional[Foreign]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if not threading.current_thread().name.startswith("Dask-Offload"):
            return None
    return Foreign(arguments, str(error))


class Foreign(GraphNode):
    """An array of another node among a task's arguments, evaluated by Dask where the task runs."""

    __slots__ = ("arguments", "error")

    def __init__(self, arguments: tuple[Any, ...], error: str) -> None:
        self.key = None
        self._dependencies = frozenset()
        self.arguments = arguments
        self.error = error

    def __call__(self, values: Any = ()) -> Any:
        node = get_worker().extensions.get(NAME)
        if node is None:
            raise _errors.NotFound(self.error)
        return node.fetch_foreign(self.arguments, self.error)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> Any:
        return np.asarray(self(), dtype)

    def __reduce__(self) -> Any:
        return _handle.open, self.arguments

    def copy(self) -> Foreign:
        return self

    def substitute(self, subs: Any, key: Any = None) -> Foreign:
        return self

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + 200

    def __repr__(self) -> str:
        return f"<array {self.arguments[1]} of another node>"


# --- the scheduler --------------------------------------------------------------------------------
#
# A client's hold on a broadcast is a future of its key. When no client has it any more, there may
# be tasks left with the broadcast among their arguments, which may have to run, again perhaps. When
# the last of them is forgotten, nobody can ask for the array.

KEY_PREFIX = "shmstore-broadcast-"

#: Seconds from the end of the last future to the search for tasks: a graph may be on its way.
LINGER = 5.0


class Mention(GraphNode):
    """What a broadcast is among a task's arguments; its ``key`` is that of the broadcast."""

    __slots__ = ("__weakref__",)


def mentions(x: Any) -> Iterator[str]:
    """Keys of the broadcasts in a task."""
    if isinstance(x, Mention):
        yield x.key
    elif isinstance(x, GraphNode):
        yield from mentions(getattr(x, "args", ()))
        yield from mentions(getattr(x, "kwargs", ()))
    elif isinstance(x, (list, tuple, set)):
        for item in x:
            yield from mentions(item)
    elif isinstance(x, dict):
        for item in x.values():
            yield from mentions(item)


class LifePlugin(SchedulerPlugin):
    """Tells the workers to let go of what nobody can ask for."""

    name = NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        _handle.elsewhere = foreign
        self._scheduler = scheduler
        self._ended: set[str] = set()  # no future; tasks not searched yet
        self._tasks: dict[str, set[str]] = {}  # by task: the broadcasts without future it mentions
        self._counts: dict[str, int] = {}  # by such a broadcast: those tasks

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish != "forgotten":
            return
        if isinstance(key, str) and key.startswith(KEY_PREFIX):
            if not self._ended:
                self._scheduler.loop.call_later(LINGER, self._search)
            self._ended.add(key)
        if key in self._tasks:
            for mentioned in self._tasks.pop(key):
                self._counts[mentioned] -= 1
                if self._counts[mentioned] == 0:
                    del self._counts[mentioned]
                    self._drop(mentioned)

    def _search(self) -> None:
        ended, self._ended = self._ended, set()
        for task in self._scheduler.tasks.values():
            mentioned = ended.intersection(mentions(task.run_spec))
            if mentioned:
                self._tasks[task.key] = self._tasks.get(task.key, set()) | mentioned
                for key in mentioned:
                    self._counts[key] = self._counts.get(key, 0) + 1
        for key in ended - self._counts.keys():
            self._drop(key)

    def _drop(self, key: str) -> None:
        message = {"op": "shmstore-drop", "key": key}
        self._scheduler.send_all({}, {worker: [message] for worker in self._scheduler.workers})
