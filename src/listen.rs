//! The addresses that the server listens on, and what is behind each.

use std::{
    future::ready,
    io,
    net::{SocketAddr, TcpListener},
    num::NonZeroUsize,
    thread::available_parallelism,
    time::Duration,
};

use actix_http::{HttpService, Protocol as Http, error::DispatchError};
use actix_server::{Server, ServerBuilder};
use actix_service::{IntoServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    App, HttpServer,
    dev::{AppConfig, Extensions},
    middleware::from_fn,
    rt::net::TcpStream,
    web,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    http::{
        self,
        around::{around, around_ops},
        lines::Lines,
        paced::Paced,
        socket,
        state::State,
        transport::upgrades,
    },
    settings::Settings,
    startup::StartError,
};

/// How long a connection that ended may take to be shut.
const DISCONNECT: Duration = Duration::from_secs(1);

/// The most workers that actix takes.
const WORKERS_MAX: usize = 512;

/// A server that is to be run, and where it listens.
pub(crate) type Listening = (Server, SocketAddr);

/// `server.bind`: everything but what `ops.bind` has for itself.
///
/// As `HttpServer` does it, with [`Paced`] around each socket and [`upgrades`] beside it, which `HttpServer` has no place for. Only the
/// application's idea of its own host name, which nothing here asks for, is the default one.
pub(crate) fn listen(settings: &Settings, state: &web::Data<State>, lines: &Lines) -> Result<Listening, StartError> {
    let ops_apart = !settings.ops.bind.is_empty();
    let user_timeout = Duration::from_secs(settings.server.tcp_user_timeout_seconds);
    let send_buffer = settings.server.send_buffer_bytes;
    let keep_alive = Duration::from_secs(settings.server.keep_alive_seconds);
    let head = Duration::from_secs(settings.server.client_request_seconds);
    let shared = state.clone();
    let app = move || {
        let shared = shared.clone();
        let app = App::new()
            .app_data(shared.clone())
            .wrap(from_fn(around))
            .configure(move |config| http::routes(config, &shared, ops_apart));
        map_config(app.into_factory(), |()| AppConfig::default())
            .map_err(|error: actix_web::Error| error.error_response())
    };
    let server = ServerBuilder::new()
        .disable_signals()
        .workers(workers(settings))
        .max_concurrent_connections(settings.server.max_connections)
        .shutdown_timeout(settings.shutdown.deadline_seconds);
    let address = settings.server.bind.as_str();
    let fails = |error: io::Error| unbound("server.bind", address, error);
    let listener = bind(address, settings.server.backlog).map_err(fails)?;
    let addr = listener.local_addr().map_err(fails)?;
    let (lines, stopping) = (lines.clone(), server.graceful_shutdown_signal());
    let service = move || {
        let (lines, stopping) = (lines.clone(), stopping.clone());
        let accepted = move |stream: TcpStream| {
            let line = socket::on_connect(&stream, user_timeout, send_buffer, &lines);
            let peer = stream.peer_addr().ok();
            ready(Ok::<_, DispatchError>((Paced::new(stream, line), Http::Http1, peer)))
        };
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(keep_alive)
            .client_request_timeout(head)
            .client_disconnect_timeout(DISCONNECT)
            .local_addr(addr)
            .on_connect_ext(|paced: &Paced, extensions: &mut Extensions| {
                socket::remember(paced.line(), extensions);
            })
            .upgrade(upgrades(app()))
            .finish(app());
        fn_service(accepted).and_then(http)
    };
    let server = server.listen("http", listener, service).map_err(fails)?;
    Ok((server.run(), addr))
}

/// How many workers take the connections of `server.bind`; where the settings do not say, as many as actix takes by itself.
pub(crate) fn workers(settings: &Settings) -> usize {
    match settings.server.workers {
        0 => available_parallelism().map_or(2, NonZeroUsize::get).min(WORKERS_MAX),
        workers => workers,
    }
}

/// How many connections they have open at once, all of them together.
pub(crate) fn connections_max(settings: &Settings) -> usize {
    workers(settings).saturating_mul(settings.server.max_connections)
}

/// A listener on this `IP:port`.
fn bind(address: &str, backlog: u32) -> io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A server that starts again where connections of the one before it linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Operations on an address of their own: one worker is plenty.
pub(crate) fn listen_ops(settings: &Settings, state: &web::Data<State>) -> Result<Option<Listening>, StartError> {
    let address = settings.ops.bind.as_str();
    if address.is_empty() {
        return Ok(None);
    }
    let shared = state.clone();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .wrap(from_fn(around_ops))
            .configure(|config| http::ops::routes(config, &shared))
    })
    .disable_signals()
    .workers(1)
    .shutdown_timeout(1)
    .bind(address)
    .map_err(|error| unbound("ops.bind", address, error))?;
    let addr = server.addrs().first().copied();
    let addr = addr.ok_or_else(|| StartError::Unavailable(format!("ops.bind {address}: nothing is bound")))?;
    Ok(Some((server.run(), addr)))
}

fn unbound(key: &'static str, address: &str, error: io::Error) -> StartError {
    StartError::Port {
        key,
        address: address.to_owned(),
        error,
    }
}
