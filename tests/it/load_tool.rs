//! The load tool tells what it saw, and whether that is as it should be.

use std::{process::ExitStatus, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    load::serve,
    support::{
        app::{KEY, TestApp, spawn_app},
        command::command,
        documents::{name, section, table},
        eventually,
        http::post_json,
        presenter::V1,
        process::{Process, ScratchDir},
    },
};

/// `load` on this server's rooms from 12 on, under way; one, where the arguments do not say how many.
fn load(dir: &Arc<ScratchDir>, addr: impl ToString, args: &[&str]) -> Process {
    let addr = addr.to_string();
    let mut all = vec!["load", "--addr", &addr, "--first-room", "12", "--json"];
    if !args.contains(&"--rooms") {
        all.extend(["--rooms", "1"]);
    }
    all.extend(args);
    Process::start(dir, command(dir, &all).env("CHAT__AUTH__HS256_SECRET", KEY))
}

/// How it ended, its report, and all that it wrote.
async fn ended(tool: &Process) -> (ExitStatus, Value, String) {
    let (status, output) = (tool.exited().await, tool.output());
    let report = output.lines().find_map(|line| serde_json::from_str(line).ok());
    (status, report.unwrap_or_default(), output)
}

async fn live_app() -> (TestApp, Arc<ScratchDir>) {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    (app, ScratchDir::new("load-tool"))
}

#[actix_web::test]
async fn what_an_earlier_run_left_is_not_taken_for_what_this_one_sent() {
    let (app, dir) = live_app().await;
    drop(app.presenter(12).await);
    eventually("the presenter to be gone", async || {
        app.metric("chat_sessions").await.filter(|sessions| *sessions == 0.0)
    })
    .await;
    for turn in (0..5).rev() {
        assert_eq!(app.post(12, 7, &format!("1 0 {turn} 0 xxx")).await.status, 201);
    }
    for speaks in ["legacy", "v1"] {
        let (status, report, output) = ended(&load(&dir, app.addr, &["--messages", "20", "--speaks", speaks])).await;
        assert!(status.success(), "{output}");
        assert_eq!(
            (&report["sent"], &report["delivered"]),
            (&json!(20), &json!(20)),
            "{output}"
        );
        let others = if speaks == "legacy" { 5 } else { 0 };
        assert_eq!(report["of_others"], others, "{output}");
    }
}

#[actix_web::test]
async fn an_interrupt_ends_the_sending_and_the_report_is_of_what_was_sent() {
    let (app, dir) = live_app().await;
    for signal in ["INT", "TERM"] {
        let tool = load(&dir, app.addr, &["--seconds", "3600", "--rate", "200"]);
        accepts(&app, 20.0).await;
        tool.signal(signal);
        let (status, report, output) = ended(&tool).await;
        assert!(status.success(), "{output}");
        assert_eq!(report["interrupted"], true, "{output}");
        assert_eq!(
            (&report["delivered"], &report["lost"], &report["failed"]),
            (&report["accepted"], &json!(0), &json!(0)),
            "{output}"
        );
        assert_eq!(report["unsent"], 0, "{output}");
        assert!(report["accepted"].as_u64().unwrap() > 20, "{output}");
    }
}

/// Waits until this server has accepted so many messages more.
async fn accepts(app: &TestApp, more: f64) {
    let before = app.metric("chat_accepted_total").await.unwrap();
    eventually("some messages", async || {
        let accepted = app.metric("chat_accepted_total").await;
        accepted.filter(|accepted| *accepted > before + more)
    })
    .await;
}

#[actix_web::test]
async fn a_presenter_whose_room_is_taken_over_is_said_and_what_it_did_not_get_is_not_called_lost() {
    let (app, dir) = live_app().await;
    let tool = load(
        &dir,
        app.addr,
        &["--seconds", "3600", "--rate", "200", "--speaks", "v1"],
    );
    accepts(&app, 20.0).await;
    let _other = V1::of(&app, 12, json!({})).await;
    accepts(&app, 10.0).await;
    tool.signal("INT");
    let (status, report, output) = ended(&tool).await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert_eq!(report["presenters_ended"], json!({ "4003": 1 }), "{output}");
    let [lost, missed] = counted(&report, ["lost", "missed"]);
    assert!(lost > 0 && missed == lost, "{output}");
    let fault = output
        .lines()
        .find(|line| line.starts_with("chatting-server: "))
        .unwrap();
    assert!(
        fault.contains("the sessions of 1 presenters ended (1 × 4003, another presenter has the room)"),
        "{output}"
    );
    assert!(!output.contains("messages were lost"), "{output}");
}

