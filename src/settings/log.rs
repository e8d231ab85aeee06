//! The sections of where events are kept for good.

use super::rule::{DATABASE_NAME, MONGODB_URI, NOT_EMPTY};
use super::secret::Secret;
use super::section::{choice, section};

choice! {
    /// Where the log is.
    pub enum LogBackend {
        /// In the local SQLite file alone.
        Sqlite = "sqlite",
        /// In MongoDB, through the local file.
        Mongodb = "mongodb",
    }
}

choice! {
    /// What an accepted event has survived by the time its sender is answered.
    pub enum Durability {
        /// Fsynced: a crash of the machine loses nothing that was accepted.
        Disk = "disk",
        /// Written, not fsynced: survives a crash of the server but not of the machine.
        Os = "os",
        /// Queued: a crash of the server loses what was not yet written.
        Memory = "memory",
    }
}

section! {
    /// The log of all events, and the local file (spool) where an event is made durable first.
    /// 모든 이벤트의 로그와, 이벤트를 먼저 확정하는 로컬 파일(스풀).
    pub struct Log {
        /// "sqlite": the local file is the log; "mongodb": events go on from it to MongoDB.
        /// "sqlite": 로컬 파일이 곧 로그. "mongodb": 로컬 파일을 거쳐 MongoDB에 저장한다.
        backend: LogBackend = LogBackend::Sqlite;
        /// The local file; one server a file.
        /// 로컬 파일의 경로. 파일 하나는 서버 하나만 쓴다.
        path: String = "data/chat.db", NOT_EMPTY;
        /// Answered once "disk": fsynced, "os": written (a machine crash loses it), "memory": queued (any crash does).
        /// 응답 시점: "disk" fsync 후, "os" 쓰기 후(장비가 죽으면 유실), "memory" 큐에 넣은 뒤(서버만 죽어도 유실).
        durability: Durability = Durability::Disk;
        /// Events in one commit to the local file.
        /// 로컬 파일 커밋 하나의 최대 이벤트 수.
        commit_max: usize = 1024, 1..=100_000;
        /// Microseconds from the start of one commit to the next's, for more to share it; 0: none.
        /// 한 커밋의 시작부터 다음 커밋의 시작까지 두는 마이크로초. 그동안 온 것이 커밋을 나눠 쓴다. 0이면 두지 않는다.
        commit_interval_us: u64 = 4000, 0..=10_000_000;
        /// Events that are enough for a commit, so that it does not wait for log.commit_interval_us.
        /// 이만큼 모이면 log.commit_interval_us를 기다리지 않고 커밋하는 이벤트 수.
        commit_enough: usize = 16, 1..=100_000;
        /// Events in one batch to the store; of a server with "sqlite" log.sqlite_batch_max counts.
        /// 저장소로 보내는 배치 하나의 최대 이벤트 수. "sqlite" 서버에는 log.sqlite_batch_max가 적용된다.
        batch_max: usize = 1000, 1..=100_000;
        /// Events that are enough for a batch to MongoDB, so that it does not wait for log.linger_ms.
        /// 이만큼 모이면 log.linger_ms를 기다리지 않고 MongoDB로 보내는 이벤트 수.
        batch_enough: usize = 250, 1..=100_000;
        /// With "sqlite": events in one batch to the indexed tables, and enough not to wait for log.linger_ms.
        /// "sqlite"일 때 색인 테이블로 보내는 배치 하나의 최대 이벤트 수. 이만큼 모이면 log.linger_ms를 기다리지 않는다.
        sqlite_batch_max: usize = 4000, 1..=100_000;
        /// Milliseconds to wait at most for enough for a batch to the store; 0 sends what is there.
        /// 저장소 배치가 차기를 기다리는 최대 밀리초. 0이면 있는 만큼 바로 보낸다.
        linger_ms: u64 = 100, 0..=10_000;
        /// Milliseconds before the first new try after a failed write to the store; grows from try to try.
        /// 저장소 쓰기 실패 후 첫 재시도까지의 밀리초. 시도할수록 늘어난다.
        retry_min_ms: u64 = 100, 1..=600_000;
        /// Milliseconds between two tries at most.
        /// 재시도 사이의 최대 밀리초.
        retry_max_ms: u64 = 10_000, 1..=600_000;
        /// Bytes of the local file at which messages are refused with log_unavailable; not used with "sqlite".
        /// 로컬 파일이 이 바이트에 이르면 메시지를 log_unavailable로 거절한다. "sqlite"에서는 쓰지 않는다.
        spool_max_bytes: u64 = 8_589_934_592, 1_048_576..;
        /// Bytes kept beside the local file to free it on a full disk; 0: none; not used with "sqlite".
        /// 디스크가 가득 찼을 때 로컬 파일을 비우려고 그 옆에 남겨 두는 바이트. 0이면 두지 않는다. "sqlite"에서는 쓰지 않는다.
        reserve_bytes: u64 = 16_777_216, 0..=1_099_511_627_776;
        /// Events kept in memory for the store; what is over is read back from the local file.
        /// 저장소로 보낼 이벤트를 메모리에 두는 최대 수. 넘치면 로컬 파일에서 다시 읽는다.
        backlog_max: usize = 100_000, 1..=10_000_000;
        /// Reads of history at once; more are refused.
        /// 기록을 동시에 읽는 최대 수. 넘치면 거절한다.
        readers: usize = 8, 1..=1024;
        /// Days that messages and broadcasts are kept, those under legal hold aside; 0 keeps them for ever.
        /// 메시지와 방송 기록을 보관하는 일수(법적 보존 대상 제외). 0이면 영구 보관한다.
        retention_days: u64 = 0, 0..=36_500;
        /// Events looked at in one step of removing what is older; with "sqlite" commits wait for a step.
        /// 보관 기간이 지난 것을 지우는 한 단계에서 살펴보는 이벤트 수. "sqlite"에서는 그동안 커밋이 기다린다.
        retention_batch: usize = 500, 1..=100_000;
        /// Milliseconds between two such steps.
        /// 그런 단계 사이에 쉬는 밀리초.
        retention_pause_ms: u64 = 100, 0..=600_000;
        /// Seconds between the end of one removal and the next.
        /// 한 번 다 지운 뒤 다음에 다시 지울 때까지의 간격(초).
        retention_every_seconds: u64 = 3600, 1..=86_400;
        /// Seconds that the clock may be ahead of the newest event, or else must stand before removal goes by it.
        /// 시계가 최신 이벤트보다 앞서도 되는 한도(초). 더 앞서면 그만큼 유지된 뒤에야 그 시계로 지운다.
        retention_settle_seconds: u64 = 86_400, 0..=2_592_000;
    }
}

