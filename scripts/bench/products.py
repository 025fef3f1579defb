"""The matrix products of an update alone, in f32, as libtorch makes them: what whoever multiplies so cannot be faster than.
A prompt goes through the layers once, however many sequences begin with it. Each thread multiplies an equal part of the
rows by itself, which takes less than all threads in each product.

    products.py learner WORK
"""
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from turns import read_work, serve

import torch

_, _, path = sys.argv
work = read_work(path)
shape, drawn = work["shape"], work["new_tokens"]
threads = int(os.environ.get("OMP_NUM_THREADS", work["threads"]))
sequences = work["repetitions"][0]["sequences"]
trained = len(sequences) * drawn
tokens = trained + sum(map(len, {tuple(sequence[:-drawn]) for sequence in sequences}))
hidden, inner = shape["hidden"], shape["heads"] * shape["head_dim"]
qkv = inner + 2 * shape["kv_heads"] * shape["head_dim"]
# Outputs and inputs of each in a layer; the head computes no more than what is trained.
layer = [(qkv, hidden), (hidden, inner), (2 * shape["ffn"], hidden), (hidden, shape["ffn"])]
matrices = [(tokens // threads, *sizes) for sizes in layer] * shape["layers"] + [(trained // threads, shape["vocab"], hidden)]


def operands(rows, outputs, inputs):
    # What is multiplied, what comes of it (whose gradient is as large), and both gradients.
    return torch.randn(rows, inputs), torch.randn(outputs, inputs), *map(torch.empty, [(rows, outputs), (rows, inputs), (outputs, inputs)])


def multiply(kinds):
    for sizes in matrices:
        x, w, y, by_x, by_w = kinds[sizes]
        torch.mm(x, w.T, out=y)
        torch.mm(y, w, out=by_x)
        torch.mm(y.T, x, out=by_w)


workers = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))
parts = [{sizes: operands(*sizes) for sizes in set(matrices)} for _ in range(threads)]


def update(_):
    list(workers.map(multiply, parts))
    return {"trained_tokens": trained, "phases": {}}


serve(work["repetitions"], lambda _: None, update, versions={"torch": torch.__version__})
