"""PyCOMPSs' storage interface, as the store implements it."""
