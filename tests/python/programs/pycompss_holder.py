"""Makes an array for tasks to change in place, says so, and waits."""

import sys

import numpy as np

from shmstore.pycompss import in_place

c = in_place(np.zeros(10), name=sys.argv[1])
print("made")
sys.stdin.read()
