"""Plain Hugging Face and PyTorch: one GRPO update (forward, backward, clipped gradient, AdamW) on given sequences.

    hf_learner.py learner WORK
"""
import sys

from hf_model import load, versions
from turns import read_work, serve

import torch

_, _, path = sys.argv
work = read_work(path)
model = load(work, torch.float32).train()
drawn, half = work["new_tokens"], work["dtype"] == "bf16"
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def given(repetition):
    ids = torch.tensor(repetition["sequences"])
    return ids, torch.tensor([0.5, -0.5]).repeat(len(ids) // 2)[:, None]


def update(given):
    ids, advantages = given
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        # Logits of the trained tokens alone; the last place predicts nothing that is there.
        logits = model(input_ids=ids, logits_to_keep=drawn + 1, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, -drawn:, None]).squeeze(-1)
    ratio = torch.exp(logp - logp.detach())
    loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"trained_tokens": logp.numel(), "phases": {}}


serve(work["repetitions"], given, update, versions=versions("torch", "transformers"))
