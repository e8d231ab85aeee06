// An exported WebVTT as W3C's own parser reads it: no error, a cue a message, and its text and voice as they were said.
//   node check.cjs FILE.webvtt FILE.ndjson

const assert = require("node:assert/strict");
const { readFileSync } = require("node:fs");
const { WebVTTParser } = require("webvtt-parser");

const [, , webvtt, ndjson] = process.argv;
const events = readFileSync(ndjson, "utf8").trimEnd().split("\n").map((line) => JSON.parse(line));
const shown = events.filter((event) => event.type === "chat" && !event.deleted_at);
const { cues, errors } = new WebVTTParser(require("webvtt-parser/html-entities.json")).parse(readFileSync(webvtt, "utf8"));
assert.deepEqual(errors, []);
assert.equal(cues.length, shown.length);

/** All text below a node. */
const textOf = (node) => (node.type === "text" ? node.value : node.children.map(textOf).join(""));

for (const [n, cue] of cues.entries()) {
  const event = shown[n];
  assert.equal(cue.id, event.id);
  assert.ok(Math.abs(cue.startTime * 1000 - event.offset_ms) < 1, cue.id);
  assert.ok(cue.endTime > cue.startTime);
  const { children } = cue.tree;
  assert.equal(children.length, 1, JSON.stringify(cue.tree));
  const [voice] = children;
  assert.deepEqual([voice.type, voice.name], ["object", "v"]);
  // This parser leaves a voice's character references to its caller.
  const name = voice.value.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  assert.equal(name, event.nickname.trim() || String(event.user_idx));
  // Lines without anything in them are left out, and NUL is U+FFFD.
  const lines = event.text.split(/[\r\n]/).filter((line) => line !== "");
  assert.equal(textOf(voice), lines.join("\n").replaceAll("\0", "\ufffd"));
}
console.log(`webvtt: ${cues.length} cues without an error, as they were said`);
