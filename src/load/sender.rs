//! One connection that posts messages.

use std::{io::ErrorKind, ops::Range, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{MAX_US, Plan, Shared, Stop, ledger::Answer};

/// Sends until the time is over. Each message says of which run and which sender's how many-eth it is, and when it was due.
pub(super) async fn send(n: u64, plan: Rc<Plan>, counts: Shared, stop: Rc<Stop>) -> Result<(), String> {
    // Made when a turn is due: a server ends a connection that asks for nothing.
    let mut connection: Option<TcpStream> = None;
    let end = u64::try_from(plan.duration.as_micros()).unwrap_or(u64::MAX);
    let mut answer = vec![0; 16 * 1024];
    let mut request = Vec::with_capacity(1024);
    for turn in 0_u64.. {
        let due = match plan.rate {
            None => counts.borrow().us(),
            Some(rate) => {
                let due = (turn * plan.senders + n) * 1_000_000 / rate.max(1);
                let now = counts.borrow().us();
                // Who is told to stop while an answer is waited for does not hear of it.
                if now < due && due < end && !stop.now.get() {
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_micros(due - now)) => {}
                        () = stop.told.notified() => {}
                    }
                }
                due
            }
        };
        let number = turn * plan.senders + n;
        if due >= end || stop.now.get() || plan.messages.is_some_and(|most| number >= most) {
            return Ok(());
        }
        let mut stream = match connection.take().filter(is_quiet) {
            Some(stream) => stream,
            None => connect(&plan).await?,
        };
        // In a closed loop a message is due when it can be sent.
        let due = if plan.rate.is_some() { due } else { counts.borrow().us() };
        // Over all rooms and all users in turn, whatever the rate.
        let room = plan.first_room + counts.borrow().room_of(n, turn);
        let users = plan.sender_tokens.len().max(1);
        let user = usize::try_from(number).unwrap_or(0) % users;
        let token = plan.sender_tokens.get(user).map_or("", String::as_str);
        let stamp = {
            let mut counts = counts.borrow_mut();
            counts.sends(n);
            [counts.run, n, turn, due]
        };
        compose(&mut request, &plan, room, token, stamp);
        let answered = match exchange(&mut stream, &request, &mut answer).await {
            Ok(answered) => answered,
            Err(error) => {
                {
                    let mut counts = counts.borrow_mut();
                    counts.failed += 1;
                    counts.answered(n, turn, Answer::Unknown);
                }
                log::debug!("load: {error}");
                continue;
            }
        };
        {
            let mut counts = counts.borrow_mut();
            let status = answered.status;
            *counts.statuses.entry(status).or_default() += 1;
            let took = counts.us().saturating_sub(due).min(MAX_US);
            if status == 201 {
                counts.accepted += 1;
                counts.answered(n, turn, Answer::Accepted);
                counts.sender_us.saturating_record(took);
            } else {
                counts.refused += 1;
                let code = code(&answer[answered.body]);
                counts.answered(n, turn, of_refusal(status, code.is_some()));
                *counts
                    .reasons
                    .entry(format!("{status} {}", code.unwrap_or_default()))
                    .or_default() += 1;
            }
        }
        if !answered.closes {
            connection = Some(stream);
        }
    }
    Ok(())
}

/// What is known of a message that was answered with another status than 201; `coded`: with a code of this server's.
/// What has none is of a gateway, which may not know what became of it (docs/SENDING.md, "Refusals").
fn of_refusal(status: u16, coded: bool) -> Answer {
    match status {
        400..=499 => Answer::Refused,
        502 | 504 => Answer::Unknown,
        500..=599 if coded => Answer::Refused,
        _ => Answer::Unknown,
    }
}

async fn connect(plan: &Plan) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(plan.addr)
        .await
        .map_err(|error| format!("{}: {error}", plan.addr))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Whether nothing has come on a connection that waits for its next request. What comes there is its end, with or
