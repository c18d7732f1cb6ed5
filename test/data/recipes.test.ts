// The recipes of configs/data on small files in the hub's format.
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { parquetWriteFile } from "hyparquet-writer";
import { describe, expect, it } from "vitest";
import { ConfigError, UsageError } from "../../lib/core/errors.js";
import { loadPrepareConfig } from "../../lib/prepare/description.js";
import { prepare } from "../../lib/prepare/prepare.js";
import { fixtures, quickstart, temporaryFolder, writeFiles } from "./support.js";

const configs = join(fixtures, "../../../configs/data");

describe("recipes", () => {
  it("Starcoder: parquet files in a folder for each language", async () => {
    const folder = await temporaryFolder();
    for (const [language, count] of [
      ["python", 5],
      ["github-issues-filtered-structured", 3],
    ] as const) {
      await mkdir(join(folder, language));
      const data = Array.from({ length: count }, (_, i) => `# ${language} ${i}\nprint(${i})\n`);
      parquetWriteFile({
        filename: join(folder, language, "train-00000-of-00002.parquet"),
        rowGroupSize: 2,
        columnData: [
          { name: "max_stars_repo_path", data: data.map((_, i) => `f${i}.py`), type: "STRING" },
          { name: "content", data, type: "STRING" },
        ],
      });
    }
    const { inputs, options } = await loadPrepareConfig(join(configs, "starcoder.yaml"), folder);
    const out = join(folder, "out");
    const { dataset } = await prepare({ ...options, inputs, out, tokenizer: quickstart });
    expect(dataset.splits.train.documents).toBe(8);
    expect(dataset.splits.validation.documents).toBe(0);
    expect(dataset.sources[0]?.kind).toBe("records");
  });

  it("SlimPajama: its own validation split, without GitHub", async () => {
    const folder = await temporaryFolder();
    const { inputs, options } = await loadPrepareConfig(join(configs, "slimpajama.yaml"), folder);
    expect(inputs.map(({ path }) => path.endsWith(".jsonl.zst"))).toEqual([true, true]);
    const set = (names: string[], text: string) =>
      names
        .map((name, i) =>
          JSON.stringify({ text: `${text} ${i}`, meta: { redpajama_set_name: name } }),
        )
        .join("\n");
    // gzip replaces zstd: writing zstd needs a newer Node.
    await writeFiles(folder, {
      "train/chunk1/example_train_0.jsonl.gz": gzipSync(
        set(["RedPajamaC4", "RedPajamaGithub", "RedPajamaBook"], "t"),
      ),
      "train/chunk10/example_train_0.jsonl.gz": gzipSync(set(["RedPajamaArXiv"], "u")),
      "validation/chunk1/example_holdout_0.jsonl.gz": gzipSync(
        set(["RedPajamaC4", "RedPajamaGithub"], "v"),
      ),
    });
    const zipped = inputs.map((input) => ({ ...input, path: input.path.replace(".zst", ".gz") }));
    const out = join(folder, "out");
    const { dataset, warnings } = await prepare({
      ...options,
      inputs: zipped,
      out,
      tokenizer: quickstart,
    });
    expect(dataset.splits.train.documents).toBe(3);
    expect(dataset.splits.validation.documents).toBe(1);
    expect(warnings.join()).toMatch(/left out 1 that the filter refuses/);
  });

  it("name all that is wrong with them at once", async () => {
    const folder = await temporaryFolder();
    const file = join(folder, "bad.yaml");
    const lines = ["inputs:", "  - path: a", "    color: 1", "shardTokens: 0", "overwrite: true"];
    await writeFile(file, lines.join("\n"));
    const error = await loadPrepareConfig(file).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ConfigError);
    const problems = (error as ConfigError).problems.map(({ path, message }) => [path, message]);
    // A description cannot discard what stands in its way: that is for a call to say.
    expect(Object.fromEntries(problems)).toEqual({
      "inputs[0].color": expect.stringMatching(/^unknown option/),
      shardTokens: "expected an integer from 1 to 9007199254740991, got 0",
      overwrite: expect.stringMatching(/^unknown option/),
    });
    await expect(loadPrepareConfig(join(folder, "none.yaml"))).rejects.toThrow(UsageError);
  });
});
