"""Dask with one copy of an array per node.

    with distributed.Client(...) as client:
        table = shmstore.dask.broadcast(client, x)          # to each node once, over Dask's wires
        futures = client.map(f, range(100), table=table)    # f gets an ndarray, read-only

A *node* is a store: the workers that reach the same daemon. ``broadcast`` brings an array to each
node exactly once; all workers of the node map that copy. Arrays of the store that tasks return move
between workers of one node as handles of 200 bytes, between nodes by value.

Importing this module registers the serialisation of SharedArray with Dask; ``setup`` and
``broadcast`` load it on the workers and the scheduler, where shmstore has to be installed.
"""

from __future__ import annotations

import asyncio
import uuid
import warnings
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    # Dask's annotations differ from version to version, and it need not be installed.
    Client = Any
    get_worker: Any
    send_recv: Any
    to_serialize: Any
    tokenize: Any
else:
    try:
        from dask.tokenize import tokenize
        from distributed import Client, get_worker
        from distributed.core import send_recv
        from distributed.protocol import to_serialize
    except ImportError as error:
        raise ImportError(
            f"shmstore.dask needs dask and distributed, 2024.12 or later ({error})"
        ) from error

import numpy as np

from . import _connect, _dask_node, _engines, _errors
from ._array import lease_around
from ._dask_node import KEY_PREFIX, NAME, LifePlugin, Mention, Node, NodePlugin
from ._engines import CHUNK_BYTES, NO_STORE, Spec
from .sharing import MIN_BYTES, in_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Broadcast", "broadcast", "setup", "traffic"]

#: Seconds for a direct connection from a client to a worker, before the scheduler has to pass on.
_DIRECT_TIMEOUT = 5


def setup(client: Client) -> Any:
    """Loads this module on the scheduler and on all workers, also those that come later.

    Needed for handing arrays from worker to worker by handle; ``broadcast`` does it by itself.
    A second call does nothing. Returns an awaitable if the client is asynchronous.
    """
    return client.sync(_setup, client)


def broadcast(
    client: Client,
    x: Any,
    *,
    min_bytes: int = MIN_BYTES,
    fallback: bool = True,
    direct: Optional[bool] = None,
    hash: bool = True,
) -> Any:
    """Brings an array to every node of the cluster once, and returns what stands for it in tasks.

    x: an ndarray, or a list, tuple or dict of them, then the result is one too. An array that is in
        the store is not copied on this node. What is smaller than ``min_bytes`` or has a dtype that
        the store does not know (objects) goes the engine's way: the result is a Future of
        ``client.scatter``, to be used alike.
    fallback: workers without a daemon, or whose store is full, are served by the engine, a copy for
        each worker that needs the array, and a warning names them; False: raises.
    direct: whether the first copy goes from here straight to a worker; False: through the
        scheduler; None: straight if a connection can be made.
    hash: name the copies by their contents, so that broadcasting equal contents again moves
        nothing; costs a pass over the array. False: this call has its own.

    The result, a ``Broadcast``, is an argument for ``submit``, ``map``, ``delayed`` …, also inside
    lists, tuples and dicts: the function gets the array, read-only, in the memory of its node.
    Inside other objects, use ``np.asarray(b)`` in the task. Later workers and nodes get the array
    with the first task that needs it, a node still once.

    The copies live as long as a client holds the Broadcast or the scheduler knows a task that has
    it as an argument, and some seconds more; they go when the client dies.
    Raises NO_STORE errors without ``fallback``, OSError if no worker could be reached. Returns an
    awaitable if the client is asynchronous.
    """
    return client.sync(_broadcast_all, client, x, (min_bytes, fallback, direct, hash))


def traffic(client: Client) -> Any:
    """What came to each node over the engine's wires by broadcasts: a dict from the node's name
    (host and socket) to bytes, counted by the workers it has now."""
    return client.sync(_traffic, client, None)


class Broadcast(Mention):
    """An array that is on every node; made by ``broadcast``. Pickles as a name.

    Dask evaluates it where a task runs: the task's function gets the ndarray.
    """

    __slots__ = ("_client", "_future", "_local", "origin", "spec")

    def __init__(self, key: str, spec: Spec, origin: str) -> None:
        """Private: use ``broadcast``."""
        self.key = key
        self.spec = spec
        self.origin = origin  #: The node where it was made, for messages.
        self._dependencies = frozenset()
        self._local: Any = None
        self._client: Optional[Client] = None
        self._future: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    @property
    def value(self) -> NDArray[Any]:
        """The array, read-only: in a task the node's copy; elsewhere fetched, if it is not here."""
        if self._client is not None:
            if self._local is None:
                self._local = self._client.sync(_bring_here, self._client, self.spec)
            local: NDArray[Any] = self._local
            return local
        found: NDArray[Any] = _node_of(get_worker()).value(self.key, self.spec, self.origin)
        return found

    def wire(self) -> Any:
        """Bytes of this array that came over the wires to each node: a dict as ``traffic``'s."""
        if self._client is None:
            raise ValueError("wire(): only where the Broadcast was made")
        return self._client.sync(_traffic, self._client, self.key)

    def release(self) -> None:
        """Lets go now, without waiting for other holders: tasks that come later fail."""
        if self._client is not None:
            self._client.sync(_release, self._client, self.key)
            self._future = self._local = None

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> NDArray[Any]:
        array = np.asarray(self.value, dtype)
        return array.copy() if copy else array

    def __call__(self, values: Any = ()) -> NDArray[Any]:
        return self.value

    def copy(self) -> Broadcast:
        return self

    def substitute(self, subs: Any, key: Any = None) -> Broadcast:
        return self

    def __dask_tokenize__(self) -> Any:
        return NAME, self.key

    def __reduce__(self) -> Any:
        return Broadcast, (self.key, self.spec, self.origin)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + 200

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Broadcast) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<Broadcast {self.spec.dtype} {self.spec.shape} {self.spec.name}>"


