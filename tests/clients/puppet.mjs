// Does with a Presenter what the test asks, and tells it what the Presenter hears: in Node over standard input and
// output, a JSON object a line; in a page through two functions (presenter.html).
//
//   {"do":"start","name":"a","url":"ws://…","state":{}}   {"do":"token","name":"a","token":"…"}   {"do":"stop","name":"a"}

import { Presenter } from "./presenter.mjs";

/** How many viewers the puppet says that it passed each message on to. */
const VIEWERS = 3;

export function puppet(tell, WebSocket, show = () => {}) {
  const presenters = new Map();
  const waiting = new Map();
  return (order) => {
    const { name } = order;
    const say = (event) => tell({ name, at: Date.now(), ...event });
    switch (order.do) {
      case "start": {
        const presenter = new Presenter({
          url: order.url,
          state: order.state,
          WebSocket,
          token: () => {
            say({ type: "token" });
            return new Promise((give) => waiting.set(name, give));
          },
          onChat: (chat) => {
            show(chat);
            say(chat);
            return VIEWERS;
          },
          onEvent: say,
        });
        presenters.set(name, presenter);
        presenter.run().then((why) => say({ type: "over", why, state: presenter.state }));
        break;
      }
      case "token":
        waiting.get(name)(order.token);
        break;
      case "stop":
        presenters.get(name).stop();
        break;
    }
  };
}

async function main() {
  const { createRequire } = await import("node:module");
  const { createInterface } = await import("node:readline");
  // Kept by scripts/get-tools, outside of the sources.
  const { WebSocket } = createRequire(process.argv[2])("ws");
  const obey = puppet((event) => process.stdout.write(`${JSON.stringify(event)}\n`), WebSocket);
  const orders = createInterface({ input: process.stdin });
  orders.on("line", (line) => obey(JSON.parse(line)));
  orders.on("close", () => process.exit());
}

if (globalThis.process?.argv) await main();
