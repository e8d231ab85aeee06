//! The tools of these tests do what they say: a test is worth what its tools are.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::http::{self, HttpClient};
use crate::support::mongod::Mongod;
use crate::support::process::{Process, ScratchDir, output, output_within};
use crate::support::proxy::Proxy;
use crate::support::room_server::{Mode, RoomServer};
use crate::support::ws::{BINARY, CONTINUATION, Frame, Incoming, PING, TEXT, WsClient};
use crate::support::{eventually, within};

const CHECK: &str = "/room/live/check";

#[actix_web::test]
async fn a_process_tells_its_output_and_its_end() {
    let dir = ScratchDir::new("process");
    let script = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let process = Process::start(&dir, Command::new("/bin/sh").args(["-c", script]));
    assert_eq!(process.line("ready").await, "ready");
    assert_eq!(process.exit(), None);
    process.signal("TERM");
    assert_eq!(process.exited().await.code(), Some(7));
    assert_eq!(process.output(), "ready\ntold\n");
}

#[actix_web::test]
async fn a_process_and_its_directory_go_when_dropped() {
    let dir = ScratchDir::new("process");
    let path = dir.path().to_owned();
    let process = Process::start(&dir, Command::new("/bin/sleep").arg("1000"));
    let running = format!("/proc/{}", process.pid());
    assert!(std::fs::exists(&running).unwrap());
    drop((process, dir));
    assert!(!std::fs::exists(&running).unwrap());
    assert!(!path.exists());
}