#[actix_web::test]
async fn rooms_that_a_run_made_live_are_ended_behind_it_and_no_others() {
    let app = spawn_app(|_| {}).await;
    let dir = ScratchDir::new("load-tool");
    let live = async || {
        let all = post_json(app.addr, "/room/live/search-all", &[], "{}").await.json();
        let rooms = all["data"].as_array().unwrap().iter();
        rooms
            .map(|room| room["presenterIdx"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    app.go_live(13);
    let rooms = ["--rooms", "3", "--start-rooms", "--stop-rooms"];
    let (status, _, output) = ended(&load(&dir, app.addr, &[&rooms[..], &["--messages", "6"]].concat())).await;
    assert!(status.success(), "{output}");
    assert_eq!(live().await, [13]);
    let tool = load(
        &dir,
        app.addr,
        &[&rooms[..], &["--seconds", "3600", "--rate", "200"]].concat(),
    );
    accepts(&app, 20.0).await;
    assert_eq!(live().await, [12, 13, 14]);
    tool.signal("INT");
    let (status, _, output) = ended(&tool).await;
    assert!(status.success(), "{output}");
    assert_eq!(live().await, [13]);
    let (status, _, output) = ended(&load(
        &dir,
        app.addr,
        &["--rooms", "3", "--start-rooms", "--messages", "6"],
    ))
    .await;
    assert!(status.success(), "{output}");
    assert_eq!(live().await, [12, 13, 14], "they stay for the next run");
}

#[actix_web::test]
async fn a_server_that_goes_away_is_said_and_fails_the_run() {
    let dir = ScratchDir::new("load-tool");
    let (server, addr) = serve(&dir, &[]).await;
    let tool = load(&dir, addr, &["--seconds", "3600", "--start-rooms"]);
    tool.line("/s accepted").await;
    eventually("some messages", async || {
        let metrics = crate::support::http::get(addr, "/metrics").await;
        let accepted = metrics.text().lines().any(|line| {
            line.strip_prefix("chat_accepted_total ")
                .is_some_and(|count| count.parse::<u64>().unwrap() > 100)
        });
        accepted.then_some(())
    })
    .await;
    server.kill().await;
    let (status, report, output) = ended(&tool).await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(report["accepted"].as_u64().unwrap() > 0, "{output}");
    let trouble = report["trouble"].as_str().unwrap();
    assert!(
        trouble.contains("Connection refused") && trouble.contains("senders ended early"),
        "{output}"
    );
    assert!(output.contains(&format!("chatting-server: {trouble}")), "{output}");
}

#[actix_web::test]
async fn what_a_server_says_while_it_stops_is_not_counted_as_messages_of_others() {
    for speaks in ["legacy", "v1"] {
        let dir = ScratchDir::new("load-tool");
        let (server, addr) = serve(&dir, &[]).await;
        let tool = load(&dir, addr, &["--seconds", "3600", "--start-rooms", "--speaks", speaks]);
        tool.line("/s accepted").await;
        server.signal("TERM");
        let (_, report, output) = ended(&tool).await;
        assert_eq!(report["of_others"], 0, "{speaks}: {output}");
    }
}

#[actix_web::test]
async fn a_run_in_which_nothing_was_accepted_fails_and_says_what_was_answered() {
    let app = spawn_app(|_| {}).await;
    let dir = ScratchDir::new("load-tool");
    let args = ["--messages", "10", "--senders", "2"];
    let (status, report, output) = ended(&load(&dir, app.addr, &args)).await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert_eq!(report["reasons"], json!({ "409 broadcast_ended": 10 }), "{output}");
    assert!(output.contains("no message was accepted"), "{output}");
    let (status, report, output) = ended(&load(&dir, app.addr, &[&args[..], &["--absent"]].concat())).await;
    assert!(status.success(), "{output}");
    assert_eq!(report["refused"], 10, "{output}");
}

#[actix_web::test]
async fn a_connection_that_is_closed_after_a_refusal_fails_no_message() {
    let app = spawn_app(|settings| {
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 5;
    })
    .await;
    app.go_live(12);
    let dir = ScratchDir::new("load-tool");
    let args = ["--messages", "200", "--senders", "2", "--users", "1"];
    let (status, report, output) = ended(&load(&dir, app.addr, &args)).await;
    assert!(status.success(), "{output}");
    assert_eq!(
        (&report["sent"], &report["failed"]),
        (&json!(200), &json!(0)),
        "{output}"
    );
    assert!(
        report["reasons"]["429 rate_limited"].as_u64().unwrap() > 100,
        "{output}"
    );
}

#[actix_web::test]
async fn a_rate_of_few_messages_takes_no_longer_than_it_was_given() {
    let (app, dir) = live_app().await;
    let (status, report, output) = ended(&load(&dir, app.addr, &["--seconds", "1", "--rate", "1"])).await;
    assert!(status.success(), "{output}");
    assert_eq!(report["sent"], 1, "{output}");
    // The next was due after 32 seconds, one for each sender.
    assert!(report["seconds"].as_f64().unwrap() < 16.0, "{output}");
}

#[actix_web::test]
async fn senders_have_numbers_of_no_presenter_and_of_no_others() {
    let (app, dir) = live_app().await;
    let args = ["--messages", "10", "--senders", "4"];
    let (status, _, output) = ended(&load(&dir, app.addr, &args)).await;
    assert!(status.success(), "{output}");
    assert_eq!(app.sqlite_log(12).await.len(), 10);
    let log = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    let mut rows = log
        .prepare("SELECT DISTINCT user_idx, role FROM chatting_log ORDER BY user_idx")
        .unwrap();
    let users: Vec<(i64, String)> = rows
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(users, [8, 9, 10, 11].map(|user| (user, "viewer".to_owned())));
}

#[actix_web::test]
async fn each_message_has_a_key_of_its_own_where_that_is_asked_for_and_none_otherwise() {
    let (app, dir) = live_app().await;
    for (keys, sent, keyed) in [(&["--keys"][..], 10, 10), (&[], 20, 10), (&["--keys"], 30, 20)] {
        let args = ["--messages", "10", "--senders", "4"];
        let (status, _, output) = ended(&load(&dir, app.addr, &[&args, keys].concat())).await;
        assert!(status.success(), "{output}");
        assert_eq!(app.sqlite_log(12).await.len(), sent);
        let log = rusqlite::Connection::open(&app.settings.log.path).unwrap();
        let count = "SELECT count(DISTINCT idempotency_key) FROM chatting_log";
        let of_keys: i64 = log.query_row(count, [], |row| row.get(0)).unwrap();
        assert_eq!(of_keys, keyed);
    }
}

#[actix_web::test]
async fn senders_that_wait_for_their_turn_longer_than_the_server_for_a_request_are_not_refused_for_it() {
    let app = spawn_app(|settings| {
        settings.server.client_request_seconds = 3;
        settings.server.keep_alive_seconds = 1;
    })
    .await;
    app.go_live(12);
    let dir = ScratchDir::new("load-tool");
    // The last has its first turn after five seconds, and the others their second as long after their first.
    let args = ["--senders", "16", "--rate", "3", "--seconds", "8"];
    let (status, report, output) = ended(&load(&dir, app.addr, &args)).await;
    assert!(status.success(), "{output}");
    let names = ["sent", "accepted", "refused", "failed"];
    assert_eq!(counted(&report, names), [24, 24, 0, 0], "{output}");
}

/// What a server of the tests' own making does with one message.
struct Does {
    /// Text frames, each to the presenter that connected as the so many-eth.
    delivers: Vec<(usize, String)>,
    /// `None`: the connection ends without an answer.
    answers: Option<String>,
}

/// An answer behind which the connection ends.
fn answer(status: &str, body: &str) -> Option<String> {
    Some(format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// A v1 frame of the message that was posted with this body.
fn chat(seq: u64, body: &str) -> String {
    format!(r#"{{"type":"chat","seq":{seq},{}"#, &body[1..])
}

/// A short or medium text frame of a server.
fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 126];
    frame.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    frame.extend(text.as_bytes());
    frame
}

/// A request as far as it has come; all of it where it has a body in JSON.
async fn request(stream: &mut TcpStream) -> String {
    let (mut request, mut bytes) = (String::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut bytes).await.unwrap();
        request += std::str::from_utf8(&bytes[..read]).unwrap();
        let body = request.split_once("\r\n\r\n").map(|(_, body)| body);
        if read == 0 || body.is_some_and(|body| request.starts_with("GET") || body.ends_with('}')) {
            return request;
        }
    }
}

/// A server of the tests' own making that lets every presenter in and does with each message, the first being 0, what
/// `does` says of its number and its body. It does what no good one does.
async fn serve_badly(listener: TcpListener, mut does: impl FnMut(usize, &str) -> Does) {
    let mut presenters = Vec::new();
    let mut sent = 0;
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = request(&mut stream).await;
        if request.starts_with("GET") {
            let mut upgrade = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
            if request.starts_with("GET /v1/presenter") {
                upgrade.extend(text_frame(r#"{"type":"welcome"}"#));
            }
            stream.write_all(&upgrade).await.unwrap();
            presenters.push(stream);
            continue;
        }
        let does = does(sent, request.split_once("\r\n\r\n").unwrap().1);
        sent += 1;
        for (presenter, frame) in does.delivers {
            presenters[presenter].write_all(&text_frame(&frame)).await.unwrap();
        }
        if let Some(answer) = does.answers {
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

/// How `load` ended on a server that does so with what it is sent, its report, and all that it wrote.
async fn against(does: impl FnMut(usize, &str) -> Does + 'static, args: &[&str]) -> (ExitStatus, Value, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = actix_web::rt::spawn(serve_badly(listener, does));
    let dir = ScratchDir::new("load-tool");
    let ended = ended(&load(&dir, addr, args)).await;
    server.abort();
    ended
}

/// These counts of a report.
fn counted<const N: usize>(report: &Value, names: [&str; N]) -> [u64; N] {
    names.map(|name| report[name].as_u64().unwrap_or_else(|| panic!("no {name} in {report}")))
}

#[actix_web::test]
async fn a_message_that_came_without_an_answer_hides_none_that_was_lost() {
    // The first message is delivered and not answered, the second is accepted and dropped.
    let does = |nth, body: &str| match nth {
        0 => Does {
            delivers: vec![(0, body.to_owned())],
            answers: None,
        },
        _ => Does {
            delivers: Vec::new(),
            answers: answer("201 Created", ""),
        },
    };
    let args = [
        "--messages",
        "2",
        "--senders",
        "1",
        "--speaks",
        "plain",
        "--text-bytes",
        "200",
    ];
    let (status, report, output) = against(does, &args).await;
    assert_eq!(status.code(), Some(1), "{output}");
    let names = [
        "sent",
        "accepted",
        "failed",
        "delivered",
        "delivered_unaccepted",
        "lost",
    ];
    assert_eq!(counted(&report, names), [2, 1, 1, 1, 1, 1], "{output}");
    assert!(output.contains("messages were lost"), "{output}");
}

#[actix_web::test]
async fn two_senders_whose_messages_change_places_are_out_of_order_by_their_seq() {
    let does = |nth: usize, body: &str| Does {
        delivers: vec![(0, chat([2, 1][nth], body))],
        answers: answer("201 Created", ""),
    };
    let args = ["--messages", "2", "--senders", "2", "--speaks", "v1"];
    let (status, report, output) = against(does, &args).await;
    assert_eq!(status.code(), Some(1), "{output}");
    let names = ["delivered", "out_of_order", "doubled", "lost"];
    assert_eq!(counted(&report, names), [2, 1, 0, 0], "{output}");
    assert!(output.contains("messages were out of order (1)"), "{output}");
}

#[actix_web::test]
async fn a_message_of_unknown_outcome_may_come_behind_the_next_one_of_its_connection_and_no_other_may() {
    let unknown = r#"{"code":"outcome_unknown"}"#;
    let firsts = [
        (answer("504 Gateway Timeout", unknown), 0),
        (answer("502 Bad Gateway", ""), 0),
        (None, 0),
        (answer("201 Created", ""), 1),
    ];
    for (first, out_of_order) in firsts {
        let said = format!("{first:?}");
        let mut earlier = String::new();
        let does = move |nth: usize, body: &str| match nth {
            0 => {
                body.clone_into(&mut earlier);
                Does {
                    delivers: Vec::new(),
                    answers: first.clone(),
                }
            }
            _ => Does {
                delivers: vec![(0, body.to_owned()), (0, earlier.clone())],
                answers: answer("201 Created", ""),
            },
        };
        let args = ["--messages", "2", "--senders", "1", "--speaks", "plain"];
        let (_, report, output) = against(does, &args).await;
        let names = ["delivered", "out_of_order", "doubled", "lost"];
        assert_eq!(counted(&report, names), [2, out_of_order, 0, 0], "{said}: {output}");
        let fault = output.contains("messages were out of order");
        assert_eq!(fault, out_of_order > 0, "{said}: {output}");
    }
}

#[actix_web::test]
async fn a_message_that_comes_to_the_presenter_of_another_room_is_not_taken_for_delivered() {
    let does = |nth: usize, body: &str| Does {
        delivers: vec![(0, chat(nth as u64 + 1, body))],
        answers: answer("201 Created", ""),
    };
    let args = ["--rooms", "2", "--messages", "2", "--senders", "2", "--speaks", "v1"];
    let (status, report, output) = against(does, &args).await;
    assert_eq!(status.code(), Some(1), "{output}");
    let names = ["accepted", "delivered", "misrouted", "lost", "of_others"];
    assert_eq!(counted(&report, names), [2, 1, 1, 1, 0], "{output}");
    assert!(output.contains("sent to another room's presenter (1)"), "{output}");
}

#[actix_web::test]
async fn a_message_that_was_refused_and_comes_all_the_same_is_a_fault_unless_nobody_could_know() {
    let refusals = [
        ("429 Too Many Requests", "rate_limited", 1),
        ("503 Service Unavailable", "log_unavailable", 1),
        ("504 Gateway Timeout", "outcome_unknown", 0),
    ];
    for (line, code, of_refused) in refusals {
        // The first is accepted, so that the others are all that is wrong.
        let does = move |nth: usize, body: &str| Does {
            delivers: vec![(0, body.to_owned())],
            answers: match nth {
                0 => answer("201 Created", ""),
                _ => answer(line, &json!({ "code": code }).to_string()),
            },
        };
        let args = ["--messages", "2", "--senders", "1", "--speaks", "plain"];
        let (status, report, output) = against(does, &args).await;
        assert_eq!(status.code(), Some(of_refused), "{output}");
        let names = ["refused", "delivered_unaccepted", "delivered_refused", "lost"];
        let of_refused = u64::try_from(of_refused).unwrap();
        assert_eq!(counted(&report, names), [1, 1, of_refused, 0], "{output}");
        let said = output.contains("messages were delivered although they were refused (1)");
        assert_eq!(said, of_refused == 1, "{output}");
    }
}

#[actix_web::test]
async fn a_message_without_an_answer_is_a_fault_even_where_no_other_is_wrong() {
    let does = |nth: usize, body: &str| Does {
        delivers: vec![(0, body.to_owned())],
        answers: if nth == 0 { None } else { answer("201 Created", "") },
    };
    let args = ["--messages", "3", "--senders", "1", "--speaks", "plain"];
    let (status, report, output) = against(does, &args).await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert_eq!(counted(&report, ["accepted", "failed", "lost"]), [2, 1, 0], "{output}");
    assert!(output.contains("1 messages had no answer"), "{output}");
}

#[actix_web::test]
async fn refusals_of_the_senders_themselves_are_no_success_where_every_message_is_to_be_refused() {
    let does = |_, _: &str| Does {
        delivers: Vec::new(),
        answers: answer("401 Unauthorized", r#"{"code":"unauthenticated"}"#),
    };
    let args = ["--absent", "--messages", "3", "--senders", "1"];
    let (status, report, output) = against(does, &args).await;
    assert_eq!(status.code(), Some(1), "{output}");
    assert_eq!(report["reasons"], json!({ "401 unauthenticated": 3 }), "{output}");
    assert!(output.contains("3 messages were refused for their sender"), "{output}");
}

#[actix_web::test]
async fn a_presenter_that_is_refused_is_told_with_the_code_and_the_status_or_the_close_code() {
    let (app, dir) = live_app().await;
    let mut with_another_key = Vec::new();
    for speaks in ["v1", "legacy"] {
        let args = [
            "load",
            "--addr",
            &app.addr.to_string(),
            "--rooms",
            "1",
            "--speaks",
            speaks,
        ];
        let mut tool = command(&dir, &args);
        let tool = tool.env("CHAT__AUTH__HS256_SECRET", KEY.replace("tests", "others"));
        let (status, _, output) = ended(&Process::start(&dir, tool)).await;
        assert_eq!(status.code(), Some(1), "{output}");
        with_another_key.push(output);
    }
    let refused = "room 1000000: a presenter was refused: ";
    let v1 = format!("{refused}unauthenticated, closed with 4001");
    assert!(with_another_key[0].contains(&v1), "{}", with_another_key[0]);
    let legacy = &with_another_key[1];
    assert!(
        legacy.contains(refused) && legacy.contains(", closed with 1000"),
        "{legacy}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = actix_web::rt::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let overloaded = answer("503 Service Unavailable", r#"{"code":"overloaded"}"#).unwrap();
        stream.write_all(overloaded.as_bytes()).await.unwrap();
    });
    let (status, _, output) = ended(&load(&dir, addr, &["--speaks", "v1"])).await;
    server.await.unwrap();
    assert_eq!(status.code(), Some(1), "{output}");
    let refused = "room 12: a presenter was refused: HTTP/1.1 503 Service Unavailable, overloaded";
    assert!(output.contains(refused), "{output}");
}

#[actix_web::test]
async fn a_close_that_is_late_behind_a_refusal_is_told_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = actix_web::rt::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        request(&mut stream).await;
        let mut refusal = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        refusal.extend(text_frame(r#"{"type":"error","code":"unauthenticated"}"#));
        stream.write_all(&refusal).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        stream.write_all(&[0x88, 2, 0x0f, 0xa1]).await.unwrap();
        stream
    });
    let (status, _, output) = ended(&load(&ScratchDir::new("load-tool"), addr, &["--speaks", "v1"])).await;
    drop(server.await);
    assert_eq!(status.code(), Some(1), "{output}");
    let refused = "room 12: a presenter was refused: unauthenticated, closed with 4001";
    assert!(output.contains(refused), "{output}");
}

#[actix_web::test]
async fn every_field_of_the_report_is_in_the_runbook_and_no_other() {
    let (app, dir) = live_app().await;
    let (_, report, output) = ended(&load(&dir, app.addr, &["--messages", "3"])).await;
    let mut fields: Vec<_> = report
        .as_object()
        .unwrap_or_else(|| panic!("{output}"))
        .keys()
        .collect();
    let rows = table(
        section(include_str!("../../docs/OPERATIONS.md"), "The load tool"),
        "field",
    );
    let mut told: Vec<_> = rows
        .iter()
        .flat_map(|row| row[0].split(", "))
        .map(|cell| name(cell).unwrap())
        .collect();
    fields.sort();
    told.sort();
    assert_eq!(fields, told.iter().collect::<Vec<_>>());
    for latency in ["sender", "delivery"] {
        let told = rows.iter().find(|row| row[0].contains("`sender`, `delivery`")).unwrap()[1];
        for name in report[latency].as_object().unwrap().keys() {
            assert!(told.contains(&format!("`{name}`")), "{name}");
        }
    }
}

#[actix_web::test]
async fn counts_of_nothing_are_refused_by_name() {
    let dir = ScratchDir::new("load-tool");
    for name in ["--rooms", "--senders", "--messages", "--rate", "--seconds", "--users"] {
        let tool = Process::start(&dir, &mut command(&dir, &["load", name, "0"]));
        let (status, _, output) = ended(&tool).await;
        assert_eq!(status.code(), Some(2), "{output}");
        assert!(output.contains(name), "{output}");
    }
    let tool = Process::start(&dir, &mut command(&dir, &["load", "--text-bytes", "999999999"]));
    assert_eq!(ended(&tool).await.0.code(), Some(2));
}
