# What nanobind's stub generator cannot see: types that are not nanobind's own.

shmstore._ext.ArrayBase$:
    class ArrayBase(numpy.ndarray[Any, numpy.dtype[Any]]):
        """Base of shmstore.SharedArray."""

shmstore._ext.plain$:
    def plain(array: Any, /) -> Any:
        """The array, or a plain view of it if it has no lease."""

shmstore._ext.__suffix__:
    __version__: str
