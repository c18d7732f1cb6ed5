/**
 * The assignment of rows to columns with the greatest sum of scores: each row gets at most one
 * column, and each column at most one row. Takes O(n³) (Hungarian algorithm with potentials).
 * @param scores one list for each row, all of one length
 * @returns the column of each row; -1 for a row without one, if there are more rows than columns
 * @see Kuhn 1955; Jonker and Volgenant 1987
 */
export function bestAssignment(scores: readonly (readonly number[])[]): number[] {
  const columns = scores[0]?.length ?? 0;
  if (scores.length > columns) {
    const turned = Array.from({ length: columns }, (_, j) => scores.map((row) => row[j] as number));
    const rowOf = bestAssignment(turned);
    return scores.map((_, row) => rowOf.indexOf(row));
  }
  // Entry 0 of these lists stands for no row and no column.
  const rowPotential = new Float64Array(scores.length + 1);
  const columnPotential = new Float64Array(columns + 1);
  const rowOf = new Int32Array(columns + 1);
  for (let row = 1; row <= scores.length; row++) {
    const before = augmentingPath(scores, row, rowOf, rowPotential, columnPotential);
    for (let column = before.end; column !== 0; ) {
      const previous = before.columns[column] as number;
      rowOf[column] = rowOf[previous] as number;
      column = previous;
    }
  }
  return scores.map((_, row) => rowOf.indexOf(row + 1, 1) - 1);
}

/** The cheapest path from a row to a free column; the potentials are kept up to date. */
function augmentingPath(
  scores: readonly (readonly number[])[],
  row: number,
  rowOf: Int32Array,
  rowPotential: Float64Array,
  columnPotential: Float64Array,
): { end: number; columns: Int32Array } {
  const count = rowOf.length;
  const least = new Float64Array(count).fill(Number.POSITIVE_INFINITY);
  const columns = new Int32Array(count);
  const visited = new Uint8Array(count);
  let end = 0;
  rowOf[0] = row;
  do {
    visited[end] = 1;
    const at = rowOf[end] as number;
    let step = Number.POSITIVE_INFINITY;
    let nearest = 0;
    for (let column = 1; column < count; column++) {
      if (visited[column]) continue;
      const cost =
        -((scores[at - 1] as readonly number[])[column - 1] as number) -
        (rowPotential[at] as number) -
        (columnPotential[column] as number);
      if (cost < (least[column] as number)) {
        least[column] = cost;
        columns[column] = end;
      }
      if ((least[column] as number) < step) {
        step = least[column] as number;
        nearest = column;
      }
    }
    for (let column = 0; column < count; column++) {
      if (visited[column]) {
        const owner = rowOf[column] as number;
        rowPotential[owner] = (rowPotential[owner] as number) + step;
        columnPotential[column] = (columnPotential[column] as number) - step;
      } else least[column] = (least[column] as number) - step;
    }
    end = nearest;
  } while (rowOf[end] !== 0);
  return { end, columns };
}