section! {
    /// Reading the log back: pages, searches, replays.
    /// 기록 조회: 페이지, 검색, 다시 보기.
    pub struct History {
        /// Messages on a page where the request names no number.
        /// 요청이 수를 정하지 않았을 때 한 페이지의 메시지 수.
        page_default: usize = 50, 1..=10_000;
        /// Messages on a page at most.
        /// 한 페이지의 최대 메시지 수.
        page_max: usize = 500, 1..=10_000;
        /// Bytes of JSON after which a page of messages ends, whatever its limit is; one message is always on it.
        /// 메시지 페이지 하나가 끝나는 JSON 바이트(limit와 무관). 메시지 하나는 항상 들어간다.
        page_bytes: usize = 262_144, 1024..=16_777_216;
        /// Messages looked at for one page of a search; a long one counts once for each 200 characters begun.
        /// 검색 한 페이지를 위해 살펴보는 최대 메시지 수. 긴 메시지는 200자마다 한 번씩 센다.
        scan_limit: usize = 20_000, 1..=10_000_000;
        /// Seconds that operators, moderators in their rooms and presenters who delete wait for log.readers; 0: none.
        /// 운영자와 담당 방의 모더레이터, 그리고 삭제하는 스트리머가 log.readers 차례를 기다리는 시간(초). 0이면 바로 거절한다.
        staff_wait_seconds: u64 = 5, 0..=60;
        /// Corrections of broadcasts (PATCH) that the store writes at once; more are refused.
        /// 저장소에 동시에 쓰는 방송 수정(PATCH)의 최대 수. 넘치면 거절한다.
        corrections: usize = 2, 1..=1024;
    }
}

