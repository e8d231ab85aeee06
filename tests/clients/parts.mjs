// What the scenario in run.mjs is played with: the server, a line that can be cut, a sender, the three kinds of client.
// All on loopback; whatever is started is handed to `atEnd`.

import { execFile, spawn } from "node:child_process";
import { generateKeyPairSync, sign } from "node:crypto";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

/** How long anything may take. Everything does within a second or two, or when a timer of the settings has run out. */
const PATIENCE_MS = 60_000;

// ---- waiting --------------------------------------------------------------------------------------------------------

const waiters = new Set();
let failure = null;
let failing;
/** Rejects with the first failure, wherever it was seen. */
export const failed = new Promise((_, reject) => (failing = reject));
failed.catch(() => {}); // whoever wants to know has it too

/** Something has happened: whoever waits looks again. */
export function news() {
  for (const look of [...waiters]) look();
}

/** Everybody who waits fails, and whoever waits later. */
export function fail(error) {
  failure ??= error;
  failing(failure);
  news();
}

/** Waits until `probe` gives something, looking whenever something has happened. `state` tells what there was. */
export function until(what, probe, state = () => "") {
  return new Promise((resolve, reject) => {
    const done = (settle, value) => {
      waiters.delete(look);
      clearTimeout(timer);
      settle(value);
    };
    const look = () => {
      if (failure) return done(reject, failure);
      const value = probe();
      if (value) done(resolve, value);
    };
    const timer = setTimeout(() => done(reject, new Error(`waited in vain for ${what}; ${state()}`)), PATIENCE_MS);
    waiters.add(look);
    look();
  });
}

/** Fails, saying what was expected, what was seen instead. */
export function expect(what, seen, expected) {
  const [a, b] = [JSON.stringify(seen), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${what}: expected ${b}, but saw ${a}`);
}

const closers = [];

/** Done at the end, however it comes, the last one first. */
export function atEnd(close) {
  closers.push(close);
}

export async function end() {
  while (closers.length) {
    let timer;
    const late = new Promise((late) => (timer = setTimeout(late, 5000))); // one that hangs must not keep the others
    await Promise.race([Promise.resolve(closers.pop()()).catch(() => {}), late]);
    clearTimeout(timer);
  }
}

/** A child's lines as they come; its end when it was not asked for fails everything. */
function child(name, command, args, options, onLine) {
  const process = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], ...options });
  const self = { process, log: [], wanted: false };
  const keep = (line) => self.log.push(line.slice(0, 400)) > 200 && self.log.shift();
  createInterface({ input: process.stderr }).on("line", keep);
  createInterface({ input: process.stdout }).on("line", onLine ?? keep);
  process.stdin.on("error", () => {}); // it has ended, which is told below
  self.ended = new Promise((done) => {
    const over = (how) => {
      if (!self.wanted) fail(new Error(`${name} ended by itself: ${how}\n${self.log.join("\n")}`));
      self.how = how;
      done(how);
      news();
    };
    process.once("error", (error) => over(error.message));
    process.once("close", (code, signal) => over(code ?? signal));
  });
  self.end = async (signal) => {
    self.wanted = true;
    if (self.how === undefined) process.kill(signal);
    return self.ended;
  };
  atEnd(() => self.end("SIGKILL"));
  return self;
}

// ---- the server -----------------------------------------------------------------------------------------------------

/** The real server, in one directory over its restarts. */
export class Server {
  address = null;
  log = [];
  #binary;
  #dir;
  #env;
  #sets;
  #child;

  constructor(binary, dir, secret, settings) {
    this.#binary = binary;
    this.#dir = dir;
    // Settings of whoever runs this are not the test's.
    const own = Object.entries(process.env).filter(([key]) => !key.startsWith("CHAT__"));
    this.#env = { ...Object.fromEntries(own), CHAT__AUTH__HS256_SECRET: secret, CHAT__LIMITS__SENDER_PER_SECOND: "0" };
    this.#sets = Object.entries(settings).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
  }

  async start() {
    const portFile = join(this.#dir, "port");
    rmSync(portFile, { force: true });
    const args = ["serve", "--port-file", portFile, ...this.#sets];
    this.#child = child("the server", this.#binary, args, { cwd: this.#dir, env: this.#env });
    this.log = this.#child.log;
    const poll = setInterval(news, 10);
    await until("the server's address", () => existsSync(portFile)).finally(() => clearInterval(poll));
    this.address = readFileSync(portFile, "utf8").trim();
  }

  /** SIGTERM; gives the exit code. */
  stop() {
    return this.#child.end("SIGTERM");
  }

  async token(user, { ttl = 3600, more = [] } = {}) {
    const args = ["token", "--user", user, "--ttl", ttl, ...more].map(String);
    const { stdout } = await promisify(execFile)(this.#binary, args, { cwd: this.#dir, env: this.#env });
    return stdout.trim();
  }

  fetch(path, token, options = {}) {
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json", ...options.headers };
    return fetch(`http://${this.address}${path}`, { ...options, headers, signal: AbortSignal.timeout(5000) });
  }
}

