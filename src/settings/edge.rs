//! The sections of what faces the outside: sockets, messages and pages, and the server's own output.

use super::rule::{Items, NOT_EMPTY, ORIGIN, SOCKET_ADDR, SOCKET_ADDR_OR_EMPTY};
use super::section::{choice, section};

section! {
    /// Where the server listens and what it takes from a connection.
    /// 서버가 수신하는 주소와 연결별 한도.
    pub struct Server {
        /// Address and port for HTTP and WebSocket. Port 0 takes a free one.
        /// HTTP와 WebSocket을 받을 주소와 포트. 포트 0은 빈 포트를 고른다.
        bind: String = "0.0.0.0:8080", SOCKET_ADDR;
        /// Worker threads for connections; 0 is one for two CPU cores: other threads want the rest.
        /// 연결을 처리하는 워커 스레드 수. 0이면 CPU 코어 둘마다 하나이며, 나머지는 다른 스레드가 쓴다.
        workers: usize = 0, 0..=512;
        /// Connections that may wait for the server to take them; the kernel refuses what is over.
        /// 수락을 기다릴 수 있는 연결 수. 넘치면 커널이 거절한다.
        backlog: u32 = 1024, 1..=65_535;
        /// Open connections of one worker, WebSockets included; more wait in the backlog.
        /// 워커 하나가 여는 최대 연결 수(WebSocket 포함). 넘치면 backlog에서 기다린다.
        max_connections: usize = 25_000, 1..=1_000_000;
        /// Seconds an idle HTTP connection stays open for a next request; 0 closes it after each answer.
        /// 다음 요청을 기다리며 유휴 HTTP 연결을 유지하는 초. 0이면 응답마다 닫는다.
        keep_alive_seconds: u64 = 75, 0..=3600;
        /// Seconds a client has to send the head of a request; for a later one, beyond keep_alive_seconds.
        /// 클라이언트가 요청 헤더를 다 보내야 하는 초. 같은 연결의 다음 요청은 keep_alive_seconds에 더한다.
        client_request_seconds: u64 = 5, 1..=300;
        /// Seconds a client has to send the body of a request; then it is answered 408 and cut.
        /// 클라이언트가 요청 본문을 다 보내야 하는 초. 넘으면 408로 응답하고 끊는다.
        body_seconds: u64 = 10, 1..=300;
        /// Seconds a client may keep an answer waiting in all; what takes longer is cut. See answer_bytes_per_second.
        /// 클라이언트가 응답을 받아 가지 않고 기다리게 할 수 있는 총 초. 넘으면 끊는다. answer_bytes_per_second 참고.
        answer_seconds: u64 = 30, 1..=3600;
        /// Bytes of an answer for which a client has a second more than answer_seconds.
        /// answer_seconds에 1초를 더해 주는 응답 바이트 수.
        answer_bytes_per_second: u64 = 16_384, 1..=1_000_000_000;
        /// Bytes of answers over 16 KiB that clients have not taken yet, of all; more are refused. Not exports.
        /// 클라이언트가 아직 받아 가지 않은 16 KiB 초과 응답의 총 바이트. 넘치면 거절한다. 내보내기는 제외.
        answers_max_bytes: usize = 67_108_864, 65_536..=2_147_483_648;
        /// Of them, those of one user, no operator nor moderator of all rooms, or of all callers without a name.
        /// 그중 사용자 한 명(operator와 모든 방의 moderator 제외) 또는 신원을 밝히지 않은 호출자 전체의 몫.
        answers_share_bytes: usize = 4_194_304, 65_536..=2_147_483_648;
        /// Seconds after which a peer that acknowledges nothing sent to it is cut (TCP_USER_TIMEOUT).
        /// 보낸 것에 아무 확인(ACK)이 없는 상대를 끊기까지의 초(TCP_USER_TIMEOUT).
        tcp_user_timeout_seconds: u64 = 20, 1..=600;
        /// Bytes that the kernel holds for a peer that does not read; 0 leaves it to the kernel (megabytes).
        /// 읽지 않는 상대를 위해 커널이 보관하는 바이트. 0이면 커널에 맡긴다(수 MB).
        send_buffer_bytes: usize = 262_144, 0..=16_777_216;
        /// Bytes of a request's body; longer ones are answered 413.
        /// 요청 본문의 최대 바이트. 넘으면 413으로 응답한다.
        max_body_bytes: usize = 65_536, 1024..=16_777_216;
    }
}

