type Json = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null;

/**
 * Whether other programs put the tokenizer's beginning-of-text token in front of every text. The
 * post-processor of tokenizer.json decides, unless a companion file has the field `add_bos_token`.
 */
export function addsBos(tokenizerJson: Json, companions: readonly Json[], bos: string): boolean {
  const said = companions.map(({ add_bos_token }) => add_bos_token);
  const first = said.find((value) => typeof value === "boolean");
  return (first as boolean | undefined) ?? templateAdds(tokenizerJson.post_processor, bos);
}

function templateAdds(processor: unknown, bos: string): boolean {
  if (!isObject(processor)) return false;
  if (Array.isArray(processor.processors)) {
    return processor.processors.some((inner) => templateAdds(inner, bos));
  }
  // `BertProcessing` and `RobertaProcessing` name the token here.
  if (Array.isArray(processor.cls)) return processor.cls[0] === bos;
  const first = Array.isArray(processor.single) ? processor.single[0] : undefined;
  return isObject(first) && isObject(first.SpecialToken) && first.SpecialToken.id === bos;
}
