//! The sections of what is kept while the server runs: rooms, sessions and the actors' mailboxes.

use super::rule::{CONTENT_TYPE, HTTP_URL, HTTP_URL_OR_OFF, OFF};
use super::section::{choice, section};

choice! {
    /// What follows when the room server gives no answer.
    pub enum OnError {
        /// Senders are refused.
        Refuse = "refuse",
        /// The last verdict holds on for `room.stale_seconds`.
        LastKnown = "last_known",
    }
}

choice! {
    /// Who knows which presenters are live.
    pub enum RoomMode {
        /// The room server, asked over HTTP.
        Http = "http",
        /// This server itself.
        Embedded = "embedded",
    }
}

section! {
    /// Rooms: which presenters are live, and what is kept for each.
    /// 방: 어떤 방송이 진행 중인지, 방마다 무엇을 보관하는지.
    pub struct Room {
        /// "http": the room server knows who is live; "embedded": this server itself does.
        /// "http": 룸 서버에 방송 여부를 묻는다. "embedded": 이 서버가 직접 판단한다.
        mode: RoomMode = RoomMode::Http;
        /// Where the room server is; `/check` is added to it.
        /// 룸 서버의 주소. 뒤에 `/check`를 붙여 묻는다.
        base_url: String = "http://127.0.0.1:8081/room/live", HTTP_URL;
        /// Where to ask that a presenter reconnects; empty is base_url + /reconnect, "off" never asks.
        /// 스트리머에게 재연결을 요청할 주소. 비우면 base_url + /reconnect, "off"면 요청하지 않는다.
        reconnect_url: String = "", HTTP_URL_OR_OFF;
        /// Content-Type of what is sent to the room server.
        /// 룸 서버로 보내는 요청의 Content-Type.
        content_type: String = "application/json", CONTENT_TYPE;
        /// Milliseconds to wait for the room server's answer.
        /// 룸 서버의 응답을 기다리는 밀리초.
        timeout_ms: u64 = 2000, 1..=60_000;
        /// Milliseconds that the verdict "live" holds.
        /// "방송 중" 판정의 유효 시간(밀리초).
        live_ttl_ms: u64 = 5000, 1..=600_000;
        /// Milliseconds that the verdict "not live" holds.
        /// "방송 중 아님" 판정의 유효 시간(밀리초).
        not_live_ttl_ms: u64 = 2000, 1..=600_000;
        /// Percent of its time after which a verdict in use is asked for anew.
        /// 사용 중인 판정을 유효 시간의 몇 퍼센트에서 다시 물을지.
        refresh_percent: u32 = 80, 1..=100;
        /// Verdicts "live" kept; the one unused for longest goes first.
        /// 보관하는 "방송 중" 판정의 수. 가장 오래 쓰지 않은 것부터 버린다.
        cache_max: usize = 100_000, 1..=10_000_000;
        /// Verdicts "not live" kept apart from those, and as many refusals: unknown rooms push no live one out.
        /// 따로 보관하는 "방송 중 아님" 판정의 수(답변 거부도 같은 수만큼). 없는 방이 방송 중인 방을 밀어내지 않는다.
        not_live_cache_max: usize = 50_000, 1..=10_000_000;
        /// Questions under way at the room server at once; the rest wait, and are given up after room.timeout_ms.
        /// 룸 서버에 동시에 보내는 질의 수. 나머지는 기다리다가 room.timeout_ms가 지나면 포기한다.
        max_lookups: usize = 64, 1..=10_000;
        /// Requests to make a presenter reconnect at once; what is over is left out, and its room asks again later.
        /// 동시에 보내는 재연결 요청의 최대 수. 넘치는 요청은 건너뛰고 나중에 다시 보낸다.
        max_reconnects: usize = 16, 1..=1000;
        /// Bytes of an answer of the room server; longer ones count as errors.
        /// 룸 서버 응답의 최대 바이트. 넘으면 오류로 본다.
        max_answer_bytes: usize = 65_536, 256..=16_777_216;
        /// Room server gives no answer: "refuse" refuses senders, "last_known" keeps to its last verdict.
        /// 룸 서버가 답하지 못할 때: "refuse"는 거절, "last_known"은 마지막 판정을 따른다.
        on_error: OnError = OnError::Refuse;
        /// Seconds past its time that a last known verdict is still good, with on_error = "last_known".
        /// on_error = "last_known"일 때 만료된 판정을 더 쓰는 최대 초.
        stale_seconds: u64 = 60, 0..=86_400;
        /// Failures in a row after which the room server is left alone; 0 never does.
        /// 연속으로 이만큼 실패하면 룸 서버에 잠시 묻지 않는다. 0이면 항상 묻는다.
        breaker_failures: u32 = 10, 0..=1_000_000;
        /// Milliseconds that it is left alone, before one question tries it.
        /// 묻지 않고 두는 밀리초. 그 뒤 질의 하나로 다시 시도한다.
        breaker_open_ms: u64 = 2000, 1..=600_000;
        /// Messages of one room that may wait for its verdict; more are refused.
        /// 판정을 기다릴 수 있는 방 하나의 메시지 수. 넘치면 거절한다.
        pending_max: usize = 64, 1..=100_000;
        /// Events of a room in memory, those on their way to the log too; while all of them wait, more are refused.
        /// 방마다 메모리에 두는 이벤트 수(로그로 가는 중인 것 포함). 모두 대기 중이면 거절한다. 오래된 것은 로그에서 읽는다.
        ring_events: usize = 1024, 1..=1_000_000;
        // At least one longest event fits; see session.credit_bytes.
        /// The same in bytes.
        /// 위와 같은 한도를 바이트로.
        ring_bytes: usize = 1_048_576, 65_536..=1_073_741_824;
        /// Milliseconds between two looks after expired verdicts, stalled sessions and idle rooms.
        /// 만료된 판정, 멈춘 세션, 쉬는 방을 살피는 간격(밀리초).
        sweep_ms: u64 = 1000, 10..=60_000;
    }
}

