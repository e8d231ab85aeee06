//! A small HTTP/1.1 client for tests in which the bytes matter: it adds no header that you cannot see here, keeps the
//! answer's head as it came, and uses one connection until you drop it.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::within;

/// One connection.
pub struct HttpClient {
    stream: TcpStream,
    /// What came and was not yet asked for.
    unread: Vec<u8>,
    address: SocketAddr,
}

/// An answer, as it came.
#[derive(Clone, Debug)]
pub struct Response {
    /// `HTTP/1.1 200 OK`
    pub status_line: String,
    pub status: u16,
    /// In the order and the case they came in.
    pub headers: Vec<(String, String)>,
    /// Without its transfer coding.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text; panics when it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON; panics with the whole answer when it is not.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}

/// `GET` on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Response {
    HttpClient::connect(address).await.request("GET", path, &[], "").await
}

/// `POST` of JSON on a connection of its own.
pub async fn post_json(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
    HttpClient::connect(address).await.post_json(path, headers, body).await
}

impl HttpClient {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, None).await
    }

    /// With `receive_buffer` bytes for what we do not read, so that a peer soon notices that we do not.
    pub async fn connect_with(address: SocketAddr, receive_buffer: Option<usize>) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let socket = TcpSocket::from_std_stream(socket.into());
        let stream = within(format_args!("a connection to {address}"), socket.connect(address)).await;
        let stream = stream.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Self {
            stream,
            unread: Vec::new(),
            address,
        }
    }

    /// Sends a request and reads the answer. `Host` is added, and `Content-Length` where there is a body and neither
    /// that nor a transfer coding is among `headers`.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Response {
        self.send_request(method, path, headers, body).await;
        self.read_response(method == "HEAD").await
    }

    /// `POST` with `Content-Type: application/json`.
    pub async fn post_json(&mut self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        self.request("POST", path, &all, body).await
    }

    /// As [`Self::post_json`]; `None` when the peer has closed the connection instead of answering.
    pub async fn post_json_unless_closed(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Option<Response> {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        self.request_unless_closed("POST", path, &all, body).await
    }

    /// As [`Self::request`]; `None` when the peer has closed the connection instead of answering.
    pub async fn request_unless_closed(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Option<Response> {
        let bytes = self.encode(method, path, headers, body.as_ref());
        within("the peer to take our bytes", self.stream.write_all(&bytes))
            .await
            .ok()?;
        if self.unread.is_empty() && !self.fill().await {
            return None;
        }
        Some(self.read_response(false).await)
    }

    /// The sending half of [`Self::request`].
    pub async fn send_request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) {
        let bytes = self.encode(method, path, headers, body.as_ref());
        self.send_bytes(&bytes).await;
    }

    fn encode(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let told = |name: &str| headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
        if !body.is_empty() && !told("content-length") && !told("transfer-encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }

    /// Sends just these bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within("the peer to take our bytes", self.stream.write_all(bytes))
            .await
            .unwrap();
    }

    /// Reads one answer. `head_only` for the answer to a `HEAD`.
    pub async fn read_response(&mut self, head_only: bool) -> Response {
        loop {
            let mut response = self.read_head().await;
            if response.status == 100 {
                continue;
            }
            if response.status != 101 && !head_only {
                response.body = self.read_body(&response).await;
            }
            return response;
        }
    }

    /// Waits for `100 Continue`.
    pub async fn may_continue(&mut self) {
        let head = self.read_head().await;
        assert_eq!(head.status, 100, "{head:?}");
    }

    /// Ends our half of the connection.
    pub async fn end_sending(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Whether the peer ends the connection, and nothing more comes before.
    pub async fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && !self.fill().await
    }

    /// The connection and what was read beyond the last answer.
    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.unread)
    }

    async fn read_head(&mut self) -> Response {
        let head = self.take_until(b"\r\n\r\n").await;
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().unwrap().to_owned();
        let status = status_line
            .split(' ')
            .nth(1)
            .filter(|_| status_line.starts_with("HTTP/1."))
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Response {
            status_line,
            status,
            headers,
            body: Vec::new(),
        }
    }

    async fn read_body(&mut self, head: &Response) -> Vec<u8> {
        if head
            .header("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            return self.read_chunks().await;
        }
        if let Some(length) = head.header("content-length") {
            return self.take(length.parse().unwrap()).await;
        }
        if head.status != 204 && head.status != 304 {
            while self.fill().await {}
        }
        std::mem::take(&mut self.unread)
    }

    async fn read_chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.take_until(b"\r\n").await;
            let size = std::str::from_utf8(&line).unwrap().trim_end();
            let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("not a chunk size: {size:?}"));
            let chunk = self.take(size + 2).await;
            assert!(chunk.ends_with(b"\r\n"), "a chunk longer than it says");
            if size == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    async fn take_until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return self.take(at + end.len()).await;
            }
            self.more().await;
        }
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            self.more().await;
        }
        self.unread.drain(..count).collect()
    }

    async fn more(&mut self) {
        let more = self.fill().await;
        assert!(
            more,
            "the connection ended inside an answer, after {:?}",
            String::from_utf8_lossy(&self.unread)
        );
    }

    /// Reads what is there; `false` at the end of the stream.
    async fn fill(&mut self) -> bool {
        let count = within("an answer", self.stream.read_buf(&mut self.unread)).await;
        count.is_ok_and(|count| count > 0)
    }
}