/** What says what the test wants, where the real server says it only when something is wrong. */
export class Scripted {
  /** The `hello` of each connection. */
  hellos = [];

  /**
   * `answers[n]` is given the socket of connection n when it has said `hello`. `WebSocketServer` is that of `ws`. The first
   * upgrades are refused with `refusals`, `[status, headers]` each.
   */
  constructor(WebSocketServer, answers, refusals = []) {
    const left = [...refusals];
    const verifyClient = (_, done) => {
      const [status, headers = {}] = left.shift() ?? [];
      done(status === undefined, status, "", headers);
    };
    this.listener = new WebSocketServer({ host: "127.0.0.1", port: 0, verifyClient });
    this.listener.on("connection", (socket) => {
      const answer = answers[this.hellos.length];
      socket.once("message", (hello) => {
        this.hellos.push(JSON.parse(hello));
        if (!answer) fail(new Error(`a connection too many: ${hello}`));
        else answer(socket);
        news();
      });
      socket.on("error", () => {});
    });
  }

  async listen() {
    if (!this.listener.address()) await new Promise((done) => this.listener.once("listening", done));
    atEnd(() => {
      for (const socket of this.listener.clients) socket.terminate();
      this.listener.close();
    });
    this.url = `ws://127.0.0.1:${this.listener.address().port}/v1/presenter`;
    return this;
  }
}

// ---- a line that can be cut -----------------------------------------------------------------------------------------

/** A TCP link to where the server is now. */
export class Link {
  /** When each connection was made, in milliseconds since 1970. */
  connects = [];
  #open = true;
  #pairs = new Set();