section! {
    /// Broadcasts as files: GET /v1/broadcasts/{id}/export and the command `export`.
    /// 방송 채팅을 파일로 내보내기: GET /v1/broadcasts/{id}/export 와 `export` 명령.
    pub struct Export {
        /// Exports by HTTP at once; more are refused.
        /// HTTP로 동시에 내보내는 최대 수. 넘치면 거절한다.
        max: usize = 4, 1..=1024;
        /// Messages read at once, which is what an export keeps in memory.
        /// 한 번에 읽는 메시지 수. 내보내기 하나가 메모리에 두는 양이다.
        page_rows: usize = 500, 1..=10_000;
        /// Seconds that an export that has begun waits for its turn among log.readers; then it is broken off.
        /// 시작된 내보내기가 log.readers 차례를 기다리는 시간(초). 지나면 중단된다.
        busy_wait_seconds: u64 = 30, 1..=3600;
        /// Milliseconds that a message is shown in WebVTT.
        /// WebVTT에서 메시지 하나를 보여 주는 시간(밀리초).
        cue_ms: u64 = 4000, 100..=600_000;
    }
}

section! {
    /// Figures of a broadcast (GET /v1/broadcasts/{id}/stats).
    /// 방송 통계(GET /v1/broadcasts/{id}/stats).
    pub struct Figures {
        /// Requests that the store counts for at once; more are refused.
        /// 저장소가 동시에 집계하는 요청의 최대 수. 넘치면 거절한다.
        at_once: usize = 2, 1..=1024;
        /// Seconds after which counting is given up.
        /// 집계를 포기하기까지의 시간(초).
        timeout_seconds: u64 = 60, 1..=3600;
        /// Buckets of time in one answer at most.
        /// 한 응답에 담는 시간 구간의 최대 수.
        buckets_max: usize = 1440, 1..=100_000;
        /// Senders, words and peaks in one answer where the request names no number.
        /// 요청이 수를 정하지 않았을 때 한 응답에 담는 사용자, 단어, 급증 구간의 수(각각).
        top_default: usize = 10, 1..=10_000;
        /// The same at most.
        /// 같은 수의 최댓값.
        top_max: usize = 100, 1..=10_000;
        /// Buckets around one whose median is the usual rate there, itself included.
        /// 어느 구간의 평소 속도를 정하는 주변 구간의 수(자신 포함). 그 중앙값을 쓴다.
        peak_window: usize = 31, 3..=10_001;
        /// Percent of the usual rate from which on a bucket is a peak.
        /// 평소 속도의 몇 퍼센트부터 급증 구간으로 보는지.
        peak_percent: u64 = 300, 101..=1_000_000;
    }
}

section! {
    /// Idempotency-Key: a message that is sent again with its key gets the first answer.
    /// Idempotency-Key: 같은 키로 다시 보낸 메시지는 첫 응답을 그대로 받는다.
    pub struct Idempotency {
        /// Seconds that a key is remembered, restarts included.
        /// 키를 기억하는 시간(초). 재시작해도 이어진다.
        window_seconds: u64 = 600, 1..=604_800;
        /// Keys remembered at once; when full, messages with a key are refused and others go on.
        /// 동시에 기억하는 키의 최대 수. 넘치면 키가 있는 메시지만 거절한다.
        max: usize = 1_000_000, 1..=100_000_000;
        /// Of them, at most so many of one sender.
        /// 그중 한 사용자가 쓸 수 있는 최대 수.
        sender_max: usize = 2000, 1..=100_000_000;
    }
}

