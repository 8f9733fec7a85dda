"""Creates a draft, fills half of it and waits to be killed."""

import sys

import shmstore as shm

w = shm.create(sys.argv[1], 1 << 20, "u1")
w[: 1 << 19] = 1
print("half")
sys.stdin.readline()