  constructor(server) {
    this.listener = createServer({ noDelay: true }, (near) => {
      this.connects.push(Date.now());
      near.on("error", () => {});
      if (!this.#open) return near.resetAndDestroy();
      const [host, port] = server.address.split(":");
      const far = connect({ host, port: Number(port), noDelay: true });
      const pair = [near, far];
      this.#pairs.add(pair);
      far.on("error", () => near.resetAndDestroy());
      near.pipe(far).pipe(near);
      for (const end of pair)
        end.on("close", () => {
          this.#pairs.delete(pair);
          pair.forEach((other) => other.destroy());
        });
      news();
    });
  }

  async listen() {
    await new Promise((done, failed) => this.listener.once("error", failed).listen(0, "127.0.0.1", done));
    atEnd(() => {
      this.listener.close();
      this.cut();
    });
    this.url = `ws://127.0.0.1:${this.listener.address().port}/v1/presenter`;
    return this;
  }

  /** Resets what is connected; new connections are refused until `mend`. */
  cut() {
    this.#open = false;
    for (const [near, far] of this.#pairs) {
      near.resetAndDestroy();
      far.resetAndDestroy();
    }
  }

  mend() {
    this.#open = true;
  }

  /** What is connected carries nothing any more, and neither side is told. Gives the end of that, which cuts it. */
  freeze() {
    const pairs = [...this.#pairs];
    for (const [near, far] of pairs) {
      near.unpipe(far);
      far.unpipe(near);
      near.pause();
      far.pause();
    }
    return () => pairs.flat().forEach((end) => end.resetAndDestroy());
  }
}

// ---- a sender -------------------------------------------------------------------------------------------------------

/** What each sender waits for, or was told last, for whoever has to find out why nothing more came. */
export const senders = new Map();

/** A viewer who sends without end, and tries again, with the same key, until each message has been taken. */
export class Sender {
  /** The answers of those that were taken. */
  accepted = [];
  texts = [];
  #going = true;

  constructor(server, room, token) {
    this.done = this.#send(server, room, token).catch(fail);
    atEnd(() => this.stop());
  }

  async #send(server, room, token) {
    for (let n = 1; this.#going; ) {
      const text = `${n}: 안녕 <b>&"${room}"</b>`;
      let answer;
      try {
        const headers = { "Idempotency-Key": `"${room}-${n}"` };
        const body = JSON.stringify({ text });
        senders.set(room, `${n}: no answer yet`);
        answer = await server.fetch(`/v1/rooms/${room}/messages`, token, { method: "POST", headers, body });
        const told = await answer.json();
        senders.set(room, `${n}: ${answer.status} ${JSON.stringify(told)}`);
        if (answer.status === 201) {
          this.accepted.push(told);
          this.texts.push(text);
          n += 1;
          news();
        } else if (answer.status < 500) throw new Refused(`the sender got ${answer.status} ${JSON.stringify(told)}`);
      } catch (error) {
        if (error instanceof Refused) throw error; // else the server is not there just now
      }
      await new Promise((next) => setTimeout(next, 20)); // the rate, 50 a second at most
    }
  }

  /** After this nothing more is sent. */
  async stop() {
    this.#going = false;
    await this.done;
  }
}

class Refused extends Error {}

// ---- clients --------------------------------------------------------------------------------------------------------

/** A kind of client: hands its puppet orders, and each Presenter's events to whom they concern. */
export class Client {
  #parts = new Map();

  constructor(name) {
    this.name = name;
  }

  /** A puppet in a process of its own. */
  static process(name, command, args) {
    const client = new Client(name);
    const puppet = child(name, command, args, {}, (line) => client.hear(JSON.parse(line)));
    client.obey = async (order) => void puppet.process.stdin.write(`${JSON.stringify(order)}\n`);
    return client;
  }

  /** A puppet in a page. */
  static async page(name, page, url) {
    const client = new Client(name);
    page.on("pageerror", (error) => fail(new Error(`the page: ${error.stack ?? error}`)));
    page.on("crash", () => fail(new Error("the page has crashed")));
    await page.exposeFunction("tell", (event) => client.hear(event));
    await page.goto(url);
    await page.waitForFunction("window.obey");
    client.shown = () => page.locator("#chat li").last().innerText();
    client.obey = (order) => page.evaluate((order) => window.obey(order), order);
    return client;
  }

  hear(event) {
    this.#parts.get(event.name).hear(event);
    news();
  }

  /**
   * Starts a Presenter, with the `state` of one that is over, or none. `tokens` is asked with how often it was asked before;
   * null lets the Presenter wait.
   */
  async start(name, url, tokens, state) {
    const part = new Part(`${this.name} ${name}`, tokens, (order) => this.obey({ name, ...order }));
    this.#parts.set(name, part);
    await part.obey({ do: "start", url, state });
    return part;
  }
}

/** What one Presenter has heard. */
export class Part {
  chats = [];
  welcomes = [];
  closes = [];
  reconnects = [];
  moderations = [];
  connected = false;
  /** What must not be. */
  wrong = [];
  refreshed = 0;
  asked = 0;
  over = null;
  /** What the next client is to go on from, once this one is over. */
  state = null;

  constructor(name, tokens, obey) {
    this.name = name;
    this.tokens = tokens;
    this.obey = obey;
  }

  get last() {
    return this.chats.at(-1)?.seq ?? 0;
  }

