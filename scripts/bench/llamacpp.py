"""llama.cpp through its C interface: sampling with log-probs, batched or one stream.

    llamacpp.py sample|decode1 WORK

Each prompt is computed once and its KV given to the other sequences of its group; a pass then computes one token of
every sequence. Keys and values are in f16, llama.cpp's default, which is faster here than f32. Tokens are drawn by NumPy,
whole batches at once.
"""
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from turns import read_work, serve

import gguf
import llama_cpp as llama
import numpy as np

_, mode, path = sys.argv
work = read_work(path)
shape, drawn = work["shape"], work["new_tokens"]
vocab, half = shape["vocab"], work["dtype"] == "bf16"
prompts, group = (1, 1) if mode == "decode1" else (len(work["repetitions"][0]["prompts"]), work["group"])
prompt_tokens = len(work["repetitions"][0]["prompts"][0])
sequences = prompts * group
random = np.random.default_rng(1)
# Weights of a block that a cumulative sum is taken over; the rest of the vocabulary is known by its blocks' sums.
BLOCK = 64


def write_model(file):
    """A Qwen2 of the work's shape with random weights; norms and biases in f32, as llama.cpp has them."""
    hidden, heads, kv_heads = shape["hidden"], shape["heads"], shape["kv_heads"]
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(shape["max_positions"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(shape["rms_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name, *size):
        values = (0.02 * random.standard_normal(size)).astype(np.float32)
        if half:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    def vector(name, size, value):
        writer.add_tensor(name, np.full(size, value, np.float32))

    matrix("token_embd.weight", vocab, hidden)
    vector("output_norm.weight", hidden, 1.0)
    for layer in range(shape["layers"]):
        prefix = f"blk.{layer}."
        for name in ["attn_norm", "ffn_norm"]:
            vector(f"{prefix}{name}.weight", hidden, 1.0)
        for name, count in [("q", heads), ("k", kv_heads), ("v", kv_heads)]:
            matrix(f"{prefix}attn_{name}.weight", count * shape["head_dim"], hidden)
            vector(f"{prefix}attn_{name}.bias", count * shape["head_dim"], 0.0)
        matrix(prefix + "attn_output.weight", hidden, heads * shape["head_dim"])
        for name in ["gate", "up"]:
            matrix(f"{prefix}ffn_{name}.weight", shape["ffn"], hidden)
        matrix(prefix + "ffn_down.weight", hidden, shape["ffn"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_context():
    llama.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write_model(file)
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers, settings.use_mmap = 0, False
        model = llama.llama_model_load_from_file(str(file).encode(), settings)
    settings = llama.llama_context_default_params()
    settings.n_ctx = sequences * (prompt_tokens + drawn)
    settings.n_batch = settings.n_ubatch = max(prompts * prompt_tokens, sequences)
    settings.n_seq_max = sequences
    settings.n_threads = settings.n_threads_batch = work["threads"]
    context = llama.llama_init_from_model(model, settings)
    return context or sys.exit("llama.cpp makes no context")


context = open_context()
memory = llama.llama_get_memory(context)


class Batch:
    """Places of a pass, written as whole arrays; logits are asked for where `last` says so."""

    def __init__(self, sequence_of, last):
        n = len(sequence_of)
        self.batch = llama.llama_batch_init(n, 0, 1)
        self.batch.n_tokens = n
        self.tokens = np.ctypeslib.as_array(self.batch.token, (n,))
        self.positions = np.ctypeslib.as_array(self.batch.pos, (n,))
        np.ctypeslib.as_array(self.batch.n_seq_id, (n,))[:] = 1
        np.ctypeslib.as_array(self.batch.logits, (n,))[:] = last
        for i, sequence in enumerate(sequence_of):
            self.batch.seq_id[i][0] = sequence
        self.rows = int(np.sum(last))

    def logits(self):
        """`[rows, vocab]`, valid until the next pass."""
        if llama.llama_decode(context, self.batch) != 0:
            sys.exit("llama.cpp refused a batch")
        return np.ctypeslib.as_array(llama.llama_get_logits(context), (self.rows, vocab))


firsts = [prompt * group for prompt in range(prompts)]
prefill = Batch([s for s in firsts for _ in range(prompt_tokens)],
                [i + 1 == prompt_tokens for _ in firsts for i in range(prompt_tokens)])
decode = Batch(range(sequences), [True] * sequences)


def draw(logits):
    """Tokens of softmax(logits), one a row, and their log-probs."""
    every = np.arange(len(logits))
    top = logits.max(1)
    weights = np.exp(logits - top[:, None]).reshape(len(logits), -1, BLOCK)
    sums = weights.sum(2).cumsum(1)
    target = random.random(len(logits)) * sums[:, -1]
    # The last block and the last token where a rounded sum falls short of the target.
    block = np.minimum((sums <= target[:, None]).sum(1), sums.shape[1] - 1)
    before = np.where(block > 0, sums[every, block - 1], 0.0)
    inner = weights[every, block].cumsum(1)
    ids = block * BLOCK + np.minimum((inner <= (target - before)[:, None]).sum(1), BLOCK - 1)
    return ids, logits[every, ids] - top - np.log(sums[:, -1])


def given(repetition):
    llama.llama_memory_clear(memory, True)
    return np.concatenate([np.array(p, np.int32) for p in repetition["prompts"][:prompts]])


def sample(tokens):
    begin = time.perf_counter()
    ids, logprobs = np.empty((sequences, drawn), np.int32), np.empty((sequences, drawn), np.float32)
    prefill.tokens[:] = tokens
    prefill.positions[:] = np.tile(np.arange(prompt_tokens), prompts)
    logits = prefill.logits()
    for first in firsts:
        for other in range(first + 1, first + group):
            llama.llama_memory_seq_cp(memory, first, other, -1, -1)
    ids[:, 0], logprobs[:, 0] = draw(np.repeat(logits, group, 0))
    prompt_seconds, drawing = time.perf_counter() - begin, 0.0
    for i in range(1, drawn):
        decode.tokens[:] = ids[:, i - 1]
        decode.positions[:] = prompt_tokens + i - 1
        logits, computed = decode.logits(), time.perf_counter()
        ids[:, i], logprobs[:, i] = draw(logits)
        drawing += time.perf_counter() - computed
    decode_seconds = time.perf_counter() - begin - prompt_seconds - drawing
    return {"drawn_tokens": int(np.isfinite(logprobs).sum()),
            "phases": {"prefill": prompt_seconds, "decode": decode_seconds, "drawing": drawing}}


serve(work["repetitions"], given, sample, versions={"llama-cpp-python": version("llama-cpp-python")})
