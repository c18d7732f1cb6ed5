// Saves models of other programs again, for `scripts/compare_again.py`:
//
//   node scripts/families-again.mjs OUT_DIR DIR...
//
// Each DIR is a Hugging Face folder. Its copy, OUT_DIR/<name>, is written by LlamaForge in f32.
import { basename, join } from "node:path";
import { loadModel, saveModel } from "../dist/index.js";

const [out, ...folders] = process.argv.slice(2);
for (const folder of folders) {
  const model = await loadModel(folder);
  await saveModel(join(out, basename(folder)), model, { tokenizer: null });
  model.dispose();
}
