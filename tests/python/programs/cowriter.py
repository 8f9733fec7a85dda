"""Fills slice I of N of a draft: the first half, then, when told, the rest; then lets go."""

import sys

import shmstore as shm

name, i, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
w = shm.attach(name, "r+")
part = w.size // n
piece = w[i * part : (i + 1) * part]
piece[: part // 2] = i + 1
print("half")
sys.stdin.readline()
piece[part // 2 :] = i + 1
print("filled")
if sys.stdin.readline().strip() == "seal":
    try:
        w.seal()
    except shm.Error as error:
        print(error.code)
