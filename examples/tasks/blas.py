"""One arithmetic thread per process: the programs' processes are their parallelism. To be imported
before numpy."""

import os

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
