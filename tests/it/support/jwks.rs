//! A server that publishes keys, or misbehaves; it counts what it is asked. Over TLS too.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::eventually;

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with this body.
    Body(String),
    /// This status and no body.
    Status(u16),
    /// 302 to its own `/elsewhere`, which has this body.
    Redirect(String),
    /// Nothing, until it is to answer something else.
    Hang,
}

pub struct JwksServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    scheme: &'static str,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    answer: watch::Sender<Answer>,
    /// Each path that was asked for.
    paths: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

/// Where the certificate of `localhost`, its key, and the certificate of who signed it are: made for these tests (openssl, good
/// for a hundred years), trusted by nothing else.
pub fn tls_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/tls"))
}

impl JwksServer {
    pub async fn start(body: impl Into<String>) -> Self {
        Self::start_with(body.into(), None).await
    }

    /// Over TLS, as `localhost`.
    pub async fn start_tls(body: impl Into<String>) -> Self {
        let certificates = CertificateDer::pem_file_iter(tls_dir().join("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(tls_dir().join("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates.map(Result::unwrap).collect(), key)
            .unwrap();
        Self::start_with(body.into(), Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_with(body: String, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answer: watch::Sender::new(Answer::Body(body)),
            paths: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let (scheme, serving) = (if tls.is_some() { "https" } else { "http" }, Arc::clone(&shared));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&serving);
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            shared,
            scheme,
            task,
        }
    }

    /// For `auth.jwks_url`.
    pub fn url(&self) -> String {
        let host = if self.scheme == "https" {
            "localhost"
        } else {
            "127.0.0.1"
        };
        format!("{}://{host}:{}/jwks.json", self.scheme, self.address.port())
    }

    pub fn answer(&self, answer: Answer) {
        self.shared.answer.send_replace(answer);
    }

    /// How many requests it got.
    pub fn asked(&self) -> usize {
        self.shared.paths.lock().unwrap().len()
    }

    /// How many connections it got, with a request or without.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The paths that were asked for.
    pub fn paths(&self) -> Vec<String> {
        self.shared.paths.lock().unwrap().clone()
    }

    /// Returns when it was asked so often.
    pub async fn asked_at_least(&self, times: usize) {
        eventually(format_args!("{times} requests for keys"), async || {
            (self.asked() >= times).then_some(())
        })
        .await;
    }
}

impl Drop for JwksServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    shared.paths.lock().unwrap().push(path.clone());
    let mut answers = shared.answer.subscribe();
    let answer = answers
        .wait_for(|answer| !matches!(answer, Answer::Hang))
        .await
        .unwrap()
        .clone();
    let text = match answer {
        Answer::Body(body) => ok(&body),
        Answer::Redirect(body) if path == "/elsewhere" => ok(&body),
        Answer::Redirect(_) => "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".into(),
        Answer::Status(status) => format!("HTTP/1.1 {status} Status\r\nContent-Length: 0\r\n\r\n"),
        Answer::Hang => return,
    };
    let _ = stream
        .write_all(text.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())
        .await;
    let _ = stream.shutdown().await;
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
