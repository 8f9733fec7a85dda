"""Puts 8 MiB under a name, kept if asked, and holds it until its input ends."""

import sys

import numpy as np

import shmstore as shm

x = shm.put(sys.argv[1], np.ones(1 << 20), keep="keep" in sys.argv[2:])
print("holding")
sys.stdin.readline()
