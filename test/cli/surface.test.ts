import { expect, it } from "vitest";
import { commandName, commandTree, createProgram } from "../../lib/cli/program.js";

// Scripts depend on these words, and a change breaks them. The commit needs to give a reason.
const surface = `
llamaforge
  -V, --version
llamaforge quickstart
  --minutes <n> = 3
  --steps <n>
  --set <path=value> (repeatable)
llamaforge init <folder>
  --language <name> = js
llamaforge doctor
  --json
llamaforge tokenizer
llamaforge tokenizer train <inputs...>
  --json
  --out <folder>
  --vocab-size <n>
  --type <type>
  --rule <name>
  --bos <token>
  --eos <token>
  --special-token <token> (repeatable)
  --character-coverage <x>
  --min-frequency <n>
  --max-token-length <n>
  --overwrite
  --invalid-utf8 <how>
  --bad-records <how>
  --skip-unreadable
  --kind <kind>
  --language <name> (repeatable)
  --text-field <path>
  --filter <expression>
  --min-bytes <n>
  --max-bytes <n>
  --split <name>
llamaforge prepare [inputs...]
  --config <file>
  --json
  --download
  --out <folder>
  --tokenizer <path>
  --kind <kind>
  --language <name> (repeatable)
  --text-field <path>
  --filter <expression>
  --min-bytes <n>
  --max-bytes <n>
  --split <name>
  --chat-template <path>
  --deduplicate
  --validation-fraction <x>
  --shard-tokens <n>
  --max-run-share <x>
  --document-start <what>
  --document-end <what>
  --invalid-utf8 <how>
  --bad-records <how>
  --skip-unreadable
  --workers <n>
  --start-over
  --overwrite
llamaforge plan <config>
  --set <path=value> (repeatable)
  --tflops <n>
  --tokens-per-second <n>
  --gpu <name>
  --gpus <n>
  --gpus-per-node <n>
  --node-bandwidth <n>
  --network-bandwidth <n>
  --json
  --download
llamaforge train <config>
  --set <path=value> (repeatable)
  --resume <from> = auto
  --resume-strict
  --allow-data-change
  --supervise
  --max-restarts <n> = 3
  --dashboard [port]
  --tensorboard
  --help-config
  --download
llamaforge launch <command...>
  --nproc <n> (required)
  --max-restarts <n> = 0
llamaforge generate <folder> <prompt>
  --max-tokens <n> = 200
  --temperature <x> = 0.8
  --top-k <n> = 50
  --top-p <x> = 1
  --min-p <x> = 0
  --repetition-penalty <x> = 1
  --presence-penalty <x> = 0
  --frequency-penalty <x> = 0
  --seed <n> = 0
  --stop <text> (repeatable)
  --ignore-end
  --download
  --device <device> = cpu
  --precision <p> = fp32
llamaforge eval <folder>
  --tasks <names> (required)
  --data <path>
  --limit <n>
  --few-shot <n>
  --seed <n> = 1234
  --batch <n> = auto
  --log-samples
  --bootstrap <n> = 100000
  --allow-code-execution
  --download
  --tokenizer <path>
  --out <file>
  --start-over
  --overwrite
  --compare
  --device <device> = cpu
  --precision <p> = fp32
  --list-tasks
llamaforge chat <folder>
  --system <text>
  --chat-template <file>
  --max-tokens <n>
  --temperature <x> = 0.8
  --top-k <n> = 50
  --top-p <x> = 1
  --min-p <x> = 0
  --repetition-penalty <x> = 1
  --presence-penalty <x> = 0
  --frequency-penalty <x> = 0
  --seed <n> = 0
  --stop <text> (repeatable)
  --max-length <n>
  --download
  --device <device> = cpu
  --precision <p> = fp32
llamaforge serve <folder>
  --host <address> = 127.0.0.1
  --port <n> = 8000
  --api-key <key> (repeatable)
  --cors-origin <origin> (repeatable)
  --max-connections <n> = 1024
  --max-body-bytes <n> = 4194304
  --max-answers <n> = 128
  --header-seconds <x> = 10
  --request-seconds <x> = 60
  --stall-seconds <x> = 30
  --drain-seconds <x> = 30
  --model-name <name>
  --api-key-file <file>
  --chat-template <file>
  --device <device> = cpu
  --precision <p>
  --download
  --max-batch <n>
  --max-queue <n>
  --max-length <n>
  --cache-bytes <n>
  --page-size <n>
  --prompt-tokens <n>
  --independent-rows
  --no-prefix-cache
llamaforge export <folder>
  --to <form> (required)
  --out <path>
  --type <type>
  --dtype <dtype>
  --no-tokenizer
  --overwrite
  --download
llamaforge merge <adapter>
  --out <folder> (required)
  --base <folder>
  --dtype <dtype>
  --download
llamaforge push <folder> <model>
  --public
  --message <text>
llamaforge verify <folder>
  --json
llamaforge report <runs...>
  --out <file>
llamaforge bench
llamaforge bench parity
  --preset <name> = tinyllama-1.1b
  --config <file>
  --device <device> = cuda
  --precision <p>
  --micro-batch <n>
  --sequence-length <n>
  --json <file>
  --accumulation <n>
  --steps <n> = 10
  --warmup <n> = 3
  --recompute <what>
  --data <folder>
  --peer <python>
  --peer-script <file>
  --peer-args <text>
llamaforge bench kernels
  --preset <name> = tinyllama-1.1b
  --config <file>
  --device <device> = cuda
  --precision <p>
  --micro-batch <n>
  --sequence-length <n>
  --json <file>
  --only <text>
  --runs <n> = 5
llamaforge bench decode
  --preset <name> = tinyllama-1.1b
  --config <file>
  --device <device> = cuda
  --precision <p>
  --json <file>
  --batch <n,...> = 1,16,64
  --prompt <n> = 128
  --tokens <n> = 128
  --runs <n> = 3
  --peer <python>
  --peer-script <file>
llamaforge bench serve
  --preset <name> = tinyllama-1.1b
  --config <file>
  --device <device> = cuda
  --precision <p>
  --json <file>
  --rate <n,...> = 1,4,16
  --requests <n> = 100
  --streams <n,...> = 64
  --prompt <n> = 128
  --tokens <n> = 128
llamaforge completion <shell>
`;

it("the command line is the one that scripts were written for", () => {
  const program = createProgram();
  const lines: string[] = [];
  for (const command of commandTree(program)) {
    const words = command.registeredArguments.map((argument) => {
      const name = argument.variadic ? `${argument.name()}...` : argument.name();
      return argument.required ? `<${name}>` : `[${name}]`;
    });
    lines.push([commandName(command), ...words].join(" "));
    for (const option of command.options) {
      const notes = [
        option.flags,
        option.mandatory ? "(required)" : "",
        Array.isArray(option.defaultValue) ? "(repeatable)" : "",
        ["string", "number"].includes(typeof option.defaultValue) ? `= ${option.defaultValue}` : "",
      ];
      lines.push(`  ${notes.filter((note) => note !== "").join(" ")}`);
    }
  }
  expect(lines.join("\n")).toBe(surface.trim());
});

it("says in the help what every command, argument and option is for", () => {
  const program = createProgram();
  for (const command of commandTree(program)) {
    expect(command.description()).not.toBe("");
    for (const part of [...command.registeredArguments, ...command.options]) {
      expect(part.description, `${command.name()} ${part.name()}`).not.toBe("");
    }
  }
});