impl Room {
    /// Whether the room server is asked to make presenters connect again.
    pub(crate) fn asks_to_reconnect(&self) -> bool {
        self.reconnect_url != OFF
    }
}

section! {
    /// Sessions: the WebSockets of presenters.
    /// 세션: 스트리머의 WebSocket.
    pub struct Session {
        /// Sessions at once on this server; more are refused.
        /// 이 서버의 최대 동시 세션 수. 넘치면 거절한다.
        max: usize = 20_000, 1..=1_000_000;
        /// Events sent to a session and not yet acknowledged (v1) or flushed (legacy); the rest wait in the room.
        /// 세션에 보냈으나 아직 확인(v1) 또는 전송 완료(legacy)되지 않은 이벤트 수. 나머지는 방에서 기다린다.
        credit_events: usize = 256, 1..=65_536;
        // The least is the longest event that [message] allows: 10,000 + 256 characters of up to 6 bytes in JSON.
        /// The same in bytes.
        /// 위와 같은 한도를 바이트로.
        credit_bytes: usize = 1_048_576, 65_536..=1_073_741_824;
        /// Seconds between two pings to a session.
        /// 세션에 핑을 보내는 간격(초).
        keepalive_seconds: u64 = 15, 1..=3600;
        /// Pings in a row without an answer after which a session is ended.
        /// 연속으로 이만큼 핑에 답이 없으면 세션을 끝낸다.
        keepalive_missed: u32 = 2, 1..=100;
        /// Seconds that a session may be behind without progress; a closed one may read on as long, 60 at most.
        /// 밀린 세션이 이만큼(초) 진전이 없으면 너무 느린 것으로 보고 닫는다. 닫힌 뒤 읽는 시간도 이만큼(최대 60)이다.
        stall_seconds: u64 = 15, 1..=3600;
        /// Seconds that a legacy session stays open at most while a newer one has its room, unless sessions are full.
        /// 새 세션으로 대체된 legacy 세션을 새 세션이 있는 동안 열어 두는 최대 시간(초). 세션 자리가 모자라면 먼저 닫는다.
        detached_seconds: u64 = 60, 1..=86_400;
        /// Seconds after a session's end during which messages are held for the next one; 0 holds nothing.
        /// 연결이 끊긴 뒤 다음 연결을 위해 메시지를 보관하는 시간(초). 0이면 보관하지 않는다.
        grace_seconds: u64 = 30, 0..=3600;
        /// Seconds between two requests to make the same presenter reconnect.
        /// 같은 스트리머에게 재연결을 다시 요청하기까지의 간격(초).
        reconnect_request_seconds: u64 = 5, 1..=3600;
        /// Seconds that a session may stay while its presenter is not live.
        /// 방송 중이 아닌 스트리머의 세션을 유지하는 초.
        not_live_seconds: u64 = 60, 1..=86_400;
        /// Bytes of a message that a presenter sends; longer ones close the session with 1009.
        /// 스트리머가 보내는 메시지의 최대 바이트. 넘으면 1009로 닫는다.
        max_frame_bytes: usize = 32_768, 1024..=1_048_576;
        /// Frames a second from a client, new acks aside, and twice as many at once; more close it with 1008.
        /// 클라이언트가 초당 보낼 수 있는 프레임 수(새로운 ack 제외). 한꺼번에는 두 배까지, 넘으면 1008로 닫는다.
        client_frames_per_second: u32 = 200, 1..=100_000;
        /// Seconds a v1 client has for its first hello.
        /// v1 클라이언트가 첫 hello를 보내야 하는 초.
        hello_seconds: u64 = 5, 1..=300;
        /// Whether a v1 session is closed when its token expires and no hello has refreshed it.
        /// 토큰이 만료되고 hello로 갱신되지 않은 v1 세션을 닫을지 여부.
        close_on_expiry: bool = true;
        /// Events sent again to a session that resumes; what is before them is told as a gap (v1).
        /// 재개하는 세션에 다시 보내는 최대 이벤트 수. 그 이전은 gap으로 알린다(v1).
        resume_max: u64 = 100_000, 1..=100_000_000;
        /// Reads of the log under way at once for sessions that are behind; the others wait.
        /// 밀린 세션을 위해 동시에 진행하는 로그 읽기 수. 나머지는 기다린다.
        resume_reads: usize = 8, 1..=1024;
        /// Seconds to wait for the log when it cannot be read, before what is missing is told as a gap.
        /// 로그를 읽을 수 없을 때 빠진 것을 gap으로 알리기까지 기다리는 초.
        resume_wait_seconds: u64 = 10, 1..=300;
        /// Milliseconds between two savings of how far a room got; a restart goes on from there.
        /// 방의 진행 위치를 저장하는 간격(밀리초). 재시작하면 거기서 이어진다.
        checkpoint_ms: u64 = 5000, 10..=60_000;
        /// Sessions of one presenter that may begin at once; more are refused with 429.
        /// 스트리머 한 명이 한꺼번에 시작할 수 있는 세션 수. 넘치면 429로 거절한다.
        reconnect_burst: u32 = 20, 1..=10_000;
        /// Sessions of one presenter a minute beyond that.
        /// 그 이상으로 스트리머 한 명이 분당 시작할 수 있는 세션 수.
        reconnect_per_minute: u32 = 60, 1..=100_000;
    }
}

