"""Ray with one copy of an array per node, in the store.

    table = shmstore.ray.broadcast(x)
    results = ray.get([f.remote(i, table) for i in range(100)])   # f gets an ndarray, read-only

A *node* is a store: the raylets whose workers reach the same daemon. ``broadcast`` puts the array
into Ray once, and one actor on each node takes it from there into the node's store, so that Ray's
own transport brings it to each node once. The actor holds the copy; all workers of the node, and
whatever other processes there, map it.

Inside a Ray node Ray's own object store shares arrays as well. This one has names, is shared with
programs that know nothing of Ray, and gives its memory back when the last holder is done.
"""

from __future__ import annotations

import uuid
import warnings
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    # Ray need not be installed, and its annotations differ from version to version.
    ray: Any
    NodeAffinitySchedulingStrategy: Any
else:
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise ImportError(f"shmstore.ray needs ray ({error})") from error

import numpy as np

from . import _engines, _errors
from ._engines import NO_STORE, Spec
from .sharing import MIN_BYTES, in_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Broadcast", "broadcast"]

#: How often a node gets another actor for one that died on the way.
_TRIES = 3


def broadcast(x: Any, *, min_bytes: int = MIN_BYTES, fallback: bool = True) -> Any:
    """Brings an array to every node of the cluster once, and returns what stands for it in tasks.

    x: an ndarray, or a list, tuple or dict of them, then the result is one too. An array that is in
        the store is not copied on this node. What is smaller than ``min_bytes`` or has a dtype that
        the store does not know (objects) goes the engine's way: the result is ``ray.put(x)``.
    fallback: workers without a daemon, or whose store is full, get the array from Ray's own object
        store, and a warning names their nodes; False: raises.

    The result, a ``Broadcast``, arrives in tasks and actors as the array, read-only, in the memory
    of their node, wherever in the arguments it is. On a node that came later it is fetched when it
    is needed, and kept there as long as a task has it.

    One small actor per node and call holds the copies. They live as long as somebody in the cluster
    has the Broadcast, a task that waits included, and go with the driver. Blocks until the array is
    everywhere. Raises Disconnected, NoCapacity, QuotaExceeded without ``fallback``.
    """
    items = x.values() if isinstance(x, dict) else x if type(x) in (list, tuple) else [x]
    keepers: Optional[_Keepers] = None
    made = []
    for item in items:
        if isinstance(item, np.ndarray) and item.nbytes >= max(1, min_bytes):
            if not item.dtype.hasobject:
                keepers = keepers or _Keepers(fallback)
                made.append(keepers.bring(item))
                continue
        made.append(ray.put(item))
    if isinstance(x, dict):
        return dict(zip(x, made))
    return type(x)(made) if type(x) in (list, tuple) else made[0]


class Broadcast:
    """An array that is on every node; made by ``broadcast``. Ray unpickles it as the array."""

    def __init__(self, spec: Spec, origin: str, keepers: dict[str, Any]) -> None:
        """Private: use ``broadcast``."""
        self._spec = spec
        self._origin = origin
        self._keepers = keepers

    @property
    def shape(self) -> tuple[int, ...]:
        return self._spec.shape

    @property
    def nbytes(self) -> int:
        return self._spec.nbytes

    @property
    def value(self) -> NDArray[Any]:
        """The array, read-only: this node's copy, or fetched if there is none."""
        return _open(self._spec, self._origin, self._keepers)

    def wire(self) -> dict[str, int]:
        """For each node, by its name (host and socket): how many bytes of this array its actor has
        read out of Ray's object store, which is where Ray's transport brings them."""
        counts = [keeper.received.remote(self._spec.name) for keeper in self._keepers.values()]
        return dict(zip(self._keepers, ray.get(counts)))

    def release(self) -> None:
        """Lets go now, with all that came from the same call of ``broadcast``, without waiting for
        other holders: tasks that come later fail."""
        for keeper in self._keepers.values():
            ray.kill(keeper)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> NDArray[Any]:
        array = np.asarray(self.value, dtype)
        return array.copy() if copy else array

    def __reduce__(self) -> Any:
        return _open, (self._spec, self._origin, self._keepers)

    def __repr__(self) -> str:
        return f"<Broadcast {self._spec.dtype} {self._spec.shape} {self._spec.name}>"


# --- on the nodes ---------------------------------------------------------------------------------


