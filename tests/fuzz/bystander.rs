//! A presenter and a sender of good will: while all else goes on, each message of theirs arrives, in order.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    server::PRESENTER,
    support::{
        http::post_json,
        presenter::V1,
        tokens::{claims, signed},
    },
};

/// How a bystander fared.
#[derive(Default)]
pub struct Fared {
    /// Messages of its own that were sent and arrived.
    pub arrived: u64,
    /// The longest from the request to the presenter.
    pub longest: Duration,
    /// Chat frames in all: the fuzz run has messages accepted, too.
    pub frames: u64,
    pub violations: Vec<String>,
}

/// Sends and watches until it is over, and once more after that.
pub async fn watch(address: SocketAddr, gateway: bool, over: Arc<AtomicBool>) -> Fared {
    let mut fared = Fared::default();
    let mut presenter = V1::at(address, PRESENTER, json!({})).await;
    let mut seq = presenter.welcome["last_seq"].as_u64().unwrap();
    loop {
        let last_round = over.load(Ordering::Acquire);
        let (text, began) = (format!("bystander {}", fared.arrived), Instant::now());
        let token = signed(&claims(7_000_000));
        let headers: &[(&str, &str)] = if gateway {
            &[
                ("x-forward-userIdx", "7000000"),
                ("x-forward-email", ""),
                ("x-forward-nickname", "kim"),
            ]
        } else {
            &[("token", &token)]
        };
        let body = json!({ "text": text }).to_string();
        let path = format!("/v1/rooms/{PRESENTER}/messages");
        let sends = async {
            let answer = post_json(address, &path, headers, body).await;
            match answer.status {
                201 => Ok(()),
                other => Err(format!("a bystander's message got {other}: {}", answer.text())),
            }
        };
        let reads = async {
            loop {
                let chat = presenter.chat().await;
                fared.frames += 1;
                let next = chat["seq"].as_u64().unwrap();
                if next != seq + 1 {
                    fared.violations.push(format!("seq {next} came after {seq}"));
                }
                seq = next;
                presenter.ack(seq).await;
                if chat["text"] == text {
                    return Ok(());
                }
            }
        };
        // At once: whoever reads nothing while it sends answers no ping meanwhile.
        if let Err(violation) = tokio::try_join!(sends, reads) {
            fared.violations.push(violation);
            return fared;
        }
        fared.arrived += 1;
        fared.longest = fared.longest.max(began.elapsed());
        if last_round {
            return fared;
        }
    }
}
