// A presenter's client of dialect v1, for browsers and for Node with `ws`. Made to be copied.
//
//   const presenter = new Presenter({
//     url: "wss://chat.example/v1/presenter",
//     token: async () => {                                   // asked before each connection and before a token expires
//       const answer = await fetch("/my/token");
//       if (!answer.ok) throw new Error(`the token service answers ${answer.status}`);
//       return answer.text();
//     },
//     onChat: (chat) => passOnToViewers(chat),               // says how many viewers got it; nothing waits for a promise
//     state: JSON.parse(sessionStorage.presenter ?? "{}"),   // where an earlier one got to
//     WebSocket,                                             // of `ws`; a browser has its own
//   });
//   const why = await presenter.run();                       // for as long as the broadcast
//
// It keeps the numbering's epoch and the last seq that it has, and goes on from there after a cut: each message is
// given to `onChat` once, in order, and acknowledged after that. When the server cannot send what is missing,
// `welcome.gap` says so. It comes back by itself, ever later when that fails, and not before the server wants it; it
// takes a line for gone on which nothing is heard. After a token was refused it waits some seconds, for the token's key may
// be about to be published, and asks for a token again; what it kept it forgets when that is refused. It is over when that
// does not help, when the server will not have this client at all, when another session has the room, and when the
// broadcast is over. When another session has the room, that one passes on what comes, so the last seq is not kept: who
// takes the room back with this one's `state` goes on after what that one acknowledged. docs/PROTOCOL.md, "What a client
// does", has the same in words.
//
// A browser does not tell a page with what status an upgrade was refused: there it comes back whatever that was.

const SUBPROTOCOL = "chat.v1";
/** How long a connection may take until it is open. */
const OPEN_MS = 10_000;
/**
 * The same from then on until its `welcome`. A server that cannot read its log finds that out first, which takes some
 * seconds, then tries for session.resume_wait_seconds (10) more, perhaps behind others that want to read, and only then
 * tells what is missing. Each connection is a new wait: who leaves earlier than that never gets a `welcome`.
 */
const WELCOME_MS = 60_000;
/** Until then `welcome.keepalive_seconds`: the server answers a `ping` as soon as the `hello` was good. */
const KEEPALIVE_MS = 15_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
/**
 * The least time from one refresh of the token to the next, or half of the token's life where that is less: to a clock that is
 * ahead each of them seems to be over.
 */
const LEAST_REFRESH_MS = 30_000;
/** The same where there was no other token yet. */
const LEAST_ASK_MS = 1000;
/** How late timers can be set. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;
/** After these there is no coming back. 1000 is the end of the broadcast. */
const OVER = { 1000: "broadcast_ended", 4003: "replaced" };
/** After these, HTTP's 401 among them, there is: with another token, with nothing kept, or in case it was chance. */
const REFUSED = {
  401: "unauthenticated",
  1002: "protocol",
  1007: "not_utf8",
  1009: "too_large",
  4001: "unauthenticated",
  4004: "bad_frame",
};
/** So many of them, with no session that lasted in between, are the end. */
const MOST_REFUSALS = 4;
/**
 * The least wait after the first of them that was for the token; twice as long after each more. The server looks for a key
 * that it does not know every auth.jwks_min_refresh_seconds (5) at most.
 */
const TOKEN_REFUSED_MS = 5000;

export class Presenter {
  #url;
  #token;
  #onChat;
  #onEvent;
  #WebSocket;
  #epoch;
  #last;
  #socket = null;
  #timers = new Map();
  #attempts = 0;
  /** When this session will have lasted long enough for the next one to be tried without delay. */
  #settledAt = Infinity;
  #unheard = 0;
  #refusals = 0;
  #notBefore = 0;
  /** Milliseconds; 0 before our `hello`. */
  #keepalive = 0;
  #over = false;
  #finish;
  #finished = new Promise((resolve) => (this.#finish = resolve));

  /**
   * `onEvent` hears of everything but chat: `welcome`, `moderation`, `reconnect` and `error` as the server sent them,
   * and of our own `refreshed`, `repeat`, `hole`, and `closed` with `again_ms`, or with `over`. `closed` has the `code` of
   * the close, the `status` of an answer that was no upgrade, or the `error` that `onChat` or `onEvent` threw: what was to be
   * taken is not acknowledged then, and comes again on the next connection.
   */
  constructor({ url, token, onChat, onEvent = () => {}, state = {}, WebSocket = globalThis.WebSocket }) {
    this.#url = url;
    this.#token = token;
    this.#onChat = onChat;
    this.#onEvent = onEvent;
    this.#WebSocket = WebSocket;
    this.#epoch = state.epoch;
    this.#last = state.last;
  }

