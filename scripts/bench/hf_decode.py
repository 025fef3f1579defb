"""Decode by transformers with a static cache: hf_decode.py SHAPE cpu|cuda CONTEXT BATCH…; the last line is JSON.

Random weights of the shape in bf16; the cache holds CONTEXT positions of nothing, which are read like any. On a card the
step is captured in a CUDA graph and replayed, so that Python takes no time.
"""
import json
import statistics
import sys
import time

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

SIZES = {"qwen2.5-0.5b": (151936, 896, 24, 14, 4864), "qwen2.5-1.5b": (151936, 1536, 28, 12, 8960),
         "tiny": (256, 64, 2, 4, 96)}
WARM, STEPS = 3, 64


def model_of(shape, device):
    vocab, hidden, layers, heads, inner = SIZES[shape]
    config = Qwen2Config(vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=2, intermediate_size=inner, max_position_embeddings=4096,
                         tie_word_embeddings=True, attention_dropout=0.0)
    torch.manual_seed(1)
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


def step_seconds(model, device, context, batch):
    cache = StaticCache(config=model.config, max_cache_len=context + 16)
    ids = torch.ones(batch, 1, dtype=torch.long, device=device)
    position = torch.full((batch, 1), context, dtype=torch.long, device=device)

    def step():
        # The cache counts on the device; every step is one after CONTEXT positions.
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)
        out = model(input_ids=ids, past_key_values=cache, position_ids=position, use_cache=True)
        ids.copy_(out.logits[:, -1:].argmax(-1))

    on_card = device == "cuda"
    run = step
    if on_card:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    found = []
    for turn in range(WARM + (STEPS if on_card else 3)):
        begin = time.perf_counter()
        run()
        if on_card:
            torch.cuda.synchronize()
        found += [time.perf_counter() - begin] * (turn >= WARM)
    return statistics.median(found)


def main():
    shape, device, context, *batches = sys.argv[1:]
    model, rows = model_of(shape, device), []
    with torch.inference_mode():
        for batch in map(int, batches):
            seconds = step_seconds(model, device, int(context), batch)
            rows.append({"batch": batch, "step_seconds": seconds, "tokens_per_second": batch / seconds})
    print(json.dumps({"transformers": transformers.__version__, "context": int(context), "decode": rows}))


if __name__ == "__main__":
    main()
