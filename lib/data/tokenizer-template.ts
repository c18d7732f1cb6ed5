type Json = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null;

/**
 * Whether a tokenizer puts its beginning-of-text token in front of every text, as other programs
 * use it: by the post-processor of tokenizer.json, unless `add_bos_token` beside it says so or not.
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
  // As BERT and RoBERTa have it.
  if (Array.isArray(processor.cls)) return processor.cls[0] === bos;
  const first = Array.isArray(processor.single) ? processor.single[0] : undefined;
  return isObject(first) && isObject(first.SpecialToken) && first.SpecialToken.id === bos;
}