section! {
    /// How often anyone may do anything; what is over is answered 429 with Retry-After.
    /// 무엇을 얼마나 자주 할 수 있는지. 넘치면 429와 Retry-After로 응답한다.
    pub struct Limits {
        /// Messages a second of one sender; 0 is no limit.
        /// 한 사용자가 초당 보낼 수 있는 메시지 수. 0이면 제한하지 않는다.
        sender_per_second: u32 = 20, 0..=1_000_000;
        /// Messages of one sender that may come at once.
        /// 한 사용자가 한꺼번에 보낼 수 있는 메시지 수.
        sender_burst: u32 = 100, 1..=1_000_000;
        /// Messages a second to one room, its staff's aside; 0 is no limit.
        /// 한 방에 초당 보낼 수 있는 메시지 수(스태프 제외). 0이면 제한하지 않는다.
        room_per_second: u32 = 5000, 0..=1_000_000;
        /// Messages to one room that may come at once.
        /// 한 방에 한꺼번에 보낼 수 있는 메시지 수.
        room_burst: u32 = 10_000, 1..=1_000_000;
        /// Deletions a minute by user or by time, of one sender; twice as many in one room; 0 is no limit.
        /// 한 사용자가 분당 할 수 있는 사용자별·시간별 삭제 수. 한 방에서는 그 두 배까지. 0이면 제한하지 않는다.
        bulk_deletes_per_minute: u32 = 60, 0..=1_000_000;
        /// Deletions of that kind that may come at once.
        /// 그런 삭제를 한꺼번에 할 수 있는 수.
        bulk_deletes_burst: u32 = 60, 1..=1_000_000;
        /// Questions a minute about rooms without a presenter that one sender may cause; 0 is no limit.
        /// 한 사용자가 스트리머 없는 방에 대해 분당 일으킬 수 있는 질의 수. 0이면 제한하지 않는다.
        lookups_per_minute: u32 = 60, 0..=1_000_000;
        /// Questions of that kind that may come at once.
        /// 그런 질의를 한꺼번에 일으킬 수 있는 수.
        lookups_burst: u32 = 60, 1..=1_000_000;
        // Behind a proxy that is not trusted every client has the proxy's address, so neither is limited by default.
        /// WebSockets a minute from one address (IPv6: one /64), also behind auth.trusted_proxies; 0 is no limit.
        /// 주소 하나(IPv6는 /64 하나)가 분당 열 수 있는 WebSocket 수(auth.trusted_proxies 뒤에서도). 0이면 제한하지 않는다.
        address_per_minute: u32 = 0, 0..=1_000_000;
        /// WebSockets from one client address that may come at once.
        /// 클라이언트 주소 하나가 한꺼번에 열 수 있는 WebSocket 수.
        address_burst: u32 = 100, 1..=1_000_000;
        /// Sessions open at once from one client address (IPv6: one /64); 0 is no limit.
        /// 클라이언트 주소 하나(IPv6는 /64 하나)가 동시에 여는 최대 세션 수. 0이면 제한하지 않는다.
        sessions_per_address: usize = 0, 0..=1_000_000;
        /// Senders, rooms, presenters and addresses that are remembered, each; the one unseen for longest goes first.
        /// 기억하는 사용자, 방, 스트리머, 주소의 수(각각). 가장 오래 보지 못한 것부터 잊는다.
        tracked: usize = 100_000, 1..=10_000_000;
    }
}

section! {
    /// MongoDB, with log.backend = "mongodb".
    /// MongoDB(log.backend = "mongodb"일 때).
    pub struct Mongodb {
        /// Connection string, never shown: set CHAT__MONGODB__URI. maxPoolSize counts, concerns and preference do not.
        /// 연결 문자열. 절대 표시하지 않으며, CHAT__MONGODB__URI로 설정하는 것이 좋다. maxPoolSize는 따르고 read preference와 concern은 무시한다.
        uri: Secret = "mongodb://127.0.0.1:27017", MONGODB_URI;
        /// Name of the database.
        /// 데이터베이스 이름.
        database: String = "chatting", DATABASE_NAME;
        /// Milliseconds to wait for a connection.
        /// 연결을 기다리는 밀리초.
        connect_timeout_ms: u64 = 5000, 1..=600_000;
        /// Milliseconds to wait for a write to be answered.
        /// 쓰기 응답을 기다리는 밀리초.
        write_timeout_ms: u64 = 10_000, 1..=600_000;
        /// Seconds between two signs of life of this server in the collection `servers`.
        /// 이 서버가 `servers` 컬렉션에 살아 있음을 알리는 간격(초).
        heartbeat_seconds: u64 = 10, 1..=3600;
    }
}