/// without a 408.
fn is_quiet(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn compose(request: &mut Vec<u8>, plan: &Plan, room: u64, token: &str, [run, n, turn, due]: [u64; 4]) {
    use std::io::Write;
    let mut body = format!("{{\"text\":\"{run} {n} {turn} {due} ");
    let text_at = body.len() - 9;
    for _ in text_at..plan.text_bytes {
        body.push('x');
    }
    body.push_str("\"}");
    request.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(
        request,
        "POST /v1/rooms/{room}/messages HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    if plan.keys {
        let _ = write!(request, "Idempotency-Key: \"{run}-{n}-{turn}\"\r\n");
    }
    let _ = write!(request, "\r\n{body}");
}

/// What came for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    status: u16,
    /// Where its body is.
    pub body: Range<usize>,
    /// The server takes no other request on this connection.
    closes: bool,
}

/// Sends one request and reads one answer.
async fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut [u8]) -> Result<Answered, String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let mut have = 0;
    loop {
        let more = stream
            .read(&mut answer[have..])
            .await
            .map_err(|error| error.to_string())?;
        if more == 0 {
            return Err("the connection ended".into());
        }
        have += more;
        if let Some(mut answered) = whole(&answer[..have])? {
            // What comes behind it is of the connection's end.
            answered.closes |= have > answered.body.end;
            return Ok(answered);
        }
        if have == answer.len() {
            return Err("an answer is too long".into());
        }
    }
}

/// The answer once head and body are there.
pub(super) fn whole(answer: &[u8]) -> Result<Option<Answered>, String> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head]).map_err(|_| "an answer is not HTTP")?;
    let status = text
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .ok_or("an answer is not HTTP")?;
    let (mut length, mut closes) = (0, false);
    for (name, value) in text.split("\r\n").filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let begins = head + 4;
    // What a server claims may be any number.
    let body = begins..begins.saturating_add(length);
    Ok((answer.len() >= body.end).then_some(Answered { status, body, closes }))
}

