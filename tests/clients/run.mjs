// Presenters with real client libraries against the real server: Python's `websockets`, Node's `ws` and a browser, all
// at once, each in a room of its own with chat that never pauses. Prints a line for each promise kept; fails at the
// first that is not, with what was seen. Run by scripts/test --only clients.
//
//   CHATTING_SERVER  the binary (default: target/debug/chatting-server)
//   CHROMIUM         the browser (default: chromium from PATH)
//
// A client's line to the server is a link of the test, so that it can be cut; the server is stopped and started once
// for all. Beside that each meets a server that is none and says what the real one says when something is wrong.

import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import {
  Client, Link, Scripted, Sender, Server, TokenService, atEnd, end, expect, fail, failed, serveFiles, senders,
} from "./parts.mjs";

import { Presenter } from "./presenter.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, "../..");
const target = resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
const tools = join(target, "tools");
const binary = resolve(process.env.CHATTING_SERVER ?? join(target, "debug/chatting-server"));

/** So little credit that nothing flows without acknowledgements. */
const CREDIT = 8;
/** What a token lives that is to end: half of it, after which it is refreshed, is far more than that takes. */
const SHORT_LIFE_S = 10;
/** A minute is what it takes on two cores that have nothing else to do. */
const DEADLINE_MS = 600_000;
/** Longer than a connection may take to open. */
const LATE_WELCOME_MS = 11_000;
/** Longer than a client hears nothing before it takes the line for gone. */
const SLOW_WELCOME_MS = 35_000;
/** After this time a server that got a `hello`, and nothing since, refuses the senders: the stall, and the grace. */
const REFUSED_MS = 45_000;
/** A timer of Node's or Chromium's may fire this much early. */
const EARLY_MS = 5;
/** Half of this is more than the least wait between two questions for a token. */
const REFRESHED_LIFE_S = 4;
/** The least waits after a token was refused. */
const TOKEN_REFUSED_MS = [5000, 10_000, 20_000];
/** How long after its first use a key is published: later than half-second retries would wait. */
const LATE_KEY_MS = 3000;

const began = Date.now();
let promises = 0;
function kept(who, promise) {
  promises += 1;
  console.log(`${((Date.now() - began) / 1000).toFixed(1).padStart(5)} s  ${who.padEnd(12)} ${promise}`);
}

// ---- what each client goes through ----------------------------------------------------------------------------------

// The second of `exp` counts.
const lifeOf = (token) => (JSON.parse(Buffer.from(token.split(".")[1], "base64url")).exp + 1) * 1000;

async function goesLive(server, room) {
  const operator = await server.token(1, { more: ["--role", "operator"] });
  const body = JSON.stringify({ presenterIdx: String(room) });
  const started = await server.fetch("/room/live/start", operator, { method: "POST", body });
  expect("POST /room/live/start", started.status, 200);
}

