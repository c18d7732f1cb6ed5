/** A run of one token counts as padding or junk from this length on. */
export const minRunLength = 32;

/** Adds up the tokens that stand in runs of at least `minRunLength` equal ones, and remembers the worst token. */
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

  /** Goes on where another counter is. */
  take(other: RunCounter): void {
    this.repeated = other.repeated;
    this.#token = other.#token;
    this.#length = other.#length;
    for (const [token, count] of other.#byToken) this.#byToken.set(token, count);
  }

  /** The token with the most tokens in runs. */
  worst(): number {
    let worst = -1;
    for (const [token, count] of this.#byToken) {
      if (worst < 0 || count > (this.#byToken.get(worst) as number)) worst = token;
    }
    return worst;
  }
}
