import { isDeepStrictEqual } from "node:util";
import { ApiError } from "./api-error.js";

/**
 * Fields of OpenAI's interface that this server does not support, each with the values that ask for
 * nothing. Such a value is accepted, because some clients always send it; any other is refused,
 * because an answer without the field's effect would be a wrong one.
 */
const unsupported: Readonly<Record<string, readonly unknown[]>> = {
  audio: [],
  best_of: [1],
  function_call: ["none", "auto"],
  functions: [[]],
  guided_choice: [],
  guided_grammar: [],
  guided_json: [],
  guided_regex: [],
  modalities: [["text"]],
  parallel_tool_calls: [true, false],
  prediction: [],
  reasoning_effort: [],
  response_format: [{ type: "text" }],
  service_tier: ["auto", "default"],
  store: [false],
  suffix: [""],
  tool_choice: ["none", "auto"],
  tools: [[]],
  use_beam_search: [false],
  verbosity: [],
  web_search_options: [],
};

/**
 * @returns whether the name is an unsupported field whose value asks for nothing; false for other
 *   names
 * @throws ApiError for one that asks for something
 */
export function refuseUnsupported(name: string, value: unknown): boolean {
  if (!Object.hasOwn(unsupported, name)) return false;
  const neutral = unsupported[name] ?? [];
  if (value === null || neutral.some((one) => isDeepStrictEqual(one, value))) return true;
  throw new ApiError(400, `${name} is not supported by this server`, {
    param: name,
    code: "unsupported_parameter",
  });
}
