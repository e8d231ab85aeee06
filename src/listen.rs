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
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    App, Error,
    body::MessageBody,
    dev::{AppConfig, Extensions, ServiceRequest, ServiceResponse},
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
pub(crate) fn listen(settings: &Settings, state: &web::Data<State>, lines: &Lines) -> Result<Listening, StartError> {
    let ops_apart = !settings.ops.bind.is_empty();
    let shared = state.clone();
    let app = move || {
        let shared = shared.clone();
        App::new()
            .app_data(shared.clone())
            .wrap(from_fn(around))
            .configure(move |config| http::routes(config, &shared, ops_apart))
    };
    let server = ServerBuilder::new()
        .workers(workers(settings))
        .max_concurrent_connections(settings.server.max_connections)
        .shutdown_timeout(settings.shutdown.deadline_seconds);
    serve(
        server,
        ("server.bind", &settings.server.bind),
        settings,
        Some(lines),
        app,
    )
}

/// Operations on an address of their own: one worker is plenty, and nobody watches over the connections.
pub(crate) fn listen_ops(settings: &Settings, state: &web::Data<State>) -> Result<Option<Listening>, StartError> {
    if settings.ops.bind.is_empty() {
        return Ok(None);
    }
    let shared = state.clone();
    let app = move || {
        let shared = shared.clone();
        App::new()
            .app_data(shared.clone())
            .wrap(from_fn(around_ops))
            .configure(move |config| http::ops::routes(config, &shared))
    };
    let server = ServerBuilder::new().workers(1).shutdown_timeout(1);
    serve(server, ("ops.bind", &settings.ops.bind), settings, None, app).map(Some)
}

/// Serves an application at the address that this key has.
///
/// As `HttpServer` does it, with [`Paced`] around each socket and [`upgrades`] beside it, which `HttpServer` has no place for. Only the
/// application's idea of its own host name, which nothing here asks for, is the default one.
fn serve<T, B>(
    server: ServerBuilder,
    (key, address): (&'static str, &str),
    settings: &Settings,
    lines: Option<&Lines>,
    app: impl Fn() -> App<T> + Clone + Send + 'static,
) -> Result<Listening, StartError>
where
    T: ServiceFactory<ServiceRequest, Config = (), Response = ServiceResponse<B>, Error = Error, InitError = ()>
        + 'static,
    B: MessageBody + 'static,
{
    let user_timeout = Duration::from_secs(settings.server.tcp_user_timeout_seconds);
    let send_buffer = settings.server.send_buffer_bytes;
    let keep_alive = Duration::from_secs(settings.server.keep_alive_seconds);
    let head = Duration::from_secs(settings.server.client_request_seconds);
    let fails = |error: io::Error| unbound(key, address, error);
    let listener = bind(address, settings.server.backlog).map_err(fails)?;
    let addr = listener.local_addr().map_err(fails)?;
    let server = server.disable_signals();
    let (lines, stopping) = (lines.cloned(), server.graceful_shutdown_signal());
    let service = move || {
        let (lines, stopping) = (lines.clone(), stopping.clone());
        let accepted = move |stream: TcpStream| {
            let lines = lines.as_ref();
            let line = lines.and_then(|lines| socket::on_connect(&stream, user_timeout, send_buffer, lines));
            let peer = stream.peer_addr().ok();
            ready(Ok::<_, DispatchError>((Paced::new(stream, line), Http::Http1, peer)))
        };
        let app = || {
            map_config(app().into_factory(), |()| AppConfig::default()).map_err(|error: Error| error.error_response())
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

/// How many workers take the connections of `server.bind`.
pub(crate) fn workers(settings: &Settings) -> usize {
    match settings.server.workers {
        0 => workers_for(available_parallelism().map_or(1, NonZeroUsize::get)),
        workers => workers,
    }
}

/// One worker for two processors: the registry, the spool, the drain and MongoDB want the others. A worker a processor takes turns with
/// them, and switching from one thread to the next costs more than what is done in between (docs/PERFORMANCE.md, "How many workers").
fn workers_for(processors: usize) -> usize {
    (processors / 2).clamp(1, WORKERS_MAX)
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

fn unbound(key: &'static str, address: &str, error: io::Error) -> StartError {
    StartError::Port {
        key,
        address: address.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_worker_for_two_processors_and_always_one() {
        let counts = [1, 2, 3, 4, 8, 64, 4096].map(workers_for);
        assert_eq!(counts, [1, 1, 1, 2, 4, 32, 512]);
    }
}
