"""``python -m shmstore.pycompss`` prints the folder for PYTHONPATH that makes ``storage.api`` the
store's."""

from . import storage_path

print(storage_path())