/** One client, from its first connection until the server is about to be stopped. */
async function untilTheStop({ client, server, room, sender, viewer, service }) {
  const lines = { a: await new Link(server).listen(), b: await new Link(server).listen() };
  const long = () => server.token(room);
  let tokens = long;
  const a = await client.start("a", lines.a.url, () => tokens());
  const told = (promise) => kept(client.name, promise);

  // A message over credit would never come if those before it were not acknowledged.
  await a.more(5 * CREDIT);
  const [first] = a.welcomes;
  expect("welcome", [first.presenter_idx, first.gap, a.chats[0].seq], [room, null, first.resumed_from]);
  await a.until("3 viewers in the room's figures", poll(async () => {
    const told = await (await server.fetch(`/v1/rooms/${room}`, viewer)).json();
    return told.session && told.fanned_out === 3;
  }));
  told(`gets chat and acknowledges it: ${a.chats.length} messages through a credit of ${CREDIT}`);

  for (let cut = 1; cut <= 2; cut += 1) {
    const [welcomes, closes] = [a.welcomes.length, a.closes.length];
    lines.a.cut();
    await a.until("the cut", () => a.closes.length > closes);
    // One more than we ask for below: the client may have a message whose answer the sender has not.
    const enough = sender.accepted.length + 11;
    await a.until("chat while it is away", () => sender.accepted.length >= enough);
    lines.a.mend();
    const welcome = await a.resumed(welcomes);
    expect("the close of a cut line", a.closes[closes].code, 1006);
    await a.more(20);
    const missed = welcome.last_seq - welcome.resumed_from + 1;
    if (missed < 10) throw new Error(`only ${missed} messages came while ${a.name} was away`);
    told(`is cut, and resumes after ${welcome.resumed_from - 1}: ${missed} messages came meanwhile`);
  }

  {
    const [welcomes, closes] = [a.welcomes.length, a.closes.length];
    const thaw = lines.a.freeze();
    const welcome = await a.resumed(welcomes);
    expect("why it left a dead line", a.closes[closes].reason, "silent");
    thaw();
    await a.more(20);
    told(`leaves a line that has gone silent by itself, and resumes after ${welcome.resumed_from - 1}`);
  }

  // One session's question for a fresh token is not answered, so that it ends with the old one; the next one's is.
  {
    const [welcomes, closes, refreshed] = [a.welcomes.length, a.closes.length, a.refreshed];
    let ending; // of the token that was given to connect with
    tokens = async () => {
      const expired = a.closes.some(({ code }) => code === 4002);
      if (a.connected) return expired ? long() : null;
      const token = await server.token(room, { ttl: SHORT_LIFE_S });
      ending = lifeOf(token);
      return token;
    };
    lines.a.cut();
    await a.until("the cut", () => a.closes.length > closes);
    lines.a.mend();
    await a.resumed(welcomes);
    const ended = ending;
    await a.until("the end of its token", () => a.closes.length > closes + 1);
    const expired = a.closes[closes + 1];
    expect("the close", [expired.code, expired.reason, a.error?.code], [4002, "token_expired", "token_expired"]);
    if (expired.at + EARLY_MS < ended) throw new Error(`${a.name} was closed before its token's end`);
    const welcome = await a.resumed(welcomes + 1);
    told(`is closed with 4002 when its token ends, and resumes after ${welcome.resumed_from - 1} with a new one`);
    await a.until("a refresh", () => a.refreshed > refreshed);
    if (a.chats.at(-1).at > ending) throw new Error(`${a.name} refreshed its token too late to prove anything`);
    await a.until("chat after the first token's end", () => a.chats.at(-1).at > ending + 300);
    expect("sessions and ends since", [a.welcomes.length, a.closes.length], [welcomes + 2, closes + 2]);
    told("refreshes its token by a later hello, and the session outlives the first token");
    tokens = long;
  }

  // A token service that signs with a key before it has published it.
  {
    const [welcomes, closes] = [a.welcomes.length, a.closes.length];
    const key = service.key(`of ${room}`);
    tokens = () => key.token(room);
    lines.a.cut();
    await a.until("the cut", () => a.closes.length > closes);
    lines.a.mend();
    const refusals = () => a.closes.slice(closes).filter(({ code }) => code === 4001);
    await a.until("its refusal", () => refusals().length);
    setTimeout(key.publish, LATE_KEY_MS);
    const welcome = await a.resumed(welcomes);
    told(`resumes after ${welcome.resumed_from - 1} with a key that was published late (refusals: ${refusals().length})`);
    tokens = long;
  }

  const connects = lines.a.connects.length;
  const b = await client.start("b", lines.b.url, long);
  await b.until("a welcome", () => b.welcomes.length);
  await a.until("its end", () => a.over);
  const replaced = a.closes.at(-1);
  expect("how the first ends", [a.over, replaced.code, replaced.over], ["replaced", 4003, "replaced"]);
  const from = b.welcomes[0].resumed_from;
  if (from > a.last + 1 || from < a.last + 1 - CREDIT)
    throw new Error(`${b.name} goes on from ${from}, but ${a.last} was seen and all but ${CREDIT} acknowledged`);
  await b.more(20);
  expect("where the second goes on", b.chats[0].seq, from);
  told(`is taken over (4003) after ${a.last} by a second one, which goes on from ${from}`);

  return { a, b, lines, connects, welcomes: b.welcomes.length, closes: b.closes.length };
}