class _Keeper:
    """Holds copies on a node; an actor."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}
        self._received: dict[str, int] = {}

    def node(self) -> tuple[Optional[int], str]:
        """Store id and name of the node; without a store None and why."""
        try:
            client = _engines.default_client()
        except _errors.Error as error:
            return None, f"{ray.util.get_node_ip_address()}: {error}"
        return client.store_id, _engines.node_text(client)

    def hold(self, spec: Spec, boxed: list[Any]) -> Optional[Exception]:
        """boxed: the ObjectRef of the bytes, which Ray brings here if they are asked for. Returns
        an error of the store."""
        try:
            array, begun = _engines.find_or_begin(_engines.default_client(), spec)
        except NO_STORE as error:
            return error
        if begun:
            with array:  # sealed at the end, dropped on an error
                _engines.flat(array)[:] = ray.get(boxed[0])
            self._received[spec.name] = spec.nbytes
        self._held[spec.name] = array
        return None

    def received(self, name: str) -> int:
        return self._received.get(name, 0)

    def read(self, name: str) -> NDArray[np.uint8]:
        return np.asarray(_engines.flat(self._held[name]))


def _open(spec: Spec, origin: str, keepers: dict[str, Any]) -> NDArray[Any]:
    """The array of a Broadcast in this process."""
    client, error = None, None
    try:
        client = _engines.default_client()
        array = _engines.find(client, spec)
        if array is not None:
            return array
        array, begun = _engines.find_or_begin(client, spec)
        if begun:
            try:
                with array:
                    out = _engines.flat(array)
                    out[:] = _read(spec, origin, keepers, _engines.node_text(client))
            except _errors.NotFound as missing:
                # Ray keeps the traceback, and with it what its frames refer to.
                del array, out
                raise missing.with_traceback(None) from None
        return array
    except NO_STORE as caught:
        error = caught
    where = "a process without a store" if client is None else _engines.node_text(client)
    warnings.warn(f"{spec.name}: from Ray's own store: {error}", RuntimeWarning, stacklevel=2)
    source = _read(spec, origin, keepers, where)
    copied = _engines.array_of(spec, source)
    copied.flags.writeable = False
    return copied


def _read(spec: Spec, origin: str, keepers: dict[str, Any], where: str) -> NDArray[np.uint8]:
    for keeper in keepers.values():
        try:
            found: NDArray[np.uint8] = ray.get(keeper.read.remote(spec.name))
            return found
        except (ray.exceptions.RayError, KeyError):
            continue  # That node is gone.
    raise _errors.NotFound(
        f"{spec.name}: made at {origin}, not at {where}, and none of {list(keepers)} has it any "
        "more"
    )


# --- from the driver ------------------------------------------------------------------------------


class _Keepers:
    """The actors of one call of ``broadcast``, one for each node."""

    def __init__(self, fallback: bool) -> None:
        self._fallback = fallback
        self._keepers: dict[str, Any] = {}  # by the node's name
        self._places: dict[str, str] = {}  # by the node's name: Ray's id of it
        self._here: Optional[int] = None
        self._origin = "a driver without a store"
        try:
            client = _engines.default_client()
            self._here, self._origin = client.store_id, _engines.node_text(client)
        except _errors.Error:
            pass
        self._stores: set[int] = set()
        without = []
        started = [
            (node["NodeID"], _start(node["NodeID"])) for node in ray.nodes() if node["Alive"]
        ]
        for place, keeper in started:
            try:
                store, name = ray.get(keeper.node.remote())
            except ray.exceptions.RayError:
                continue  # That node is gone.
            if store is None:
                without.append(name)
            elif store not in self._stores:
                self._stores.add(store)
                self._keepers[name], self._places[name] = keeper, place
        if without and not fallback:
            raise _errors.Disconnected(f"no store at {'; '.join(without)}")
        if without:
            _warn(f"workers get the array from Ray's own store: no store at {'; '.join(without)}")

    def bring(self, x: NDArray[Any]) -> Any:
        if not self._keepers:
            return ray.put(x)
        array = _engines.contiguous(x)
        if self._here in self._stores:
            try:
                array = _engines.share_whole(x if in_store(x) else array)
            except NO_STORE:
                pass  # The keeper of this node will say so, or find room.
        spec = _engines.spec_of(f"ray/{uuid.uuid4().hex}", array)
        elsewhere = spec.at is None or self._stores != {spec.at[0]}
        boxed = [ray.put(_engines.flat(array).view(np.ndarray))] if elsewhere else []
        asked = {name: self._ask(name, spec, boxed) for name in self._keepers}
        keepers = {}
        for name, answer in asked.items():
            error = self._outcome(name, answer, spec, boxed)
            if error is None:
                keepers[name] = self._keepers[name]
            elif not self._fallback:
                raise error
            else:
                _warn(f"workers get the array from Ray's own store at {name}: {error}")
        return Broadcast(spec, self._origin, keepers) if keepers else ray.put(x)

    def _ask(self, name: str, spec: Spec, boxed: list[Any]) -> Any:
        return self._keepers[name].hold.remote(spec, boxed)

    def _outcome(
        self, name: str, answer: Any, spec: Spec, boxed: list[Any]
    ) -> Optional[Exception]:
        error: Optional[Exception] = None
        for _ in range(_TRIES):
            try:
                outcome: Optional[Exception] = ray.get(answer)
                return outcome
            except ray.exceptions.RayActorError as caught:
                error = caught
                self._keepers[name] = _start(self._places[name])
                answer = self._ask(name, spec, boxed)
        return error


def _start(place: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(place, soft=False)
    return ray.remote(num_cpus=0)(_Keeper).options(scheduling_strategy=strategy).remote()


def _warn(text: str) -> None:
    warnings.warn(f"shmstore.ray.broadcast: {text}", RuntimeWarning, stacklevel=4)
