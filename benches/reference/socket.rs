//! A presenter's WebSocket: whatever the channel has, written as it comes.

use actix_http::ws::{Codec, Frame, OpCode, Parser};
use actix_web::{Error, HttpRequest, HttpResponse, web};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::codec::Decoder;

use super::{Shared, framed};

#[derive(Deserialize)]
struct Start {
    token: String,
}

/// The claim that says whose room it is.
#[derive(Deserialize)]
struct Claims {
    user_idx: i64,
}

pub fn text(payload: &[u8]) -> Bytes {
    framed(|buffer| Parser::write_message(buffer, payload, OpCode::Text, true, false))
}

pub async fn presenter(
    request: HttpRequest,
    mut payload: web::Payload,
    shared: web::Data<Shared>,
) -> Result<HttpResponse, Error> {
    let mut response = actix_web_actors::ws::handshake(&request)?;
    let (send, receive) = unbounded_channel::<Bytes>();
    actix_web::rt::spawn(async move {
        let (mut codec, mut unread, mut room) = (Codec::new(), BytesMut::new(), None);
        while let Some(Ok(bytes)) = payload.next().await {
            unread.extend_from_slice(&bytes);
            while let Ok(Some(frame)) = codec.decode(&mut unread) {
                if let Frame::Text(text) = frame {
                    room = said(&text, &send, &shared).or(room);
                }
            }
        }
        if let Some(room) = room {
            let mut rooms = shared.rooms.write().unwrap();
            // Another may present there by now.
            if rooms.get(&room).is_some_and(|present| present.same_channel(&send)) {
                rooms.remove(&room);
            }
        }
    });
    let frames = stream::unfold(receive, |mut receive| async move {
        let frame = receive.recv().await?;
        Some((Ok::<_, Error>(frame), receive))
    });
    Ok(response.keep_alive().streaming(frames))
}

/// The room that it presents from now on.
fn said(frame: &[u8], send: &UnboundedSender<Bytes>, shared: &Shared) -> Option<i64> {
    if frame == b"ping" {
        let _ = send.send(text(b"pong"));
        return None;
    }
    let room = room_of(frame)?;
    shared.rooms.write().unwrap().insert(room, send.clone());
    Some(room)
}

/// The room of a `start`; its token's signature is looked at by nobody.
fn room_of(frame: &[u8]) -> Option<i64> {
    let start: Start = serde_json::from_slice(frame).ok()?;
    let claims = URL_SAFE_NO_PAD.decode(start.token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(claims.user_idx)
}