/** The rest, while the server is stopped and started again. */
async function overTheStop({ client, sender }, { a, b, lines, connects, welcomes, closes }, restarted) {
  const told = (promise) => kept(client.name, promise);
  await b.until("its end", () => b.closes.length > closes);
  const [left, asked] = [b.closes[closes], b.reconnects[0]];
  expect("what it was told before", [b.reconnects.length, asked?.reason], [1, "drain"]);
  expect("the close", left.code, 1001);
  told(`is told to come back in ${asked.after_ms} ms when the server gets SIGTERM, and is closed with 1001`);

  await restarted;
  const welcome = await b.resumed(welcomes);
  const waited = lines.b.connects.find((at) => at >= left.at) - asked.at;
  if (waited + EARLY_MS < asked.after_ms)
    throw new Error(`${b.name} came back after ${waited} ms, not ${asked.after_ms}`);
  await b.more(20);
  told(`comes back after ${waited} ms, and resumes after ${welcome.resumed_from - 1} from the restarted server`);

  await sender.stop();
  const { accepted, texts } = sender;
  await b.until("the last message", () => b.last === accepted.length);
  expect("every message's place", accepted.map(({ seq }) => seq), accepted.map((_, index) => index + 1));
  expect("numberings", [...new Set(accepted.map(({ epoch }) => epoch))], [welcome.epoch]);
  const all = accepted.map(({ seq, id }, index) => `${seq} ${id} ${texts[index]}`);
  const seen = (part) => part.chats.map(({ seq, id, text }) => `${seq} ${id} ${text}`);
  expect("what the first saw", seen(a), all.slice(a.chats[0].seq - 1, a.last));
  expect("what the second saw", seen(b), all.slice(b.chats[0].seq - 1));
  expect("how often the first came back once it was replaced", lines.a.connects.length, connects);
  if (client.shown) expect("the last line of the page", await client.shown(), `하루: ${texts.at(-1)}`);
  await b.obey({ do: "stop" });
  await b.until("its end", () => b.over === "stopped");
  told(`saw ${all.length} of ${accepted.length} messages, in order, without a hole or a repeat`);
}

const { WebSocket, WebSocketServer } = createRequire(join(tools, "clients/package.json"))("ws");

const say = (socket, frame) => socket.send(JSON.stringify(frame));
const welcome = (socket) =>
  say(socket, {
    type: "welcome", session_id: "s", presenter_idx: 1, epoch: "e", last_seq: 7, resumed_from: 8, gap: null,
    keepalive_seconds: 15,
  });
const chat = (seq) => ({
  type: "chat", seq, id: String(seq), user_idx: 7, nickname: "하루", text: "hi", sent_at: "2026-01-01T00:00:00.000Z",
  role: "viewer",
});
/** Says these events behind a `welcome`; `acks` gets what is said to them, and when all are acknowledged the room is taken over. */
const speaks = (events, acks) => (socket) => {
  socket.on("message", (text) => {
    acks.push(JSON.parse(text));
    if (acks.length === events.length) socket.close(4003, "replaced");
  });
  welcome(socket);
  events.forEach((event) => say(socket, event));
};

/** A token of a token service whose clock is `behind` ours, in seconds, and that has half a second left by its own. */
const tokenBehind = (behind, n) => {
  const exp = Date.now() / 1000 + 0.5 - behind;
  const claims = { user_idx: 1, iat: exp - REFRESHED_LIFE_S, exp, n };
  return `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.c2ln`;
};

