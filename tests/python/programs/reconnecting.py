"""Calls a daemon that goes away, and would for an hour."""

import os
import sys

import shmstore as shm

client = shm.connect(os.environ["SHMSTORE_SOCKET"], reconnect=3600)
print("connected")
sys.stdin.readline()
try:
    print("trying")
    client.stats()
except KeyboardInterrupt:
    print("KeyboardInterrupt")
