import type { Document } from "./index.js";

/** A batch for the encoder: enough for every core, little enough to stay in memory. */
const batchLength = 2 ** 21;
const batchDocuments = 1024;

/** Documents in batches. */
export async function* batched(documents: AsyncIterable<Document>): AsyncGenerator<Document[]> {
  let batch: Document[] = [];
  let length = 0;
  for await (const document of documents) {
    batch.push(document);
    length += document.text.length;
    if (length < batchLength && batch.length < batchDocuments) continue;
    yield batch;
    batch = [];
    length = 0;
  }
  if (batch.length > 0) yield batch;
}
