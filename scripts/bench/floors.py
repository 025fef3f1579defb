"""The least seconds that a work can take here: its multiply-adds and bytes over what the machine can do at most."""
from dataclasses import dataclass

F32 = 4
# Less than this stays in a cache from one pass to the next, as our backend has it too.
CACHED_BYTES = 32 << 20


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, bytes that must come from memory or go there, and bytes that come from a cache."""

    flops: float = 0.0
    bytes: float = 0.0
    cached: float = 0.0

    def __add__(self, other):
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.cached + other.cached)

    def times(self, n):
        return Cost(self.flops * n, self.bytes * n, self.cached * n)

    def seconds(self, ceilings):
        """The least, and what bounds it."""
        return max((self.flops / ceilings["flops_per_second"], "computing"),
                   (self.bytes / ceilings["bytes_per_second"], "reading memory"),
                   (self.cached / ceilings["cached_bytes_per_second"], "reading a cache"))


def parameters(shape):
    """Of the layers' matrices, and of the head, which is the embedding too."""
    rows = (shape["heads"] + 2 * shape["kv_heads"]) * shape["head_dim"]
    layer = shape["hidden"] * (rows + shape["heads"] * shape["head_dim"] + 3 * shape["ffn"])
    return shape["layers"] * layer, shape["vocab"] * shape["hidden"]


def passed(shape, tokens, drawn, keys):
    """Operations of a forward pass: `tokens` through the layers, each looking at `keys` on average, `drawn` through
    the head."""
    layers, head = parameters(shape)
    attention = 4 * shape["heads"] * shape["head_dim"] * shape["layers"] * keys
    return Cost(flops=tokens * (2 * layers + attention) + drawn * 2 * head)


def sampling(shape, sequences, prompts, prompt_tokens, new_tokens, element_bytes):
    """Prompts once a group, then a token of every sequence a pass; each pass reads the weights and all keys and values,
    where no cache holds them."""
    prefill = passed(shape, prompts * prompt_tokens, prompts, prompt_tokens / 2)
    layers, head = parameters(shape)
    context = prompt_tokens + new_tokens / 2
    kv = 2 * shape["kv_heads"] * shape["head_dim"] * shape["layers"] * F32
    read = (layers + head) * element_bytes + sequences * context * kv
    one = passed(shape, sequences, sequences, context) + (Cost(bytes=read) if read > CACHED_BYTES else Cost(cached=read))
    # The first token of each comes from the prompt's pass.
    return prefill, one.times(new_tokens - 1)


def learning(shape, sequences, prompts, prompt_tokens, new_tokens):
    """Forward, backward (twice as much), and AdamW, which reads four numbers a parameter and writes three."""
    tokens = prompts * prompt_tokens + sequences * new_tokens
    forward = passed(shape, tokens, sequences * new_tokens, (prompt_tokens + new_tokens) / 2)
    optimizer = Cost(bytes=7 * F32 * sum(parameters(shape)))
    return forward, forward.times(2), optimizer