section! {
    /// Broadcasts: one stretch of a room being live each.
    /// 방송: 방이 이어서 진행 중인 한 구간.
    pub struct Broadcast {
        /// Seconds within which a room that is live again goes on with the same broadcast, across a restart too.
        /// 이 시간(초) 안에 다시 시작하면 같은 방송으로 본다. 서버 재시작을 사이에 두어도 같다.
        resume_seconds: u64 = 300, 1..=86_400;
        /// Seconds until a broadcast unknown to the room server ends though messages are held; else resume_seconds.
        /// 룸 서버가 모르는 방송을 보관한 메시지가 있어도 끝내는 시간(초). 보관한 것이 없으면 resume_seconds로 끝난다.
        unknown_seconds: u64 = 86_400, 1..=31_536_000;
    }
}

section! {
    /// The actor that owns every room: admits, numbers, publishes and answers.
    /// 모든 방을 소유하는 액터: 수락, 번호 부여, 발행, 응답.
    pub struct RegistryActor {
        /// Messages on their way through it at once; more are refused with 503.
        /// 동시에 처리 중일 수 있는 메시지 수. 넘치면 503으로 거절한다.
        mailbox: usize = 8192, 1..=1_000_000;
        /// Of them, at most so many of one room; where room.ring_events is less, that refuses first.
        /// 그중 방 하나가 차지할 수 있는 최대 수. room.ring_events가 더 작으면 그쪽이 먼저 거절한다.
        room_share: usize = 2048, 1..=1_000_000;
    }
}