section! {
    /// What operators ask: /livez, /readyz, /metrics, and the routes' documentation, /openapi.json and /docs.
    /// 운영용 경로: /livez, /readyz, /metrics와 API 문서 /openapi.json, /docs.
    pub struct Ops {
        /// Own address and port for them; empty serves them on server.bind.
        /// 운영용 경로의 별도 주소와 포트. 비우면 server.bind에서 함께 제공한다.
        bind: String = "", SOCKET_ADDR_OR_EMPTY;
    }
}

section! {
    /// How the server stops.
    /// 서버 종료 방식.
    pub struct Shutdown {
        /// Seconds that stopping may take in all, more than the two below together; what is not done by then is cut.
        /// 종료 전체에 허용하는 초. 아래 두 값의 합보다 커야 한다. 그때까지 끝나지 않은 일은 끊는다.
        deadline_seconds: u64 = 20, 1..=600;
        /// Seconds that requests still under way have once everything numbered is answered; then they are cut.
        /// 번호가 붙은 메시지에 모두 응답한 뒤, 아직 처리 중인 요청에 허용하는 초. 넘으면 끊는다.
        requests_seconds: u64 = 3, 0..=600;
        /// Seconds over which v1 sessions are told to connect again, before anything is refused; 0 tells all at once.
        /// 거절을 시작하기 전에 v1 세션에 재연결을 알리는 데 쓰는 초. 0이면 한꺼번에 알린다.
        drain_seconds: u64 = 5, 0..=300;
        /// Milliseconds after the planned end at which they are to connect again.
        /// 예정된 종료 후 다시 연결하기까지의 밀리초.
        reconnect_after_ms: u64 = 1000, 0..=600_000;
        /// Milliseconds over which they are spread beyond that.
        /// 그 이후 재연결을 분산하는 밀리초.
        reconnect_spread_ms: u64 = 2000, 0..=600_000;
    }
}

section! {
    /// What a chat message may be.
    /// 채팅 메시지의 한도.
    pub struct Message {
        /// Characters (Unicode scalar values) of a message.
        /// 메시지의 최대 글자 수(유니코드 스칼라 값).
        max_chars: usize = 2000, 1..=10_000;
        /// Characters (Unicode scalar values) of a nickname.
        /// 닉네임의 최대 글자 수(유니코드 스칼라 값).
        nickname_max_chars: usize = 64, 1..=256;
    }
}

section! {
    /// The original server's routes and frames, for clients that speak them.
    /// 기존 서버의 경로와 프레임(기존 클라이언트용).
    pub struct Legacy {
        /// Whether they are served.
        /// 기존 프로토콜의 제공 여부.
        enabled: bool = true;
        /// IANA time zone of the times that they show.
        /// 기존 프로토콜이 보여 주는 시각의 IANA 시간대.
        zone: String = "Asia/Seoul", NOT_EMPTY;
        /// Seconds for a socket's `start`, pings aside; when sessions are full, those that took longer end first.
        /// 소켓이 `start`를 보낼 시간(초, 핑은 제외). 세션이 가득 차면 이 시간을 넘긴 소켓부터 닫는다.
        start_seconds: u64 = 60, 1..=86_400;
    }
}

section! {
    /// Which web pages may call the v1 routes; the legacy ones are open to all as they always were.
    /// v1 경로를 호출할 수 있는 웹 페이지. 기존 경로는 원래대로 모두에게 열려 있다.
    pub struct Cors {
        /// Origins that may (a WebView has "capacitor://localhost"); "*" is all, null and file:// too; empty is none.
        /// 허용하는 오리진(웹뷰의 "capacitor://localhost"도). "*"는 null과 file://까지 모두, 비우면 없음.
        origins: Vec<String> = &[], Items(ORIGIN);
    }
}

choice! {
    /// From which severity on lines are written.
    pub enum LogLevel {
        /// Something is lost or refused that should not be.
        Error = "error",
        /// Something is wrong and the server copes.
        Warn = "warn",
        /// What an operator wants to know of a healthy server.
        Info = "info",
        /// What explains one request or session.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// How a line is written.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// What the server tells of itself on standard error (not the chat: that is `[log]`).
    /// 서버 자신의 동작 기록(stderr). 채팅 기록은 `[log]`.
    pub struct Logging {
        /// Least severity that is written.
        /// 기록할 최소 심각도.
        level: LogLevel = LogLevel::Info;
        /// "text" for people, "json" for one object a line.
        /// "text"는 사람용, "json"은 줄마다 객체 하나.
        format: LogFormat = LogFormat::Text;
    }
}
