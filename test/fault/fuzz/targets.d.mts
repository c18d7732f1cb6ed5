export interface Target {
  /** Files that are right. */
  seeds: Buffer[];
  /** Parses; rejects with what the parser threw. */
  run(bytes: Uint8Array): Promise<unknown>;
}
export function makeTargets(root: string, folder: string): Promise<Record<string, Target>>;
export function corpusOf(root: string, target: string): Buffer[];
export function expectPromise(target: Target, bytes: Uint8Array, limitMs?: number): Promise<void>;
