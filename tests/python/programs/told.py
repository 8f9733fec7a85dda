"""Does what it is told: each line of input is a statement or an expression of Python, answered by
one line of JSON: the expression's value, null, or ["name of the exception", "its text"]."""

import ast
import json
import os
import sys
import threading

import numpy as np

import shmstore as shm

names = {"shm": shm, "np": np, "os": os, "sys": sys, "threading": threading}
for line in sys.stdin:
    try:
        try:
            ast.parse(line.strip(), mode="eval")
        except SyntaxError:
            exec(line, names)  # tidy: allow(eval) because its parent says what
            answer = None
        else:
            answer = eval(line, names)  # tidy: allow(eval) because its parent says what
    except shm.Error as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
