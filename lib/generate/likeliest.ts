/** The `count` largest of a row of log-probabilities, largest first; of equal ones, lower ids. */
export function likeliest(
  logprobs: Float32Array,
  count: number,
): { id: number; logprob: number }[] {
  const best: { id: number; logprob: number }[] = [];
  for (const [id, logprob] of logprobs.entries()) {
    if (best.length === count && logprob <= (best.at(-1)?.logprob ?? 0)) continue;
    let place = best.length;
    while (place > 0 && (best[place - 1]?.logprob ?? 0) < logprob) place--;
    best.splice(place, 0, { id, logprob });
    best.length = Math.min(best.length, count);
  }
  return best;
}
