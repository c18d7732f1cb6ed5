import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

// A server that speaks the endpoints of the Hugging Face Hub that `@huggingface/hub` uses, over real
// sockets: facts and files of a model, ranges and redirects, LFS uploads and commits.

/** A model on the server. */
export interface ServedModel {
  files: Map<string, Buffer>;
  commit: string;
  /** Status and message with which the server refuses the model. */
  refusal?: { status: number; error: string };
}

/** What happens to a response with a file's bytes. */
export type Fault = { cutAfter: number } | { damageAt: number } | { status: number };

export interface HubServer {
  url: string;
  models: Map<string, ServedModel>;
  /** Faults of the next answers with bytes of large files, first in first out. */
  faults: Fault[];
  /** Each request: method, path, and the range if one was asked for. */
  requests: string[];
  close(): Promise<void>;
}

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const gitHash = (bytes: Uint8Array) =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
export const isLarge = (path: string): boolean => path.endsWith(".safetensors");
export const commitOf = (files: ReadonlyMap<string, Buffer>): string => {
  const hash = createHash("sha1");
  for (const [path, bytes] of files) hash.update(`${path}\0${sha256(bytes)}\n`);
  return hash.digest("hex");
};

export async function hubServer(): Promise<HubServer> {
  const models = new Map<string, ServedModel>();
  const faults: Fault[] = [];
  const requests: string[] = [];
  const large = new Map<string, Buffer>();
  const sockets = new Set<{ destroy(): void }>();
  const server = createServer((request, response) => {
    void answer(request, response).catch((error: Error) => {
      json(response, 500, { error: error.message });
    });
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

  const refuse = (response: ServerResponse, name: string): ServedModel | null => {
    const model = models.get(name);
    if (!model) {
      json(response, 404, { error: "Repository not found" }, { "X-Error-Code": "RepoNotFound" });
      return null;
    }
    if (model.refusal) {
      json(response, model.refusal.status, { error: model.refusal.error });
      return null;
    }
    return model;
  };

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname } = new URL(request.url as string, url);
    const path = decodeURIComponent(pathname);
    const { range } = request.headers;
    requests.push(`${request.method} ${path}${range ? ` ${range}` : ""}`);
    const body = await bodyOf(request);
    const isWrite = request.method !== "GET" && !path.startsWith("/store/");
    if (isWrite && request.headers.authorization !== "Bearer hf_writer") {
      return json(response, 401, { error: "Invalid credentials in Authorization header" });
    }
    const [, owner, name, kind, ...rest] = path.replace(/^\/api\/models/, "").split("/");
    const repo = `${owner}/${name}`;
    const revision = (rest[0] ?? "").replace(/\?.*/, "");
    if (path === "/api/repos/create") {
      const given = JSON.parse(body.toString()) as { name: string; organization: string };
      const made = `${given.organization}/${given.name}`;
      if (models.has(made)) return json(response, 409, { error: "You already created this" });
      models.set(made, { files: new Map(), commit: commitOf(new Map()) });
      return json(response, 200, { url: `${url}/${made}`, id: made });
    }
    if (path.startsWith("/cdn/")) return sendBytes(request, response, large.get(path.slice(5)));
    if (path.startsWith("/store/")) {
      const hash = sha256(body);
      if (hash !== path.slice(7)) return json(response, 400, { error: `expected ${path}` });
      large.set(hash, body);
      return json(response, 200, {});
    }
    if (path.endsWith(".git/info/lfs/objects/batch")) {
      const { objects } = JSON.parse(body.toString()) as {
        objects: { oid: string; size: number }[];
      };
      const upload = (oid: string) => ({ upload: { href: `${url}/store/${oid}` } });
      return json(response, 200, {
        transfer: "basic",
        objects: objects.map(({ oid, size }) => ({
          oid,
          size,
          ...(!large.has(oid) && { actions: upload(oid) }),
        })),
      });
    }
    const model = refuse(response, repo);
    if (model === null) return;
    const isKnown = ["main", "HEAD", model.commit].includes(revision);
    if (!isKnown) return json(response, 404, { error: `Invalid rev id: ${revision}` });
    if (kind === "revision") {
      return json(response, 200, { _id: "1", id: repo, sha: model.commit, private: false });
    }
    if (kind === "tree") {
      const list = [...model.files].map(([file, bytes]) => ({
        type: "file",
        path: file,
        size: bytes.length,
        oid: gitHash(bytes),
        ...(isLarge(file) && {
          lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 },
        }),
      }));
      return json(response, 200, [{ type: "directory", path: "onnx", size: 0 }, ...list]);
    }
    if (kind === "resolve") {
      const file = rest.slice(1).join("/");
      const bytes = model.files.get(file);
      if (!bytes) {
        return json(response, 404, { error: "no" }, { "X-Error-Code": "EntryNotFound" });
      }
      if (!isLarge(file)) return sendBytes(request, response, bytes);
      large.set(sha256(bytes), bytes);
      response.writeHead(302, { location: `${url}/cdn/${sha256(bytes)}` }).end();
      return;
    }
    if (kind === "preupload") {
      const { files } = JSON.parse(body.toString()) as { files: { path: string }[] };
      return json(response, 200, {
        files: files.map((file) => ({
          path: file.path,
          uploadMode: isLarge(file.path) ? "lfs" : "regular",
        })),
      });
    }
    if (kind === "commit") {
      for (const line of body.toString().split("\n")) {
        const { key, value } = JSON.parse(line) as { key: string; value: Record<string, string> };
        const target = value.path as string;
        if (key === "file") model.files.set(target, Buffer.from(value.content as string, "base64"));
        else if (key === "deletedFile") model.files.delete(target);
        else if (key === "lfsFile") {
          const stored = large.get(value.oid as string);
          if (!stored) return json(response, 400, { error: `${value.oid} was not uploaded` });
          model.files.set(target, stored);
        }
      }
      model.commit = commitOf(model.files);
      return json(response, 200, { commitOid: model.commit, commitUrl: `${url}/${repo}` });
    }
    json(response, 404, { error: `no endpoint ${path}` });
  }

  function sendBytes(request: IncomingMessage, response: ServerResponse, all?: Buffer): void {
    if (!all) {
      json(response, 404, { error: "no such object" });
      return;
    }
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
    const from = Number(first ?? 0);
    const to = last ? Math.min(Number(last) + 1, all.length) : all.length;
    let bytes = Buffer.from(all.subarray(from, to));
    const probe = to - from <= 1 && all.length > 1;
    const fault = request.url?.startsWith("/cdn/") && !probe ? faults.shift() : undefined;
    if (fault && "status" in fault) {
      json(response, fault.status, { error: "the storage is out of order" });
      return;
    }
    if (fault && "damageAt" in fault) bytes[fault.damageAt] = (bytes[fault.damageAt] ?? 0) ^ 1;
    response.writeHead(first === undefined ? 200 : 206, {
      "content-length": bytes.length,
      etag: `"${sha256(all)}"`,
      ...(first !== undefined && { "content-range": `bytes ${from}-${to - 1}/${all.length}` }),
    });
    if (!fault || !("cutAfter" in fault)) {
      response.end(bytes);
      return;
    }
    bytes = bytes.subarray(0, fault.cutAfter);
    response.write(bytes, () => setTimeout(() => response.destroy(), 30));
  }

  return {
    url,
    models,
    faults,
    requests,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function json(
  response: ServerResponse,
  status: number,
  value: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(value));
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
