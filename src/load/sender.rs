//! One connection that posts messages.

use std::{rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{MAX_US, Plan, Shared};

/// Sends until the time is over. Each message says which sender's how many-eth it is and when it was due.
pub(super) async fn send(n: u64, plan: Rc<Plan>, counts: Shared) -> Result<(), String> {
    let mut stream = connect(&plan).await?;
    let end = u64::try_from(plan.duration.as_micros()).unwrap_or(u64::MAX);
    let mut answer = vec![0; 16 * 1024];
    let mut request = Vec::with_capacity(1024);
    for turn in 0_u64.. {
        let due = match plan.rate {
            None => counts.borrow().us(),
            Some(rate) => {
                let due = (turn * plan.senders + n) * 1_000_000 / rate.max(1);
                let now = counts.borrow().us();
                if due > now {
                    tokio::time::sleep(Duration::from_micros(due - now)).await;
                }
                due
            }
        };
        if due >= end {
            return Ok(());
        }
        let number = turn * plan.senders + n;
        if plan.messages.is_some_and(|most| number >= most) {
            return Ok(());
        }
        // Over all rooms and all users in turn, whatever the rate.
        let room = plan.first_room + number % plan.rooms.max(1);
        let users = plan.sender_tokens.len().max(1);
        let user = usize::try_from(number).unwrap_or(0) % users;
        let token = plan.sender_tokens.get(user).map_or("", String::as_str);
        compose(&mut request, &plan, room, token, n, turn, due);
        counts.borrow_mut().sent += 1;
        let status = match exchange(&mut stream, &request, &mut answer).await {
            Ok(status) => status,
            Err(error) => {
                counts.borrow_mut().failed += 1;
                log::debug!("load: {error}");
                stream = connect(&plan).await?;
                continue;
            }
        };
        let mut counts = counts.borrow_mut();
        *counts.statuses.entry(status).or_default() += 1;
        let took = counts.us().saturating_sub(due).min(MAX_US);
        if status == 201 {
            counts.accepted += 1;
            counts.sender_us.saturating_record(took);
        } else {
            counts.refused += 1;
        }
    }
    Ok(())
}

async fn connect(plan: &Plan) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(plan.addr)
        .await
        .map_err(|error| format!("{}: {error}", plan.addr))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn compose(request: &mut Vec<u8>, plan: &Plan, room: u64, token: &str, n: u64, turn: u64, due: u64) {
    use std::io::Write;
    let mut body = format!("{{\"text\":\"{n} {turn} {due} ");
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
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// Sends one request and reads one answer; returns its status.
async fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut [u8]) -> Result<u16, String> {
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
        if let Some(status) = whole(&answer[..have])? {
            return Ok(status);
        }
        if have == answer.len() {
            return Err("an answer is too long".into());
        }
    }
}

/// The status once head and body are there.
fn whole(answer: &[u8]) -> Result<Option<u16>, String> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head]).map_err(|_| "an answer is not HTTP")?;
    let status = text
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .ok_or("an answer is not HTTP")?;
    let length = text
        .split("\r\n")
        .find_map(|line| {
            line.split_once(':')
                .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        })
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .unwrap_or(0);
    Ok((answer.len() >= head + 4 + length).then_some(status))
}
