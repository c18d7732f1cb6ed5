/** Shortest run of one token that counts as padding or junk. */
export const minRunLength = 32;

/**
 * Counts the tokens in runs of at least `minRunLength` equal tokens, and which token has most of
 * them.
 */
export class RunCounter {
  repeated = 0;
  #token = -1;
  #length = 0;
  readonly #byToken = new Map<number, number>();

  add(ids: Int32Array | Uint16Array | Uint32Array): void {
    for (const id of ids) {
      if (id === this.#token) {
        this.#length++;
      } else {
        this.finish();
        this.#token = id;
        this.#length = 1;
      }
    }
  }

  finish(): void {
    if (this.#length >= minRunLength) {
      this.repeated += this.#length;
      this.#byToken.set(this.#token, (this.#byToken.get(this.#token) ?? 0) + this.#length);
    }
    this.#token = -1;
    this.#length = 0;
  }

  /** Copies the state of another counter. */
  take(other: RunCounter): void {
    this.repeated = other.repeated;
    this.#token = other.#token;
    this.#length = other.#length;
    for (const [token, count] of other.#byToken) this.#byToken.set(token, count);
  }

  /** The token with the most tokens in such runs. */
  worst(): number {
    let worst = -1;
    for (const [token, count] of this.#byToken) {
      if (worst < 0 || count > (this.#byToken.get(worst) as number)) worst = token;
    }
    return worst;
  }
}
