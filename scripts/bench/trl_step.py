"""TRL: a step of its GRPOTrainer (generation, reward, update), gated so that it waits for its turn before each.

    trl_step.py step WORK
"""
import sys
import tempfile
import time

from hf_model import BEGIN, END, PAD, UNKNOWN, load, versions
from turns import answer, awaited, read_work

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

_, _, path = sys.argv
work = read_work(path)
vocab, drawn, group = work["shape"]["vocab"], work["new_tokens"], work["group"]
prompts = [prompt for repetition in work["repetitions"] for prompt in repetition["prompts"]]
sequences = group * len(work["repetitions"][0]["prompts"])
SPECIAL = {PAD: "<pad>", END: "<end>", BEGIN: "<begin>", UNKNOWN: "<unknown>"}


def word(token):
    return SPECIAL.get(token, f"w{token}")


words = Tokenizer(models.WordLevel({word(t): t for t in range(vocab)}, unk_token=word(UNKNOWN)))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token=word(PAD), eos_token=word(END), bos_token=word(BEGIN),
    unk_token=word(UNKNOWN), padding_side="left")


def mean_id(completion_ids, **_):
    return [sum(ids) / (len(ids) * vocab) for ids in completion_ids]


class Turns(TrainerCallback):
    def on_step_begin(self, arguments, state, control, **_):
        if not awaited():
            sys.exit(0)
        self.begin, self.drawn = time.perf_counter(), []

    def on_step_end(self, arguments, state, control, **_):
        seconds = time.perf_counter() - self.begin
        if set(self.drawn) != {drawn}:
            sys.exit(f"completions have {sorted(set(self.drawn))} tokens, not {drawn}")
        answer(seconds=seconds, phases={"sample": self.sampling}, drawn_tokens=sum(self.drawn))


with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=work["dtype"] == "bf16", fp16=False, seed=1,
        per_device_train_batch_size=sequences, gradient_accumulation_steps=1, num_generations=group,
        max_completion_length=drawn, max_steps=len(work["repetitions"]), shuffle_dataset=False,
        temperature=1.0, top_p=1.0, top_k=0, generation_kwargs={"min_new_tokens": drawn},
        beta=0.0, num_iterations=1, loss_type="dapo", epsilon=0.2, scale_rewards="none", max_grad_norm=1.0,
        learning_rate=1e-6, lr_scheduler_type="constant", adam_beta2=0.99, weight_decay=0.0,
        gradient_checkpointing=False, logging_strategy="no", report_to=[], save_strategy="no", disable_tqdm=True)
    turns = Turns()
    trainer = GRPOTrainer(
        model=load(work, torch.float32), reward_funcs=mean_id, args=config, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [" ".join(map(word, p)) for p in prompts]}), callbacks=[turns])
    generate = trainer._generate_single_turn

    def timed(*arguments, **named):
        begin = time.perf_counter()
        made = generate(*arguments, **named)
        turns.sampling = time.perf_counter() - begin
        turns.drawn = [len(ids) for ids in made[0]]
        return made

    trainer._generate_single_turn = timed
    answer(ready=True, versions=versions("torch", "transformers", "trl", "accelerate"))
    trainer.train()
