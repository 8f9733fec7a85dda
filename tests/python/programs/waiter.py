"""Waits for a name by `attach` or `wait`; prints how it ended."""

import sys

import shmstore as shm

how, name = sys.argv[1:3]
timeout = float(sys.argv[3]) if len(sys.argv) > 3 else None
shm.exists(name)  # connects
print("waiting")
try:
    if how == "attach":
        print(shm.attach(name, timeout=timeout).tolist())
    else:
        print(shm.wait(name, timeout=timeout))
except KeyboardInterrupt:
    print("KeyboardInterrupt")
    print(shm.exists(name))
except shm.Error as error:
    print(type(error).__name__)
sys.stdin.readline()
