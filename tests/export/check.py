"""What scripts/export asks of Python: texts to say, and the exported files as the csv and json modules read them."""

import csv
import json
import re
import sys
import urllib.request

TEXTS = [
    "안녕하세요 여러분",
    "=1+1,\"x\"\r\nnext",
    "+82 10",
    "-1",
    "@SUM(A1:A9)",
    "\t=1",
    "a\n\n00:00.000 --> 00:01.000\nb",
    "<script>alert(1)</script> &amp; </v> <v other>",
    "\u202ertl\u202c \u2028 \0 🙂👨\u200d👩\u200d👧",
    "say \"hi\", 'you'",
    "   ",
    "x;=cmd|'/C calc'!A0;y\t@A1 ;-)",
    "last\r",
]


def say(address, token):
    for text in TEXTS:
        body = json.dumps({"text": text}).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/rooms/12/messages", body, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 201, answer.status


def files(work, deleted):
    with open(f"{work}/chat.ndjson", encoding="utf-8", newline="\n") as file:
        header, *events, end = [json.loads(line) for line in file]
    assert header["type"] == "broadcast" and end["type"] == "end" and end["events"] == len(events)
    chat = [event for event in events if event["type"] == "chat"]
    assert [event["text"] for event in chat[1:]] == TEXTS * 3

    with open(f"{work}/chat.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [int(row["seq"]) for row in rows] == [event["seq"] for event in events]
    assert all(not cell.startswith(tuple("=+-@\t\r")) for row in rows for cell in row.values())
    for separator in ";\t":
        with open(f"{work}/chat.csv", encoding="utf-8-sig", newline="") as file:
            cells = [cell for row in csv.reader(file, delimiter=separator) for cell in row]
        assert all(not cell.startswith(tuple("=+-@")) or cell.startswith("-)") for cell in cells), separator
    for row, event in zip(rows, events):
        for key in ("text", "nickname"):
            # A spreadsheet shows the ' of a text's beginning as nothing; that of what would begin a cell elsewhere is there.
            shown = row[key][1:] if row[key].startswith("'") and not event.get(key, "").startswith("'") else row[key]
            shown = re.sub(r"([;\t\r\n]\"*)'(?=[=+\-@])", r"\1", shown)
            assert shown == event.get(key, "").replace("\0", "\ufffd"), (row, event)
        assert (row["deleted_at"] != "") == (event["id"] == deleted), row

    with open(f"{work}/chat.twitch-json", encoding="utf-8") as file:
        twitch = json.load(file)
    shown = [event for event in chat if event["id"] != deleted]
    assert [comment["_id"] for comment in twitch["comments"]] == [event["id"] for event in shown]
    assert [comment["message"]["body"] for comment in twitch["comments"]] == [event["text"] for event in shown]
    print(f"ndjson, csv, twitch-json: {len(rows)} events each, as they were said")


def same(before, after):
    with open(before, encoding="utf-8") as one, open(after, encoding="utf-8") as other:
        one, other = one.readlines(), other.readlines()
    assert one[1:] == other[1:]
    # A broadcast that went on has ended where it was exported.
    one, other = json.loads(one[0]), json.loads(other[0])
    ended = one.pop("exported_at", one["ended_at"])
    assert other["ended_at"] == ended, other
    for key in ("id", "presenter_idx", "room_idx", "reported_start", "corrected_start", "seen_at", "spans"):
        assert one[key] == other[key], key
    print("round trip: the same")


{"say": say, "files": files, "same": same}[sys.argv[1]](*sys.argv[2:])