  hear(event) {
    switch (event.type) {
      case "token":
        this.#token().catch(fail);
        break;
      case "welcome":
        // What it should be told, if no message is to be missing and none to come twice.
        this.connected = true;
        this.welcomes.push({ ...event, wanted: this.last + 1 });
        break;
      case "chat":
        if (this.chats.length && event.seq !== this.last + 1) this.wrong.push(`${event.seq} after ${this.last}`);
        this.chats.push(event);
        break;
      case "moderation":
        this.moderations.push(event);
        break;
      case "reconnect":
        this.reconnects.push(event);
        break;
      case "closed":
        this.connected = false;
        this.closes.push(event);
        break;
      case "refreshed":
        this.refreshed += 1;
        break;
      case "over":
        this.over = event.why;
        this.state = event.state;
        break;
      case "error":
        this.error = event;
        break;
      default:
        this.wrong.push(JSON.stringify(event));
    }
    if (this.wrong.length) fail(new Error(`${this.name}: ${this.wrong.join(", ")}`));
  }

  async #token() {
    this.asked += 1;
    const token = await this.tokens(this.asked);
    if (token) await this.obey({ do: "token", token });
  }

  /** Waits for more of it. */
  until(what, probe) {
    return until(`${this.name}: ${what}`, probe, () => this.seen());
  }

  /** Waits for so many messages more. */
  more(count) {
    const enough = this.chats.length + count;
    return this.until(`${count} messages more`, () => this.chats.length >= enough);
  }

  /** Waits for its next `welcome`: on from the message after the last that it had, and no gap. */
  async resumed(before) {
    await this.until("a welcome", () => this.welcomes.length > before);
    const [earlier, welcome] = this.welcomes.slice(before - 1);
    expect(`${this.name}: where it goes on`, [welcome.resumed_from, welcome.gap], [welcome.wanted, null]);
    expect(`${this.name}: the epoch`, welcome.epoch, earlier.epoch);
    if (welcome.session_id === earlier.session_id) throw new Error(`${this.name}: two sessions of one name`);
    return welcome;
  }

  seen() {
    const { chats, welcomes, closes, reconnects, over, asked, refreshed, error } = this;
    const counts = { messages: chats.length, last: this.last, asked, refreshed, over, error };
    return `seen ${JSON.stringify({ ...counts, welcomes: welcomes.slice(-2), closes: closes.slice(-4), reconnects })}`;
  }
}

// ---- what is served beside the server -------------------------------------------------------------------------------

/** Has it listen until the end; gives its port. */
async function serve(web) {
  await new Promise((done, failed) => web.once("error", failed).listen(0, "127.0.0.1", done));
  atEnd(() => {
    web.close();
    web.closeAllConnections();
  });
  return web.address().port;
}

/** A token service: the keys that it signs with, and the set of those that it publishes. */
export class TokenService {
  #published = [];

  async listen() {
    const web = createHttpServer((_, response) =>
      response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify({ keys: this.#published })));
    this.url = `http://127.0.0.1:${await serve(web)}/jwks.json`;
    return this;
  }

  /** A new key: `token` signs with it, `publish` has it in the set from then on. */
  key(kid) {
    const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const part = (what) => Buffer.from(JSON.stringify(what)).toString("base64url");
    return {
      publish: () => this.#published.push({ ...publicKey.export({ format: "jwk" }), kid, alg: "ES256", use: "sig" }),
      token: (user) => {
        const iat = Math.floor(Date.now() / 1000);
        const said = `${part({ alg: "ES256", typ: "JWT", kid })}.${part({ user_idx: user, iat, exp: iat + 3600 })}`;
        const signature = sign("sha256", Buffer.from(said), { key: privateKey, dsaEncoding: "ieee-p1363" });
        return `${said}.${signature.toString("base64url")}`;
      },
    };
  }
}

/** Serves these files of a directory. */
export async function serveFiles(dir, files) {
  const types = { html: "text/html; charset=utf-8", mjs: "text/javascript; charset=utf-8" };
  const web = createHttpServer((request, response) => {
    const name = request.url.slice(1);
    if (!files.includes(name)) return response.writeHead(404).end();
    response.writeHead(200, { "Content-Type": types[name.split(".").at(-1)] }).end(readFileSync(join(dir, name)));
  });
  return serve(web);
}
