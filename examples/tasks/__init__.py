"""What the two programs, matmul.py and kmeans.py, are made of: kernels, input, and for each engine
and each way of the data a module of its own."""