#[actix_web::test]
async fn the_room_server_answers_as_the_contract_says() {
    let rooms = RoomServer::start().await;
    let mut client = HttpClient::connect(rooms.address()).await;

    let not_live = client.post_json(CHECK, &[], r#"{"presenterIdx":"12"}"#).await;
    assert_eq!(
        (not_live.status, not_live.json()["data"]["alive"].as_bool()),
        (200, Some(false))
    );

    rooms.live_with(12, r#"{"roomIdx":7}"#).await;
    let live = client.post_json(CHECK, &[], r#"{"presenterIdx":"12"}"#).await.json();
    assert_eq!(
        (live["data"]["alive"].as_bool(), live["data"]["roomIdx"].as_i64()),
        (Some(true), Some(7))
    );

    rooms.ended(12).await;
    let ended = client.post_json(CHECK, &[], r#"{"presenterIdx":"12"}"#).await;
    assert_eq!(ended.json()["data"]["alive"].as_bool(), Some(false));

    for wrong in [
        r#"{"presenterIdx":12}"#,
        r#"{"presenterIdx": "12"}"#,
        r#"{"presenterIdx":"012"}"#,
        "{}",
        "",
    ] {
        assert_eq!(client.post_json(CHECK, &[], wrong).await.status, 400, "{wrong}");
    }
    let stats = rooms.stats().await;
    assert_eq!(
        (stats.checks_of(12), stats.all_checks(), stats.bad_requests.len()),
        (3, 3, 5)
    );
    assert_eq!((stats.concurrent, stats.max_concurrent), (0, 1));
    assert_eq!(stats.content_types.keys().collect::<Vec<_>>(), ["application/json"]);
}

#[actix_web::test]
async fn the_room_server_misbehaves_when_told_to() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let ask = async || http::post_json(rooms.address(), CHECK, &[], r#"{"presenterIdx":"12"}"#).await;

    rooms.mode(Mode::Status(500)).await;
    assert_eq!(ask().await.status, 500);
    rooms.mode(Mode::Garbage).await;
    assert!(serde_json::from_slice::<serde_json::Value>(&ask().await.body).is_err());
    rooms.mode(Mode::NotBoolean).await;
    assert!(ask().await.json()["data"]["alive"].is_string());
    rooms.mode(Mode::NoData).await;
    assert_eq!(ask().await.text(), "{}");
    rooms.mode(Mode::Redirect).await;
    assert_eq!(ask().await.header("location"), Some("/room/live/elsewhere"));
    rooms.mode(Mode::Huge).await;
    assert!(ask().await.body.len() > 64 << 20);
    rooms.mode(Mode::Slow { milliseconds: 50 }).await;
    let begun = std::time::Instant::now();
    assert_eq!(ask().await.json()["data"]["alive"].as_bool(), Some(true));
    assert!(begun.elapsed() >= Duration::from_millis(50));

    // One presenter hangs, the others are answered.
    rooms.mode(Mode::Normal).await;
    rooms.mode_of(13, Mode::Hang).await;
    let mut hung = HttpClient::connect(rooms.address()).await;
    hung.send_request("POST", CHECK, &[], r#"{"presenterIdx":"13"}"#).await;
    eventually("the hung check", async || {
        (rooms.stats().await.concurrent == 1).then_some(())
    })
    .await;
    assert_eq!(ask().await.json()["data"]["alive"].as_bool(), Some(true));
    drop(hung);
    eventually("its end", async || (rooms.stats().await.concurrent == 0).then_some(())).await;
}

/// The README has users run it.
#[actix_web::test]
async fn the_room_server_by_hand_tells_its_flags_and_what_is_wrong_with_them() {
    let dir = ScratchDir::new("by-hand");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_room-server-standin"));
        let output = output(dir.path(), command.current_dir(dir.path()).args(args));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for part in ["--port <N>", "--port-file <FILE>", "/control/live/N"] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let (code, _, error) = run(&["--port", &addr.port().to_string()]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&format!("--port {}: {addr}: ", addr.port())), "{error}");
    for port in ["x", "65536"] {
        let (code, _, error) = run(&["--port", port]);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains("--port"), "{error}");
    }
    let (code, _, error) = run(&["--port-file", "nowhere/port"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("--port-file nowhere/port: "), "{error}");
}

#[actix_web::test]
async fn a_command_that_does_not_end_in_time_is_killed_and_what_it_wrote_is_told() {
    let dir = ScratchDir::new("endless");
    let script = "echo $$; echo told >&2; exec sleep 1000";
    let patience = Duration::from_secs(5);
    let killed = output_within(patience, dir.path(), Command::new("/bin/sh").args(["-c", script])).unwrap_err();
    assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
    assert_eq!(killed.stderr, b"told\n");
    let pid = String::from_utf8(killed.stdout).unwrap();
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
}

#[actix_web::test]
async fn mongod_survives_a_kill_and_keeps_its_port() {
    let mut mongod = Mongod::start_own().await;
    let address = ([127, 0, 0, 1], mongod.port()).into();
    // mongod answers HTTP with a sentence, which shows that it runs without a driver.
    let alive = async || http::get(address, "/").await.text().contains("MongoDB");
    assert!(alive().await);

    mongod.freeze();
    let answer = tokio::time::timeout(Duration::from_millis(100), http::get(address, "/")).await;
    assert!(answer.is_err(), "answered while stopped");
    mongod.thaw();
    assert!(alive().await);

    mongod.kill().await;
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(mongod.process().exit().unwrap().signal(), Some(9));
    mongod.restart().await;
    assert!(alive().await);
}

#[actix_web::test]
async fn all_tests_share_one_mongod() {
    assert_eq!(Mongod::shared().uri(), Mongod::shared().uri());
    assert!(Mongod::shared().process().exit().is_none());
}

#[actix_web::test]
async fn the_proxy_forwards_stalls_cuts_and_restores() {
    let proxy = Proxy::start(echo_server().await).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut client, "one").await, Some("one".into()));
    assert_eq!((proxy.open(), proxy.accepted()), (1, 1));

    proxy.stall();
    client.write_all(b"two").await.unwrap();
    let mut bytes = [0; 3];
    let early = tokio::time::timeout(Duration::from_millis(50), client.read_exact(&mut bytes)).await;
    assert!(early.is_err(), "came through a stalled link");
    proxy.restore();
    within("the held bytes", client.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"two");

    proxy.cut();
    let error = within("the reset", client.read(&mut bytes)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut refused, "three").await, None);

    proxy.restore();
    proxy.delay(Duration::from_millis(20));
    let begun = std::time::Instant::now();
    let mut again = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(echo(&mut again, "four").await, Some("four".into()));
    assert!(begun.elapsed() >= Duration::from_millis(40), "20 ms each way");
}

#[actix_web::test]
async fn half_open_is_heard_by_the_target_only() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(target.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    proxy.half_open();
    assert!(within("the reset", far.read_u8()).await.is_err());
    client.write_all(b"anyone?").await.unwrap();
    let heard = tokio::time::timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(heard.is_err(), "the near side heard of it");
    // Those that come are served.
    let _second = TcpStream::connect(proxy.address()).await.unwrap();
    within("the second", target.accept()).await.unwrap();
}

#[test]
fn frames_are_encoded_as_the_rfc_shows() {
    // RFC 6455, section 5.7.
    let hello = Frame::new(TEXT, "Hello");
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(hello.encode(), masked);
    assert_eq!(
        Frame { masked: false, ..hello }.encode(),
        [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]
    );
    let long = Frame {
        masked: false,
        ..Frame::new(BINARY, vec![0; 256])
    };
    assert_eq!(long.encode()[..4], [0x82, 0x7e, 0x01, 0x00]);
    let longer = Frame {
        masked: false,
        ..Frame::new(BINARY, vec![0; 65_536])
    };
    assert_eq!(longer.encode()[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    let parts = Frame::fragments("Hello", 2);
    assert_eq!(
        parts.iter().map(|part| (part.fin, part.opcode)).collect::<Vec<_>>(),
        [(false, TEXT), (true, CONTINUATION)]
    );
}

#[actix_web::test]
async fn the_websocket_client_reads_what_a_server_may_send() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let unmasked = |frame: Frame| Frame { masked: false, ..frame }.encode();
    let mut script =
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n".to_vec();
    let [first, second] = Frame::fragments("둘로 나눈 글", 2).try_into().unwrap();
    for frame in [
        Frame::new(TEXT, "plain"),
        first,
        Frame::new(PING, "between"),
        second,
        Frame::new(TEXT, "x".repeat(70_000)),
    ] {
        script.extend(unmasked(frame));
    }
    script.extend(unmasked(Frame::new(
        8,
        [&4003_u16.to_be_bytes()[..], b"newer"].concat(),
    )));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // A byte at a time at first, so that every frame comes torn.
        for byte in script.chunks(1).take(300) {
            stream.write_all(byte).await.unwrap();
        }
        stream.write_all(&script[300..]).await.unwrap();
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });

    let mut ws = WsClient::connect(address, "/").await;
    assert_eq!(ws.next_text().await, "plain");
    assert_eq!(ws.next().await, Incoming::Ping(b"between".into()));
    assert_eq!(ws.next_text().await, "둘로 나눈 글");
    assert_eq!(ws.next_text().await.len(), 70_000);
    assert_eq!(ws.next_close().await, Some(4003));
}

/// A server that sends everything back.
async fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// What comes back for `text`; `None` when the link fails.
async fn echo(stream: &mut TcpStream, text: &str) -> Option<String> {
    stream.write_all(text.as_bytes()).await.ok()?;
    let mut bytes = vec![0; text.len()];
    within("the echo", stream.read_exact(&mut bytes)).await.ok()?;
    String::from_utf8(bytes).ok()
}