section! {
    /// The actor that finds out whether a presenter is live.
    /// 방송 중인지 확인하는 액터.
    pub struct CheckerActor {
        /// Room checks waiting or under way; more are refused with 503.
        /// 대기 중이거나 진행 중인 확인 수. 넘치면 503으로 거절한다.
        mailbox: usize = 4096, 1..=1_000_000;
    }
}

section! {
    /// The actor of each presenter's WebSocket.
    /// 스트리머의 WebSocket마다 하나인 액터.
    pub struct SessionActor {
        /// Deliveries queued to one of them; what is over waits in the room.
        /// 액터 하나에 쌓일 수 있는 전달 수. 나머지는 방에서 기다린다.
        mailbox: usize = 256, 1..=65_536;
    }
}

section! {
    /// The actor that writes the log.
    /// 로그를 기록하는 액터.
    pub struct WriterActor {
        /// Events numbered and not yet committed; more are refused with 503 before they are numbered.
        /// 번호를 받고 아직 커밋되지 않은 이벤트 수. 넘치면 번호를 받기 전에 503으로 거절한다.
        mailbox: usize = 8192, 1..=1_000_000;
        /// The same in bytes.
        /// 위와 같은 한도를 바이트로.
        mailbox_bytes: usize = 67_108_864, 65_536..=2_147_483_648;
        /// Of the mailbox, at most so many of one room.
        /// mailbox 중 방 하나가 차지할 수 있는 최대 수.
        room_share: usize = 2048, 1..=1_000_000;
    }
}

section! {
    /// What makes an actor anew that a panic took.
    /// 패닉으로 사라진 액터를 다시 만드는 감독자.
    pub struct Supervisor {
        /// Milliseconds before an actor that failed is made anew; twice as many after each further failure.
        /// 실패한 액터를 다시 만들기까지의 밀리초. 실패가 이어지면 매번 두 배가 된다.
        restart_min_ms: u64 = 20, 1..=60_000;
        /// The same at most; an actor that lived as long begins with restart_min_ms again.
        /// 위의 최댓값(밀리초). 이만큼 버틴 액터는 다시 restart_min_ms부터 시작한다.
        restart_max_ms: u64 = 5000, 1..=600_000;
    }
}

/// The mailboxes of the actors: how much may be on its way in each, and what becomes of one that fails.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actors {
    /// `[actors.registry]`
    pub registry: RegistryActor,
    /// `[actors.checker]`
    pub checker: CheckerActor,
    /// `[actors.session]`
    pub session: SessionActor,
    /// `[actors.writer]`
    pub writer: WriterActor,
    /// `[actors.supervisor]`
    pub supervisor: Supervisor,
}
