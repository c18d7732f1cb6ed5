// The chat page in a browser, against a real server.
import { readFileSync } from "node:fs";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Tokenizer } from "../../lib/data/tokenizer.js";
import type { Llama } from "../../lib/model/llama.js";
import { launchChromium, screenshots } from "../support/chromium.js";
import { type Served, served, tinyModel, until } from "./support.js";

let parts: [Llama, Tokenizer];
let server: Served;
let browser: Browser;
beforeAll(async () => {
  parts = await tinyModel(2048);
  server = await served(parts, { modelName: "tiny-<b>model</b>" });
  browser = await launchChromium();
}, 60_000);
afterAll(async () => {
  await browser?.close();
  await server?.close();
  parts?.[0].dispose();
});

interface OpenPage {
  page: Page;
  /** Console errors, exceptions and requests to others than the server. */
  complaints: string[];
}

async function openChat(
  url = server.url,
  options: { dark?: boolean; width?: number } = {},
): Promise<OpenPage> {
  const { dark = false, width = 1100 } = options;
  const page = await browser.newPage({
    viewport: { width, height: 760 },
    colorScheme: dark ? "dark" : "light",
  });
  page.setDefaultTimeout(10_000);
  const complaints: string[] = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(`${url}/`) && !request.url().startsWith("data:")) {
      complaints.push(request.url());
    }
  });
  await page.goto(`${url}/`);
  await page
    .locator("#hint")
    .filter({ hasText: "tokens" })
    .or(page.locator("#key:visible"))
    .waitFor();
  return { page, complaints };
}

const idle = async (page: Page): Promise<void> => {
  await page.locator("#log[aria-busy=false]").waitFor();
};

/** Sets the number of tokens, also while the settings are closed. */
const limit = async (page: Page, tokens: number): Promise<void> => {
  await page.evaluate(`document.getElementById("max-tokens").value = ${tokens}`);
};

async function ask(page: Page, text: string, maxTokens = 24): Promise<string> {
  await limit(page, maxTokens);
  const answers = await page.locator(".facts").count();
  await page.locator("#prompt").fill(text);
  await page.keyboard.press("Enter");
  await page.locator(".facts").nth(answers).waitFor();
  return await page.locator(".turn:last-child .text").innerText();
}

describe("the page", () => {
  test.each([
    ["light", 1100],
    ["dark", 390],
  ] as const)("chats without a complaint (%s, %i wide)", async (scheme, width) => {
    const { page, complaints } = await openChat(server.url, { dark: scheme === "dark", width });
    expect(await page.locator("h1").innerText()).toBe("tiny-<b>model</b>");
    expect((await ask(page, "Hello <script>1</script>")).length).toBeGreaterThan(5);
    await ask(page, "And then?\nTell me more.");
    expect(await page.locator(".mine .text").allInnerTexts()).toEqual([
      "Hello <script>1</script>",
      "And then?\nTell me more.",
    ]);
    expect(await page.locator(".facts").last().innerText()).toMatch(
      /24 tokens · [\d.]+ per second · ended by the limit of tokens/,
    );
    await page.locator("#show-settings").click();
    await page.screenshot({ path: `${screenshots}/chat-${scheme}.png` });
    const overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    expect(await page.evaluate(overflow)).toBe(0);
    expect(complaints).toEqual([]);
    await page.close();
  });

  test("sends the whole chat with its settings, and writes the last answer again", async () => {
    const { page } = await openChat();
    const bodies: { messages: object[]; temperature: number }[] = [];
    page.on("request", (request) => {
      if (request.method() === "POST") bodies.push(request.postDataJSON());
    });
    await page.locator("#show-settings").click();
    await page.locator("#system").fill("Be brief.");
    await page.locator("#temperature").fill("0");
    const one = await ask(page, "one", 8);
    await ask(page, "two", 8);
    await page.locator(".again").click();
    await idle(page);
    await until(() => bodies.length === 3);
    expect(bodies[1]).toMatchObject({
      temperature: 0,
      messages: [
        { role: "system", content: "Be brief." },
        { role: "user", content: "one" },
        { role: "assistant" },
        { role: "user", content: "two" },
      ],
    });
    expect(one.length).toBeGreaterThan(0);
    expect(bodies[2]).toEqual(bodies[1]);
    expect(await page.locator(".turn").count()).toBe(4);
    await page.close();
  });

  test("stops an answer, and its pages are free", async () => {
    const { page, complaints } = await openChat();
    await limit(page, 2000);
    await page.locator("#prompt").fill("long");
    await page.locator("#send").click();
    await until(() => server.engine.state.running === 1);
    await page.locator("#stop").click();
    await idle(page);
    expect(await page.locator(".facts").innerText()).toContain("stopped");
    await until(() => server.engine.state.freePages === server.engine.state.pages);
    // A new chat in the middle of an answer ends that one.
    await page.locator("#prompt").fill("again");
    await page.locator("#send").click();
    await until(() => server.engine.state.running === 1);
    await page.locator("#reset").click();
    await until(() => server.engine.state.running === 0);
    expect(await page.locator(".turn").count()).toBe(0);
    expect(complaints).toEqual([]);
    await page.close();
  });

  test("asks for a key where the server does, and shows its errors", async () => {
    const closed = await served(parts, { apiKeys: ["sesame"] });
    const { page } = await openChat(closed.url);
    await page.locator("#key").fill("sesame");
    await page.keyboard.press("Tab");
    await page.locator("h1", { hasText: "llamaforge" }).waitFor();
    expect((await ask(page, "hi", 5)).length).toBeGreaterThan(0);
    await page.locator("#temperature").fill("99");
    await ask(page, "hot", 5);
    expect(await page.locator(".error").innerText()).toContain("temperature: expected");
    await page.close();
    await closed.close();
  });

  test("continues texts where the model has no chat template", async () => {
    const plain = await served(parts, {}, { chatTemplate: null });
    const { page, complaints } = await openChat(plain.url);
    expect(await page.locator("#hint").innerText()).toContain("no chat template");
    expect((await ask(page, "Once upon", 8)).length).toBeGreaterThan(0);
    expect(complaints).toEqual([]);
    await page.close();
    await plain.close();
  });

  test("is one file that runs its own script and no other", async () => {
    const response = await fetch(`${server.url}/`);
    const html = await response.text();
    expect(html).toBe(readFileSync("assets/serve/chat.html", "utf8"));
    expect(html).not.toMatch(/<(script|link|img|iframe)[^>]+(src|href)="(?!data:)/i);
    const policy = response.headers.get("content-security-policy");
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toContain("unsafe");
    const { page, complaints } = await openChat();
    await page.evaluate(`{
      const script = document.createElement("script");
      script.textContent = "window.injected = true";
      document.body.append(script);
    }`);
    expect(await page.evaluate("window.injected")).toBeUndefined();
    expect(complaints.join("\n")).toContain("Content Security Policy");
    await page.close();
  });
});
