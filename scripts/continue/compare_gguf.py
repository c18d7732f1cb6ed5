"""Reads exported GGUF files with Python's gguf and npm's @huggingface/gguf, and compares every tensor bit for bit.

    python3 scripts/continue/compare_gguf.py MODELS PACKAGES     (pip install torch transformers gguf)

MODELS is made by make_models.py; PACKAGES is a folder in which `npm install @huggingface/gguf` has run. Each tensor has
to equal the Hugging Face tensor, with the rows of q and k in llama.cpp's order, as `gguf`'s own quantizer writes it.
Exits with 1 if one differs.
"""
import json, pathlib, subprocess, sys, tempfile

import gguf, numpy as np
from safetensors.torch import load_file

root = pathlib.Path(__file__).resolve().parent.parent.parent
models, packages = map(pathlib.Path, sys.argv[1:])
types = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
names = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}

def permuted(values, heads):
    return values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

parse = """
const { gguf } = await import(process.argv[1]);
const { metadata, tensorInfos } = await gguf(process.argv[2], { allowLocalFile: true });
console.log(JSON.stringify({
  architecture: metadata["general.architecture"],
  tokens: metadata["tokenizer.ggml.tokens"].length,
  template: metadata["tokenizer.chat_template"] ?? null,
  tensors: tensorInfos.map(({ name, shape, dtype, offset }) => [name, shape.map(Number), dtype, Number(offset)]),
}));
"""
wrong = 0
for folder in sorted(models.iterdir()):
    config = json.loads((folder / "config.json").read_text())
    neighbours = config["model_type"] in ("llama", "mistral", "smollm3")
    weights = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    for type_, kind in types.items():
        with tempfile.TemporaryDirectory() as place:
            file = pathlib.Path(place) / "model.gguf"
            subprocess.run(["node", root / "dist/cli/main.js", "export", folder, "--to", "gguf", "--type", type_, "--out", file],
                           check=True, capture_output=True)
            reader = gguf.GGUFReader(file)
            tensors = {tensor.name: tensor for tensor in reader.tensors}
            compared = 0
            for name, values in weights.items():
                if name in outer:
                    target = outer[name]
                    if name == "lm_head.weight" and config["tie_word_embeddings"]:
                        continue
                else:
                    _, _, layer, part = name.split(".", 3)
                    base, end = part.rsplit(".", 1)
                    target = f"blk.{layer}.{names[base]}.{end}"
                    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}.get(base)
                    if neighbours and heads:
                        values = permuted(values, heads)
                tensor = tensors.pop(target)
                expected = "F32" if values.ndim == 1 else "Q8_0" if type_ == "q4_0" and target in outer.values() else kind
                block = 32 if expected.startswith("Q") else 1
                if values.shape[-1] % block:
                    expected = "F16"
                assert tensor.tensor_type.name == expected, (target, tensor.tensor_type.name, expected)
                assert list(tensor.shape) == list(reversed(values.shape)), target
                theirs = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType[expected])
                if not np.array_equal(np.ascontiguousarray(tensor.data).view(np.uint8).ravel(), theirs.view(np.uint8).ravel()):
                    print(f"{folder.name} {type_} {target}: bytes differ")
                    wrong += 1
                compared += 1
            rest = set(tensors) - {"rope_freqs.weight"}
            assert not rest, rest
            read = json.loads(subprocess.run(["node", "--input-type=module", "-e", parse, "--",
                str(packages.resolve() / "node_modules/@huggingface/gguf/dist/index.mjs"), str(file)],
                check=True, capture_output=True, text=True).stdout)
            offset = reader.data_offset
            same = [[t.name, [int(n) for n in t.shape], int(t.tensor_type), int(t.data_offset) - offset] for t in reader.tensors]
            assert read["tensors"] == same and read["tokens"] == config["vocab_size"], "@huggingface/gguf reads other tensors"
            print(f"{folder.name:12} {type_:5} {compared} tensors as gguf writes them; @huggingface/gguf: {read['architecture']}, "
                  f"{len(read['tensors'])} tensors, {read['tokens']} tokens, chat template: {'yes' if read['template'] else 'no'}")
sys.exit(1 if wrong else 0)