/** What the real server says only when MongoDB is away, or when it is given something that is wrong. */
async function withAScriptedServer(client) {
  const told = (promise) => kept(client.name, promise);
  const scripted = await new Scripted(WebSocketServer, [
    (socket) => setTimeout(() => (welcome(socket), socket.close(4001, "unauthenticated")), LATE_WELCOME_MS),
    (socket) => socket.close(4004, "bad_frame"),
    (socket) => (welcome(socket), socket.close(4001, "unauthenticated")),
    (socket) => socket.close(4004, "bad_frame"),
  ]).listen();
  const refuses = (socket) => socket.close(4001, "unauthenticated");
  const same = await new Scripted(WebSocketServer, [refuses, refuses, refuses, refuses]).listen();
  const off = await new Scripted(
    WebSocketServer, [(socket) => socket.close(1002), (socket) => socket.close(4003, "replaced")],
    [[504], [500], [429, { "Retry-After": "2" }], [401], [403]],
  ).listen();
  const c = await client.start("c", scripted.url, (asked) => `token ${asked}`);
  const d = await client.start("d", same.url, () => "the same");
  const e = await client.start("e", off.url, (asked) => `token ${asked}`);

  // The line is dead behind the `hello`; another server is slow, and answers what it is asked.
  const came = [];
  const mute = await new Scripted(WebSocketServer, [
    () => came.push(Date.now()), (socket) => (came.push(Date.now()), socket.close(4003, "replaced")),
  ]).listen();
  const h = await client.start("h", mute.url, () => "a token");
  const asked = [];
  const slow = await new Scripted(WebSocketServer, [(socket) => {
    socket.on("message", (text) => (asked.push(JSON.parse(text)), say(socket, { type: "pong" })));
    setTimeout(() => (welcome(socket), socket.close(4003, "replaced")), SLOW_WELCOME_MS);
  }]).listen();
  const i = await client.start("i", slow.url, () => "a token");

  // To this client's clock each token is over, or nearly.
  let line;
  const refreshing = await new Scripted(WebSocketServer, [(socket) => (welcome(socket), (line = socket))]).listen();
  const asks = [];
  const g = await client.start("g", refreshing.url, (asked) => {
    asks.push(Date.now());
    return tokenBehind(asked === 1 ? 3600 : 0, asked);
  });
  await g.until("two refreshes", () => g.refreshed >= 2);
  line.close(4003, "replaced");
  const waits = asks.slice(1).map((at, n) => at - asks[n]);
  if (waits.some((ms) => ms + EARLY_MS < (REFRESHED_LIFE_S * 1000) / 2))
    throw new Error(`${g.name} asked for tokens of ${REFRESHED_LIFE_S} s after ${waits} ms`);
  told("asks for the next token at half of a token's life, whatever its clock says");

  // None but `onChat` says how many viewers there are.
  const acks = [];
  const act = { type: "moderation", seq: 8, id: "m", action: "delete", user_idx: 7, by: 1, sent_at: "2026-01-01T00:00:00.000Z" };
  const acting = await new Scripted(WebSocketServer, [speaks([act, chat(9)], acks)]).listen();
  const f = await client.start("f", acting.url, () => "a token");
  await f.until("its end", () => f.over);
  expect("what it acknowledges", acks, [{ type: "ack", seq: 8 }, { type: "ack", seq: 9, fanned_out: 3 }]);
  expect("what it is told", [f.over, f.moderations.map(({ seq }) => seq), f.last], ["replaced", [8], 9]);
  told("acknowledges an act of moderation, and says how many viewers got what was said");

  // What came since was the other session's to pass on, and is not to come twice.
  const taken = await new Scripted(WebSocketServer, [(socket) => socket.close(4003, "replaced")]).listen();
  const back = await client.start("f again", taken.url, () => "a token", f.state);
  await back.until("its end", () => back.over);
  expect("what it goes on from", taken.hellos.map(({ epoch, resume_after }) => [epoch, resume_after ?? null]), [["e", null]]);
  told("takes the room back without saying what it had before another session did");

  await c.until("two closes", () => c.closes.length >= 2);
  told(`waits ${LATE_WELCOME_MS / 1000} s for its welcome`);
  await c.until("its end", () => c.over);
  const hellos = scripted.hellos.map(({ token, epoch, resume_after }) => [token, epoch ?? null, resume_after ?? null]);
  expect("its hellos", hellos, [
    ["token 1", null, null], ["token 2", "e", 7], ["token 3", null, null], ["token 4", "e", 7],
  ]);
  expect("how it ends", [c.over, c.closes.map(({ code }) => code)], ["bad_frame", [4001, 4004, 4001, 4004]]);
  told("comes back with another token after 4001, with nothing kept after 4004, and not for ever");

  await d.until("its end", () => d.over);
  expect("how it ends", [d.over, d.asked, same.hellos.length], ["unauthenticated", 4, 4]);
  const early = TOKEN_REFUSED_MS.find((least, n) => !(d.closes[n].again_ms + EARLY_MS >= least));
  if (early) throw new Error(`${d.name} came back before ${early} ms: ${JSON.stringify(d.closes)}`);
  told(`comes back ${TOKEN_REFUSED_MS.map((ms) => ms / 1000).join(", ")} s after its token was refused, and then no more`);

  await h.until("its end", () => h.over);
  const silent = came[1] - came[0];
  expect("why it leaves a server that says nothing", [h.closes[0].reason, h.closes.length], ["silent", 2]);
  if (!(silent < REFUSED_MS)) throw new Error(`${h.name} came back after ${silent} ms`);
  told(`leaves a line on which nothing comes behind its hello, and is back after ${(silent / 1000).toFixed(1)} s`);

  await i.until("its end", () => i.over);
  expect("its welcomes and ends", [i.welcomes.length, i.closes.map(({ code }) => code)], [1, [4003]]);
  expect("what it asks meanwhile", asked, [{ type: "ping" }, { type: "ping" }]);
  told(`waits ${SLOW_WELCOME_MS / 1000} s for its welcome as long as it is answered`);

  await e.until("its end", () => e.over);
  if (client.shown) {
    // A page is not told why there was no upgrade.
    expect("how it ends", [e.over, e.closes.map(({ code }) => code)], ["replaced", [1006, 1006, 1006, 1006, 1006, 1002, 4003]]);
    told("comes back after refusals that it cannot tell apart, and once after 1002");
  } else {
    expect("how it ends", [e.over, e.closes.map(({ status }) => status)], ["refused", [504, 500, 429, 401, 403]]);
    expect("what it asked and said", [e.asked, off.hellos.length], [5, 0]);
    if (!(e.closes[3].again_ms + EARLY_MS >= TOKEN_REFUSED_MS[0])) throw new Error(`${e.name} comes back too early after 401`);
    if (!(e.closes[2].again_ms + EARLY_MS >= 2000)) throw new Error(`${e.name} comes back ${e.closes[2].again_ms} ms after 429`);
    told("comes back after 504, 500, 429 when it is told to, and 401 with another token, and is over after 403");
  }
}

