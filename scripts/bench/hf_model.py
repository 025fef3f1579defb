"""A Qwen2 of the work's shape with random weights, as Hugging Face has it. Nothing is fetched."""
import os
from importlib.metadata import version

for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]:
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

PAD, END, BEGIN, UNKNOWN = range(4)


def versions(*packages):
    return {package: version(package) for package in packages}


def load(work, dtype):
    """The model; torch computes on the work's number of threads from here on."""
    torch.set_num_threads(work["threads"])
    torch.manual_seed(1)
    shape = work["shape"]
    config = Qwen2Config(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"],
        intermediate_size=shape["ffn"], max_position_embeddings=shape["max_positions"],
        rms_norm_eps=shape["rms_eps"], tie_word_embeddings=shape["tied_head"], attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        pad_token_id=PAD, eos_token_id=END, bos_token_id=BEGIN)
    model = Qwen2ForCausalLM(config).to(dtype)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, END
    return model