  /** What the next client needs to go on from here: to be kept where a reload of the page finds it. */
  get state() {
    return { epoch: this.#epoch, last: this.#last };
  }

  /** Connects, and stays connected. Gives the reason when that is over. */
  run() {
    this.#connect();
    return this.#finished;
  }

  /** Ends it. */
  stop() {
    this.#drop();
    this.#over = true;
    this.#finish("stopped");
  }

  async #connect() {
    let token;
    try {
      token = await this.#token();
    } catch (error) {
      if (this.#over) return;
      return this.#again({ reason: `no token: ${error.message}` });
    }
    if (this.#over) return;
    const socket = new this.#WebSocket(this.#url, [SUBPROTOCOL]);
    this.#socket = socket;
    // Of `ws`; a browser tells nothing but `onclose`.
    socket.on?.("unexpected-response", (_, { statusCode, headers }) => {
      if (socket === this.#socket) this.#answered(statusCode, headers["retry-after"]);
    });
    this.#after("open", OPEN_MS, () => this.#again({ reason: "no connection" }));
    socket.onopen = () => {
      this.#cancel("open");
      this.#after("welcome", WELCOME_MS, () => this.#again({ reason: "no welcome" }));
      this.#say({ type: "hello", token, epoch: this.#epoch, resume_after: this.#last });
      this.#keepalive = KEEPALIVE_MS;
      this.#listen();
      this.#refreshLater(token);
    };
    socket.onmessage = ({ data }) => {
      try {
        this.#hear(JSON.parse(data));
      } catch (error) {
        if (socket !== this.#socket) throw error; // this connection is over already
        this.#again({ reason: `failed: ${error}`, error });
      }
    };
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    socket.onerror = () => {}; // `onclose` follows
  }

  #say(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  #hear(frame) {
    this.#unheard = 0;
    if (this.#keepalive) this.#listen();
    switch (frame.type) {
      case "pong":
        return;
      case "welcome":
        return this.#welcome(frame);
      case "reconnect":
        // The server reads and writes until it closes; should it not, we go when the time has come.
        this.#notBefore = now() + frame.after_ms;
        this.#after("reconnect", frame.after_ms, () => this.#again({ reason: "reconnect" }));
        break;
      default:
        // What has a seq has a place in the order, also when its type is news to us.
        if (Number.isSafeInteger(frame.seq)) return this.#take(frame);
    }
    this.#onEvent(frame);
  }

  #welcome(frame) {
    this.#cancel("welcome");
    // Another numbering, the first one, or a gap that can't be closed: on from where the server goes on.
    if (frame.epoch !== this.#epoch || this.#last === undefined || frame.resumed_from > this.#last + 1) {
      this.#epoch = frame.epoch;
      this.#last = frame.resumed_from - 1;
    }
    this.#keepalive = frame.keepalive_seconds * 1000;
    this.#listen();
    this.#settledAt = now() + this.#keepalive;
    this.#onEvent(frame);
  }

  /** Asks when nothing has been heard for a while: a page sees neither the server's pings nor that a line is dead. */
  #listen() {
    this.#after("listen", this.#keepalive, () => {
      this.#unheard += 1;
      if (this.#unheard === 2) return this.#again({ reason: "silent" });
      this.#say({ type: "ping" });
      this.#listen();
    });
  }

  #take(frame) {
    const { seq } = frame;
    if (seq > this.#last + 1) {
      this.#onEvent({ type: "hole", from: this.#last + 1, to: seq - 1 });
      return this.#again({ reason: "hole" });
    }
    if (seq <= this.#last) {
      this.#onEvent({ type: "repeat", seq });
      return this.#say({ type: "ack", seq });
    }
    let viewers;
    if (frame.type === "chat") viewers = this.#onChat(frame);
    else this.#onEvent(frame);
    this.#last = seq;
    // Whatever else it may return, the server would take for a fault.
    const fanned_out = Number.isSafeInteger(viewers) && viewers >= 0 ? viewers : undefined;
    if (this.#socket) this.#say({ type: "ack", seq, fanned_out });
  }

  /** A later `hello` refreshes the token, at half of its life, so that a slow answer is no harm. */
  #refreshLater(token, replaces = false) {
    const wait = refreshIn(token, replaces);
    if (Number.isNaN(wait)) return;
    const socket = this.#socket;
    this.#after("refresh", wait, async () => {
      let fresh;
      try {
        fresh = await this.#token();
      } catch {
        fresh = token; // tried again, as long as there is time
      }
      if (socket !== this.#socket) return;
      if (fresh !== token) {
        this.#say({ type: "hello", token: fresh });
        this.#onEvent({ type: "refreshed" });
      }
      this.#refreshLater(fresh, fresh !== token);
    });
  }

  /** An answer that is no upgrade. */
  #answered(status, retryAfter = "") {
    const why = { status, reason: `status ${status}` };
    if (!mayPass(status)) return this.#end(why, "refused");
    if (/^\d+$/.test(retryAfter)) this.#notBefore = now() + retryAfter * 1000;
    this.#refusedOrAgain(status, why);
  }

  #closed(code, reason) {
    if (code === 4003) this.#last = undefined; // what comes now is the other session's to pass on
    if (OVER[code]) return this.#end({ code, reason }, OVER[code]);
    this.#refusedOrAgain(code, { code, reason });
  }

  /** `code` is a close's, or an answer's status. */
  #refusedOrAgain(code, why) {
    if (REFUSED[code]) {
      if (now() > this.#settledAt) this.#refusals = 0;
      this.#refusals += 1;
      if (this.#refusals === MOST_REFUSALS) return this.#end(why, REFUSED[code]);
      if (code === 401 || code === 4001) {
        const wait = TOKEN_REFUSED_MS * 2 ** (this.#refusals - 1);
        this.#notBefore = Math.max(this.#notBefore, now() + wait);
      } else if (code === 4004) this.#epoch = this.#last = undefined; // of another numbering, or wrong
    }
    this.#again(why);
  }

  #end(why, over) {
    this.#drop();
    this.#over = true;
    this.#onEvent({ type: "closed", ...why, over });
    this.#finish(over);
  }

  /** Leaves this connection and makes another, in a while. */
  #again(why) {
    this.#drop();
    if (now() > this.#settledAt) {
      this.#attempts = 0;
      if (!REFUSED[why.status ?? why.code]) this.#refusals = 0;
    }
    this.#settledAt = Infinity;
    const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(this.#attempts, 16));
    this.#attempts += 1;
    // Chance keeps those apart that lost the server at the same moment.
    const delay = Math.max(longest * Math.random(), this.#notBefore - now());
    this.#notBefore = 0;
    this.#after("again", delay, () => this.#connect());
    this.#onEvent({ type: "closed", ...why, again_ms: Math.round(delay) });
  }

  /** Lets go of the socket without waiting for it: on a dead line its `onclose` would be long in coming. */
  #drop() {
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    const socket = this.#socket;
    this.#socket = null;
    this.#keepalive = 0;
    this.#unheard = 0;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #after(name, ms, then) {
    this.#cancel(name);
    const run = () => {
      this.#timers.delete(name);
      then();
    };
    this.#timers.set(name, setTimeout(run, Math.min(Math.ceil(ms), LONGEST_TIMER_MS)));
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}

/** Whether what was answered with this HTTP status, instead of an upgrade, may be taken later. */
function mayPass(status) {
  return [401, 408, 429].includes(status) || status >= 500;
}

/** Milliseconds on a clock that nobody sets. */
function now() {
  return performance.now();
}

/**
 * In how many milliseconds a token that we have just got, in place of another or not, is to be replaced: at half of what is left
 * of it, or of its life where nothing is left by our clock, which is wrong then. NaN where it does not say when it ends.
 */
function refreshIn(token, replaces) {
  const { exp, iat } = claims(token);
  const left = exp * 1000 - Date.now();
  const life = iat === undefined ? Math.max(left, 2 * LEAST_REFRESH_MS) : (exp - iat) * 1000;
  const good = left > 0 ? Math.min(left, life) : life;
  return Math.max(good / 2, replaces ? Math.min(LEAST_REFRESH_MS, life / 2) : 0, LEAST_ASK_MS);
}

/** What a token says; nothing where it cannot be read. */
function claims(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
  } catch {
    return {};
  }
}
