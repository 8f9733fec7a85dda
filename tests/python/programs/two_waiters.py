"""One thread waits for `first`; then the main thread for `second`, until Ctrl-C."""

import threading

import shmstore as shm

shm.stats()
thread = threading.Thread(target=lambda: print("first", shm.wait("first")))
thread.start()
print("waiting")
try:
    shm.wait("second")
except KeyboardInterrupt:
    print("KeyboardInterrupt")
assert shm.exists("second") is False
thread.join()
