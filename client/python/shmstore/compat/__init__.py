"""Stand-ins for other libraries' interfaces, over the store: change the import line only.

* ``shmstore.compat.sharedarray``: SharedArray
* ``shmstore.compat.shared_memory``: multiprocessing.shared_memory
* ``shmstore.compat.plasma``: pyarrow.plasma
"""
