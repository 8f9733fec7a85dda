"""Plasma's notifications, made of the store's events."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from typing import Any, Optional

from .. import Disconnected, Error, NotFound
from ._plasma_objects import TREE, ObjectID, id_of, sizes_of

Note = tuple[ObjectID, int, int]
NOTE = struct.Struct("<20sqq")


def unpack_note(fields: tuple[bytes, int, int]) -> Note:
    return ObjectID(fields[0]), fields[1], fields[2]


class Events:
    """What happens to objects, from now on."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._watch = store.watch(TREE)
        self._known: set[ObjectID] = {
            found
            for entry in store.list(TREE)
            if entry["state"] != "draft" and (found := id_of(entry["name"])) is not None
        }
        self._ready: deque[Note] = deque()
        self._reader: Optional[socket.socket] = None
        self._writer: Optional[socket.socket] = None

    def next(self) -> Note:
        if self._reader is not None:  # the thread takes the events now
            self._reader.setblocking(True)
            (length,) = struct.unpack("=Q", _receive(self._reader, 8))
            return unpack_note(NOTE.unpack(_receive(self._reader, length)))
        return self._next_event()

    def _next_event(self) -> Note:
        while not self._ready:
            event = self._watch.next()
            if event["event"] == "lost":
                self._catch_up()
            elif event["event"] == "sealed":
                self._sealed(event)
            elif event["event"] == "deleted":
                object_id = id_of(event["name"])
                if object_id in self._known:
                    self._deleted(object_id)
        return self._ready.popleft()

    def _sealed(self, event: Any) -> None:
        object_id = id_of(event["name"])
        if object_id is None or object_id in self._known:
            return
        try:
            entry = self._store.info(id=event["id"])
        except NotFound:  # deleted since: as if it had never been
            return
        self._known.add(object_id)
        self._ready.append((object_id, *sizes_of(entry)))

    def _deleted(self, object_id: ObjectID) -> None:
        self._known.discard(object_id)
        self._ready.append((object_id, -1, -1))

    def _catch_up(self) -> None:
        """The events were more than the daemon holds for us."""
        there = {}
        for entry in self._store.list(TREE):
            object_id = id_of(entry["name"])
            if object_id is not None and entry["state"] != "draft":
                there[object_id] = entry
        for object_id in self._known - there.keys():
            self._deleted(object_id)
        for object_id in sorted(there.keys() - self._known, key=lambda o: there[o]["sealed"]):
            self._known.add(object_id)
            self._ready.append((object_id, *sizes_of(there[object_id])))

    def connection(self) -> socket.socket:
        if self._reader is None:
            self._reader, self._writer = socket.socketpair()
            threading.Thread(target=self._pump, args=(self._writer,), daemon=True).start()
        return self._reader.dup()

    def _pump(self, writer: socket.socket) -> None:
        try:
            while True:
                note = self._next_event()
                message = NOTE.pack(note[0].binary(), note[1], note[2])
                writer.sendall(struct.pack("=Q", len(message)) + message)
        except (OSError, Error):  # closed, or no daemon any more: the reader sees the end
            writer.close()

    def close(self) -> None:
        for end in (self._reader, self._writer):
            if end is not None:
                end.close()


def _receive(reader: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = reader.recv(size - len(data))
        if not part:
            raise Disconnected("the store is gone")
        data += part
    return data
