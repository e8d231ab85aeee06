// The demo in a real browser: starts `chatting-server demo`, types into the sender's pane, and waits until the message
// is in the presenter's. Then another demo takes the first one's place, which does not know the page's token. Leaves a
// screenshot in target/demo.png. Run by scripts/test --only browser.
//
//   CHATTING_SERVER  the binary (default: target/debug/chatting-server)
//   CHROMIUM         the browser (default: chromium from PATH)

import { spawn, execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
const server = process.env.CHATTING_SERVER ?? join(target, "debug/chatting-server");
const browserPath = process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
// Kept by scripts/get-tools, outside of the sources.
const { chromium } = createRequire(join(target, "tools/web/package.json"))("playwright-core");

const patience = 30_000;
const work = mkdtempSync(join(tmpdir(), "chatting-demo-"));
const portFile = join(work, "port");

let output = "";
let demo, ended;

/**
 * A port below those that the system gives to whoever connects: while no demo has it, the page, which tries it again, could
 * otherwise be given that very port for its own end, and keep it.
 */
async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(12_000 * Math.random());
    const free = await new Promise((done) => {
      const attempt = createServer();
      attempt.once("error", () => done(false));
      attempt.listen(port, "127.0.0.1", () => attempt.close(() => done(true)));
    });
    if (free) return `${port}`;
  }
}

/** Starts it, and gives its address. */
async function start(port) {
  rmSync(portFile, { force: true });
  demo = spawn(server, ["demo", "--port", port, "--port-file", portFile], { cwd: work, stdio: ["ignore", "pipe", "pipe"] });
  ended = new Promise((done) => demo.once("close", (code, signal) => done({ code, signal })));
  demo.once("error", (error) => (output += `cannot start ${server}: ${error.message}\n`));
  demo.stdout.on("data", (data) => (output += data));
  demo.stderr.on("data", (data) => (output += data));
  return eventually("its address", () => existsSync(portFile) && readFileSync(portFile, "utf8").trim());
}

/** Tells it to stop, and waits until it has. */
async function stop() {
  demo.kill("SIGTERM");
  const { code, signal } = await ended;
  if (code !== 0) throw new Error(`after SIGTERM the demo ended with ${code ?? signal}`);
}

/** Asks until `probe` gives something; fails at once when the demo has ended. */
async function eventually(what, probe) {
  let over = false;
  ended.then(() => (over = true));
  for (const deadline = Date.now() + patience; Date.now() < deadline; ) {
    const value = probe();
    if (value) return value;
    if (over) throw new Error(`the demo ended before ${what}`);
    await new Promise((next) => setTimeout(next, 20));
  }
  throw new Error(`waited in vain for ${what}`);
}

let browser;
let failed = false;
try {
  const port = await freePort();
  const address = await start(port);
  browser = await chromium.launch({
    executablePath: browserPath,
    args: [
      "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
    timeout: patience,
  });
  const page = await browser.newPage({ viewport: { width: 1100, height: 700 } });
  page.setDefaultTimeout(patience);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("request", (request) => {
    const host = new URL(request.url()).host;
    if (host && host !== address) complaints.push(`the page asked another host: ${request.url()}`);
  });

  await page.goto(`http://${address}/demo`);
  const messages = page.locator("#presenter .message");
  // The second holds what a page must show as text and nothing else.
  const texts = ["안녕하세요, 첫 메시지", `<img src=x onerror="document.title='broken'"> & "quoted"`, "third, by the Enter key"];
  for (const [index, text] of texts.entries()) {
    await page.fill("#text", text);
    if (index < 2) await page.click("#send");
    else await page.press("#text", "Enter");
    await messages.filter({ hasText: text }).first().waitFor();
  }
  const shown = await messages.allInnerTexts();
  await page.screenshot({ path: join(target, "demo.png") });

  if (shown.length !== texts.length || !texts.every((text, index) => shown[index].includes(text)))
    throw new Error(`the presenter's pane shows ${JSON.stringify(shown)}`);
  if (complaints.length) throw new Error(`the page complains: ${complaints.join("; ")}`);
  console.log(`presenter's pane: ${JSON.stringify(shown)}`);

  // Whatever has the port now is not the page's server: it is tried no more.
  await stop();
  await start(port);
  await page.locator("#connection", { hasText: "reload" }).waitFor();
  await stop();
  console.log(`demo page: ok, screenshot in ${join(target, "demo.png")}`);
} catch (error) {
  failed = true;
  console.error(`demo page: ${error.message}\n--- what the demo wrote\n${output}`);
} finally {
  await browser?.close();
  demo?.kill("SIGKILL");
  await ended;
  rmSync(work, { recursive: true, force: true });
}
process.exitCode = failed ? 1 : 0;
