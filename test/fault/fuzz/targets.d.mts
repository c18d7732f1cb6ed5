export interface Target {
  /** Files that are right. */
  seeds: Buffer[];
  /** Parses the bytes. Rejects with the parser's error. */
  run(bytes: Uint8Array): Promise<unknown>;
}
export function makeTargets(root: string, folder: string): Promise<Record<string, Target>>;
export function corpusOf(root: string, target: string): Buffer[];
export function expectPromise(target: Target, bytes: Uint8Array, limitMs?: number): Promise<void>;