def _stand_in() -> None:
    """The task whose future says that a client holds a broadcast."""


def _node_of(worker: Any) -> Node:
    node: Optional[Node] = worker.extensions.get(NAME)
    if node is None:
        raise _errors.Disconnected(f"{worker.address}: shmstore.dask is not set up on this worker")
    return node


# --- from the client ------------------------------------------------------------------------------


async def _setup(client: Client) -> None:
    try:
        _dask_node.here = (await asyncio.to_thread(_engines.default_client)).store_id
    except _errors.Error:
        _dask_node.here = None  # A client needs no store.
    await client.register_plugin(LifePlugin())
    await client.register_plugin(NodePlugin())


async def _ask(client: Client, workers: Any = None, **message: Any) -> dict[str, Any]:
    """What the workers answer; those that cannot be reached are left out."""
    replies: dict[str, Any] = await client.scheduler.broadcast(
        msg=message, workers=workers, on_error="ignore"
    )
    return replies


async def _traffic(client: Client, key: Optional[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for reply in (await _ask(client, op="shmstore_node")).values():
        if reply["store"] is not None:
            count = reply["received_total"] if key is None else reply["received"].get(key, 0)
            found[reply["node"]] = found.get(reply["node"], 0) + count
    return found


async def _release(client: Client, key: str) -> None:
    await _ask(client, op="shmstore_drop", key=key)


async def _bring_here(client: Client, spec: Spec) -> NDArray[Any]:
    array: NDArray[Any] = _engines.array_of(spec)
    for address, reply in (await _ask(client, op="shmstore_node", spec=list(spec))).items():
        if reply["has"]:
            try:
                await _dask_node.read_all(client.rpc, address, spec, _engines.flat(array))
            except (OSError, _dask_node.Missing):
                continue
            array.flags.writeable = False
            return array
    raise _errors.NotFound(f"{spec.name}: no worker has it any more")


async def _broadcast_all(client: Client, x: Any, options: Any) -> Any:
    await _setup(client)
    if isinstance(x, dict):
        return {key: await _broadcast(client, item, *options) for key, item in x.items()}
    if type(x) in (list, tuple):
        return type(x)([await _broadcast(client, item, *options) for item in x])
    return await _broadcast(client, x, *options)


async def _broadcast(
    client: Client, x: Any, min_bytes: int, fallback: bool, direct: Optional[bool], hash: bool
) -> Any:
    if not isinstance(x, np.ndarray) or x.nbytes < max(1, min_bytes) or x.dtype.hasobject:
        return await client.scatter(x, direct=direct, hash=hash)
    nodes, without = await _nodes(client)
    if without and not fallback:
        raise _errors.Disconnected(f"no store at {_named(without)}")
    if not nodes:
        _warn("no worker has a store: the array goes the engine's way", without)
        return await client.scatter(x, direct=direct, hash=hash)
    array = _engines.contiguous(x)
    name = f"dask/{tokenize(_identity(array)) if hash else uuid.uuid4().hex}"
    local = None
    if _dask_node.here in nodes:
        try:
            array = local = await asyncio.to_thread(
                _engines.share_whole, x if in_store(x) else array
            )
        except NO_STORE:
            pass  # A worker of this node will say so, or find room.
    spec = _engines.spec_of(name, array)
    made = Broadcast(KEY_PREFIX + uuid.uuid4().hex, spec, _origin())
    made._client, made._local = client, local
    made._future = client.submit(_stand_in, key=made.key, pure=False)
    plan = _Plan(client, made.key, spec, array, direct)
    failed = await plan.carry_out(nodes)
    if failed and not fallback:
        raise failed[0]
    if failed:
        _warn(str(failed[0]), {})
    if without:
        _warn("each worker that needs the array gets a copy of its own", without)
    return made


def _identity(array: NDArray[Any]) -> Any:
    """What a copy's name is made of: contents; for an array of the store, its id says as much."""
    lease = lease_around(array)
    return (lease.store_id, lease.id) if lease is not None and _engines.is_whole(array) else array


def _origin() -> str:
    try:
        return _engines.node_text(_connect.default_client())
    except _errors.Error as error:
        return f"a client without a store ({error})"


def _named(without: dict[str, str]) -> str:
    return "; ".join(f"{address} ({reason})" for address, reason in without.items())


def _warn(text: str, without: dict[str, str]) -> None:
    where = f": no store at {_named(without)}" if without else ""
    warnings.warn(f"shmstore.dask.broadcast: {text}{where}", RuntimeWarning, stacklevel=2)


async def _nodes(client: Client) -> tuple[dict[int, list[str]], dict[str, str]]:
    """Workers by store; and those that have none, with the reason."""
    nodes: dict[int, list[str]] = {}
    without: dict[str, str] = {}
    while not nodes and not without:
        for address, reply in (await _ask(client, op="shmstore_node")).items():
            if reply["store"] is None:
                without[address] = reply["node"]
            else:
                nodes.setdefault(reply["store"], []).append(address)
        if not nodes and not without:
            await client.wait_for_workers(1)
    return nodes, without


class _Plan:
    """One broadcast on its way: from here to one node, from those that have it to the others."""

    def __init__(
        self, client: Client, key: str, spec: Spec, array: Any, direct: Optional[bool]
    ) -> None:
        self.client = client
        self.key = key
        self.spec = spec
        self.array = array
        self.direct = direct
        self.lost: set[str] = set()  # not asked again: to connect takes long to fail

    async def carry_out(self, nodes: dict[int, list[str]]) -> list[Exception]:
        """Errors of the stores of nodes that could not take it; their workers do without."""
        failed: list[Exception] = []
        replies = await _ask(self.client, op="shmstore_node", spec=list(self.spec))
        have = {reply["store"] for reply in replies.values() if reply["has"]} & nodes.keys()
        todo = [store for store in nodes if store not in have]
        while todo and not have:
            store = todo.pop(0)
            try:
                if await self._push(nodes[store]):
                    have.add(store)
            except NO_STORE as error:
                failed.append(error)
        while todo:
            # Each node that has it serves one other at a time; their number doubles.
            now, todo = todo[: len(have)], todo[len(have) :]
            results = await asyncio.gather(
                *(
                    self._spread(nodes[store], [nodes[one] for one in _from(have, i)])
                    for i, store in enumerate(now)
                )
            )
            have.update(store for store, error in zip(now, results) if error is None)
            failed += [error for error in results if error is not None]
        if not have and not failed:
            raise OSError("no worker could be reached")
        everybody = [address for store in have for address in nodes[store]]
        await self._tell(everybody, None)
        return failed

    async def _tell(self, workers: list[str], sources: Optional[list[str]]) -> dict[str, Any]:
        workers = [address for address in workers if address not in self.lost]
        replies = await _ask(
            self.client, workers, op="shmstore_hold", key=self.key, spec=list(self.spec),
            sources=sources,
        )
        self.lost |= set(workers) - replies.keys()
        return replies

    async def _spread(self, workers: list[str], have: list[list[str]]) -> Optional[Exception]:
        """Lets one worker of a node fetch the array; the next one if it dies."""
        sources = [address for node in have for address in node]
        error: Optional[Exception] = None
        for address in workers:
            reply = (await self._tell([address], sources)).get(address)
            if reply is None:
                continue
            if reply["status"] == "OK":
                return None
            error = _error_of(reply)
            if isinstance(error, NO_STORE):
                break
        return error or OSError(f"none of {workers} could be reached")

    async def _push(self, workers: list[str]) -> bool:
        """Sends the array to one worker of a node; to the next one if it dies."""
        for address in workers:
            try:
                await self._push_to(address)
            except OSError:
                self.lost.add(address)
                continue
            return True
        return False

    async def _push_to(self, address: str) -> None:
        memory = _engines.bytes_of(self.array)
        send = await self._sender(address)
        for start in range(0, len(memory), CHUNK_BYTES):
            reply = await send(
                op="shmstore_write", key=self.key, spec=list(self.spec), start=start,
                data=to_serialize(memory[start : start + CHUNK_BYTES]),
            )
            if reply["status"] != "OK":
                raise _error_of(reply)
            if reply["have"]:
                return

    async def _sender(self, address: str) -> Any:
        """A function that sends a message to a worker and returns the answer."""
        if self.direct is not False:
            pool = self.client.rpc
            try:
                pool.reuse(address, await pool.connect(address, timeout=_DIRECT_TIMEOUT))
            except OSError:
                if self.direct:
                    raise
            else:
                return lambda **message: _send(pool, address, message)

        async def through_scheduler(**message: Any) -> Any:
            reply = (await _ask(self.client, [address], **message)).get(address)
            if reply is None:
                raise OSError(f"{address} could not be reached")
            return reply

        return through_scheduler


async def _send(pool: Any, address: str, message: dict[str, Any]) -> Any:
    comm = await pool.connect(address)
    try:
        return await send_recv(comm, **message)
    finally:
        pool.reuse(address, comm)


def _from(have: set[int], i: int) -> list[int]:
    """The nodes in ``have``, beginning with the i-th."""
    ordered = sorted(have)
    return ordered[i:] + ordered[:i]


def _error_of(reply: dict[str, Any]) -> Exception:
    kind = getattr(_errors, reply["error"], OSError)
    return kind(reply["text"])