/// The code of a problem (RFC 9457, docs/PROTOCOL.md).
pub(super) fn code(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body.get("code")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::{
        super::{Counts, Speaks, Stalled},
        *,
    };

    fn plan(addr: std::net::SocketAddr) -> Plan {
        Plan {
            addr,
            rooms: 1,
            first_room: 12,
            // The turns of each are an hour apart.
            senders: 3600,
            messages: Some(1000),
            rate: Some(1),
            duration: Duration::from_secs(7200),
            patience: Duration::from_secs(10),
            text_bytes: 0,
            keys: false,
            presenter_tokens: Vec::new(),
            sender_tokens: Vec::new(),
            speaks: Speaks::V1,
            stalled: Stalled {
                tokens: vec![String::new(); 3],
                rate: 5,
                text_bytes: 100,
            },
            progress: false,
            waits: false,
        }
    }

    #[actix_web::test]
    async fn a_sender_that_waits_for_its_answer_when_it_is_told_to_stop_waits_for_no_other_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plan = Rc::new(Plan {
            messages: None,
            ..plan(listener.local_addr().unwrap())
        });
        let counts = Counts::shared(&plan).unwrap();
        let stop = Rc::new(Stop::default());
        let sender = actix_web::rt::spawn(send(0, plan, Rc::clone(&counts), Rc::clone(&stop)));
        let (mut server, _) = listener.accept().await.unwrap();
        assert!(server.read(&mut [0; 4096]).await.unwrap() > 0);
        stop.now();
        let created = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
        server.write_all(created).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), sender).await;
        assert_eq!(ended.expect("it to end before its next turn").unwrap(), Ok(()));
        assert_eq!(counts.borrow().accepted, 1);
    }

    /// Reads a request and answers it.
    async fn accept(server: &mut TcpStream) {
        assert!(server.read(&mut [0; 4096]).await.unwrap() > 0);
        let created = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
        server.write_all(created).await.unwrap();
    }

    #[actix_web::test]
    async fn a_sender_whose_turn_is_not_due_has_no_connection_that_a_server_could_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plan = Rc::new(Plan {
            messages: None,
            ..plan(listener.local_addr().unwrap())
        });
        let counts = Counts::shared(&plan).unwrap();
        let stop = Rc::new(Stop::default());
        // The second connection's turn is an hour away.
        let senders = [0, 3599].map(|n| {
            let (plan, counts, stop) = (Rc::clone(&plan), Rc::clone(&counts), Rc::clone(&stop));
            actix_web::rt::spawn(send(n, plan, counts, stop))
        });
        let (mut server, _) = listener.accept().await.unwrap();
        accept(&mut server).await;
        stop.now();
        for sender in senders {
            assert_eq!(sender.await.unwrap(), Ok(()));
        }
        assert_eq!(counts.borrow().accepted, 1);
        let other = listener.into_std().unwrap().accept();
        assert_eq!(other.unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[actix_web::test]
    async fn a_connection_that_the_server_ended_between_two_requests_fails_no_message() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plan = Plan {
            senders: 1,
            messages: Some(20),
            rate: None,
            stalled: Stalled::default(),
            rooms: 0,
            ..plan(listener.local_addr().unwrap())
        };
        actix_web::rt::spawn(async move {
            for nth in 0.. {
                let (mut server, _) = listener.accept().await.unwrap();
                accept(&mut server).await;
                if nth % 2 == 0 {
                    let late = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n";
                    server.write_all(late).await.unwrap();
                }
            }
        });
        let (report, _presenters) = super::super::run(plan, &mut super::super::Interrupts::default())
            .await
            .unwrap();
        assert_eq!(
            (report.sent, report.accepted, report.refused, report.failed),
            (20, 20, 0, 0)
        );
    }

    #[actix_web::test]
    async fn a_server_that_does_not_keep_up_with_the_rate_is_said_and_what_it_was_sent_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plan = Plan {
            senders: 1,
            messages: None,
            rate: Some(1000),
            duration: Duration::from_millis(200),
            // Many times what one answer takes, since the one that is under way at its end is still waited for.
            patience: Duration::from_secs(5),
            stalled: Stalled::default(),
            rooms: 0,
            ..plan(listener.local_addr().unwrap())
        };
        actix_web::rt::spawn(async move {
            let (mut server, _) = listener.accept().await.unwrap();
            while server.read(&mut [0; 4096]).await.unwrap() > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let created = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
                server.write_all(created).await.unwrap();
            }
        });
        let (report, _presenters) = super::super::run(plan, &mut super::super::Interrupts::default())
            .await
            .unwrap();
        assert_eq!((report.accepted, report.failed), (report.sent, 0));
        // Of 200 that are due in the first 200 ms one every 100 ms is sent, for some five seconds.
        assert_eq!(report.unsent + report.sent, 200);
        assert!(report.unsent > 100 && !report.interrupted);
        let trouble = report.trouble.as_deref().unwrap();
        assert!(
            trouble.starts_with(&format!("the rate was not kept: {} messages", report.unsent))
                && trouble.contains("all 1 connections waiting for answers"),
            "{trouble}"
        );
        assert!(report.table().contains("more were due and not sent"));
    }

    #[test]
    fn presenters_that_read_nothing_are_sent_to_however_few_messages_count() {
        let burden = plan(std::net::SocketAddr::from(([127, 0, 0, 1], 1))).burden();
        assert_eq!(burden.messages, None);
        assert_eq!((burden.first_room, burden.rooms), (13, 3));
        assert_eq!((burden.rate, burden.text_bytes), (Some(5), 100));
    }

    #[test]
    fn a_refusal_leaves_open_what_became_of_a_message_only_where_it_says_so() {
        for status in [400, 401, 408, 409, 422, 429] {
            assert_eq!(of_refusal(status, false), Answer::Refused);
        }
        for (status, coded) in [(504, true), (502, true), (503, false), (500, false), (202, false)] {
            assert_eq!(of_refusal(status, coded), Answer::Unknown);
        }
        assert_eq!([500, 503].map(|status| of_refusal(status, true)), [Answer::Refused; 2]);
    }

    #[test]
    fn an_answer_is_whole_when_its_body_is_and_says_whether_the_connection_ends() {
        let bytes = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 23\r\nConnection: close\r\n\r\n{\"code\":\"rate_limited\"}";
        assert_eq!(whole(&bytes[..60]), Ok(None));
        assert_eq!(whole(&bytes[..bytes.len() - 2]), Ok(None));
        let answered = whole(bytes).unwrap().unwrap();
        assert_eq!((answered.status, answered.closes), (429, true));
        let text = "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
        let answered = whole(text.as_bytes()).unwrap().unwrap();
        assert_eq!((answered.status, answered.closes), (201, false));
        assert_eq!(
            code(br#"{"status":429,"code":"rate_limited"}"#).as_deref(),
            Some("rate_limited")
        );
        assert_eq!(code(b"<html>"), None);
        assert!(whole(b"nothing of HTTP\r\n\r\n").is_err());
    }
}