/** For `until`: asks again and again, one question at a time. */
function poll(probe) {
  let [answer, asking] = [false, false];
  return () => {
    if (!answer && !asking) {
      asking = true;
      probe().then((told) => ((answer = told), (asking = false)), fail);
    }
    return answer;
  };
}

// ---- all of it ------------------------------------------------------------------------------------------------------

let server;

async function launch() {
  const { chromium } = createRequire(join(tools, "web/package.json"))("playwright-core");
  const executablePath =
    process.env.CHROMIUM ?? execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
  const browser = await chromium.launch({
    executablePath,
    args: [
      "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
    timeout: 60_000,
    handleSIGINT: false,
    handleSIGTERM: false,
    handleSIGHUP: false,
  });
  atEnd(() => browser.close());
  return browser;
}

/** Another page's WebSocket never opens. */
async function refusesOtherPages(browser, port, url) {
  const page = await browser.newPage();
  await page.goto(`http://localhost:${port}/presenter.mjs`);
  const how = await page.evaluate(
    (url) =>
      new Promise((done) => {
        const socket = new WebSocket(url, ["chat.v1"]);
        socket.onopen = () => done("opened");
        socket.onclose = ({ code }) => done(code);
      }),
    url,
  );
  expect("a page whose origin is not in cors.origins", how, 1006);
  await page.close();
  kept("browser", "lets no page connect whose origin is not in cors.origins");
}

/** Who is stopped while its token is fetched does not ask for another one when that fails. */
async function staysStopped() {
  const heard = [];
  let asked = 0;
  let refuse;
  const token = () => {
    asked += 1;
    return new Promise((_, reject) => (refuse = reject));
  };
  const presenter = new Presenter({ url: "ws://127.0.0.1:1", token, onEvent: (event) => heard.push(event) });
  const why = presenter.run();
  presenter.stop();
  refuse(new Error("no network"));
  expect("why it is over", await why, "stopped");
  // Everything that a refused token leads to at once has happened by then.
  await new Promise((done) => setImmediate(done));
  expect("what is asked and told after that", [asked, heard], [1, []]);
  kept("presenter.mjs", "stays stopped when it is stopped while its token is fetched and that fails");
}

/** Of what `onChat` may return only a number of viewers is said to the server, which closes at anything else. */
async function saysNumbersOnly() {
  const returned = [Promise.resolve(3), 2.5, true, -1, "3", null, undefined, 0];
  const acks = [];
  const events = returned.map((_, n) => chat(8 + n));
  const server = await new Scripted(WebSocketServer, [speaks(events, acks)]).listen();
  const onChat = ({ seq }) => returned[seq - 8];
  const presenter = new Presenter({ url: server.url, WebSocket, token: () => "a token", onChat });
  expect("why it is over", await presenter.run(), "replaced");
  expect("what it acknowledges", acks, [
    ...events.slice(0, -1).map(({ seq }) => ({ type: "ack", seq })), { type: "ack", seq: events.at(-1).seq, fanned_out: 0 },
  ]);
  kept("presenter.mjs", "says how many viewers there are where it is told a number of them, and nothing else");
}

/** What `onChat` throws ends the connection and nothing else: the message is not acknowledged, and comes again. */
async function outlivesOnChat() {
  const [seen, closes, acks] = [[], [], []];
  const server = await new Scripted(WebSocketServer, [
    speaks([chat(8), chat(9)], acks), speaks([chat(8), chat(9)], acks),
  ]).listen();
  const planned = new Error("planned");
  const onChat = ({ seq }) => {
    seen.push(seq);
    if (seen.length === 1) throw planned;
  };
  const onEvent = (event) => event.type === "closed" && closes.push(event);
  const presenter = new Presenter({ url: server.url, WebSocket, token: () => "a token", onChat, onEvent });
  expect("why it is over", await presenter.run(), "replaced");
  expect("where it came again", server.hellos.map(({ resume_after }) => resume_after ?? null), [null, 7]);
  expect("what it saw", seen, [8, 8, 9]);
  expect("what it acknowledged", acks.map(({ seq }) => seq), [8, 9]);
  expect("what it was told", closes.map(({ error, code }) => [error === planned, code ?? null]), [[true, null], [false, 4003]]);
  kept("presenter.mjs", "comes again for a message that onChat threw at");
}

async function scenario() {
  await staysStopped();
  await saysNumbersOnly();
  await outlivesOnChat();
  const work = mkdtempSync(join(tmpdir(), "chatting-clients-"));
  atEnd(() => rmSync(work, { recursive: true, force: true }));
  const port = await serveFiles(here, ["presenter.html", "presenter.mjs", "puppet.mjs"]);
  const page = `http://127.0.0.1:${port}`;
  const service = await new TokenService().listen();
  service.key("first").publish();
  server = new Server(binary, work, randomBytes(32).toString("hex"), {
    "server.bind": "127.0.0.1:0",
    "room.mode": "embedded",
    "auth.jwks_url": service.url,
    // A session ends with the second of its token's `exp`.
    "auth.leeway_seconds": 0,
    "log.path": join(work, "chat.db"),
    "cors.origins": JSON.stringify([page]),
    "session.credit_events": CREDIT,
    // One viewer sends to all rooms, 150 a second with a key each, for as long as it takes.
    "idempotency.sender_max": 100_000,
    "session.keepalive_seconds": 2,
    "shutdown.drain_seconds": 1,
    "shutdown.reconnect_after_ms": 1000,
    "shutdown.reconnect_spread_ms": 500,
  });
  const [browser] = await Promise.all([launch(), server.start()]);
  const viewer = await server.token(7, { more: ["--nickname", "하루"] });
  const line = await new Link(server).listen();
  await refusesOtherPages(browser, port, line.url);

  const clients = [
    Client.process("websockets", join(tools, "clients-python/bin/python"), ["-B", join(here, "puppet.py")]),
    Client.process("ws", process.execPath, [join(here, "puppet.mjs"), join(tools, "clients/package.json")]),
    await Client.page("browser", await browser.newPage(), `${page}/presenter.html`),
  ];
  const plays = [];
  for (const [index, client] of clients.entries()) {
    const room = 12 + index;
    await goesLive(server, room);
    plays.push({ client, server, room, viewer, service });
  }
  const scripted = Promise.all(clients.map(withAScriptedServer));
  scripted.catch(fail);
  const stops = await Promise.all(
    plays.map(async (play) => {
      // Chat is refused before a broadcast's first session, so the sender's first message waits for it.
      play.sender = new Sender(server, play.room, viewer);
      return untilTheStop(play);
    }),
  );

  const restart = (async () => {
    expect("the server's exit code after SIGTERM", await server.stop(), 0);
    await server.start();
    kept("server", "ends with 0, and is started again on the same log");
  })();
  await Promise.all([scripted, restart, ...plays.map((play, index) => overTheStop(play, stops[index], restart))]);
  expect("the server's exit code after SIGTERM", await server.stop(), 0);
}

const deadline = setTimeout(() => fail(new Error(`not done after ${DEADLINE_MS / 1000} s`)), DEADLINE_MS);
// A second signal ends it at once.
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => fail(new Error(signal)));
try {
  await Promise.race([scenario(), failed]);
  console.log(`clients: ok, ${promises} promises kept`);
} catch (error) {
  fail(error);
  process.exitCode = 1;
  console.error(`clients: FAILED: ${error.stack ?? error}`);
  for (const [room, told] of senders) console.error(`sender of ${room}: ${told}`);
  const metrics = await server?.fetch("/metrics", "").then((answer) => answer.text()).catch(String);
  console.error(metrics?.split("\n").filter((line) => /^chat_(refused|accepted|held|delivered|sessions|spool|queue_depth)/.test(line)).join("\n"));
  console.error(`--- the end of what the server wrote\n${server?.log.slice(-30).join("\n") ?? ""}`);
} finally {
  clearTimeout(deadline);
  await end();
}
process.exit(); // whatever is still open
