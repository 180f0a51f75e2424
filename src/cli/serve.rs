//! `sealbd serve`: opens volumes and serves them until it is told to stop.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;

use keymgmt::manager::KeyManager;
use keymgmt::source::Purpose;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::ServeOptions;
use super::context::Context;
use super::interrupt;
use super::memory::{Budget, TooSmall};
use super::open;
use super::outcome::Failure;
use super::settings::Listen;
use super::size::show_size;
use crate::control::gate::Gate;
use crate::control::server::ControlSocket;
use crate::export::Export;
use crate::format::header::Header;
use crate::private_socket::PrivateSocketError;
use crate::server::pidfile::PidFile;
use crate::server::{Limits, ListenError, Listener, Server, ServerError};
use crate::store::file::Caching;
use crate::store::uri::StoreUri;
use crate::store::{Access, SlotStore};
use crate::volume::create::Geometry;
use crate::volume::{OpenMode, Volume, VolumeError};

/// A volume could not be closed as it should; nothing that was answered is lost.
const EXIT_UNCLEAN: u8 = 1;

/// A volume that is open.
struct Opened {
    volume: Volume,
    store: Arc<dyn SlotStore>,
    /// As it was opened.
    header: Header,
}

/// A volume under the name that clients ask for.
struct Named {
    name: String,
    gate: Arc<Gate>,
    /// As it was opened.
    header: Header,
}

/// Where clients find the server.
#[derive(Clone, Default)]
struct Address {
    socket: Option<PathBuf>,
    port: Option<SocketAddr>,
}

/// Runs the command.
pub(super) async fn run(mut options: ServeOptions, context: &Context) -> Result<ExitCode, Failure> {
    let names = export_names(&options, context)?;
    let handed_over = somewhere_to_listen(&mut options, context)?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let mut opened = Vec::with_capacity(names.len());
    let mut result = Ok(());
    for backend in &options.backends {
        match open_volume(backend, &managers, &options, context).await {
            Ok(volume) => opened.push(volume),
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    drop(managers);
    let shared = result.and_then(|()| share_memory(&options, &opened, context));
    let gated = opened.into_iter().zip(names).map(|(Opened { volume, store, header }, name)| {
        let gate = Arc::new(Gate::new(volume, store, context.engine));
        Named { name, gate, header }
    });
    let volumes: Vec<_> = gated.collect();
    // Listening comes last: no client may find an export that is not open.
    let served = match shared {
        Ok(memory) => listen_and_serve(&options, &volumes, memory, handed_over, context).await,
        Err(failure) => Err(failure),
    };
    let closed = close(&volumes, context).await;
    let code = served?;
    Ok(if closed { code } else { ExitCode::from(EXIT_UNCLEAN) })
}

async fn open_volume(
    argument: &OsStr,
    managers: &[Box<dyn KeyManager>],
    options: &ServeOptions,
    context: &Context,
) -> Result<Opened, Failure> {
    let configured = context.settings.volume_at(&StoreUri::from_arg(argument)?);
    let (access, mode) = match options.read_only || configured.is_some_and(|volume| volume.read_only) {
        true => (Access::ReadOnly, OpenMode::ReadOnly),
        false => (Access::ReadWrite, OpenMode::ReadWrite),
    };
    let caching = match options.direct || configured.is_some_and(|volume| volume.direct) {
        true => Caching::Direct,
        false => Caching::Cached,
    };
    let backend = open::backend_with(argument, access, caching).await?;
    let unlocked = backend.unlock(managers, context).await?;
    context.trail.begin()?;
    let volume = context.open(&backend, unlocked, mode).await?;
    let header = Header::clone(&volume.header());
    Ok(Opened { volume, store: backend.store, header })
}

/// The budget of the process, and what of it requests may take.
struct Memory {
    budget: Budget,
    request_bytes: usize,
}

/// Shares the budget out among the volumes.
fn share_memory(options: &ServeOptions, opened: &[Opened], context: &Context) -> Result<Memory, Failure> {
    let sizes: Vec<_> = opened.iter().map(|opened| Geometry::of(&opened.header)).collect();
    let asked = options.memory.or(context.settings.memory);
    let budget = asked.map_or_else(|| Budget::default_for(&sizes), Budget::bytes);
    let share = budget.share(&sizes).map_err(|TooSmall { budget, needed }| {
        let (budget, least) = (show_size(budget), needed.div_ceil(1 << 20));
        let what = if opened.len() == 1 { "this volume" } else { "these volumes" };
        Failure::usage(
            format!("{budget} of memory are too little: {what} cannot be served in less than {least} MiB"),
            format!("--memory {least}M or more"),
        )
    })?;
    opened.iter().for_each(|opened| opened.volume.limit_pages(share.pages));
    Ok(Memory { budget, request_bytes: share.requests })
}

async fn listen_and_serve(
    options: &ServeOptions,
    volumes: &[Named],
    memory: Memory,
    handed_over: Vec<Listener>,
    context: &Context,
) -> Result<ExitCode, Failure> {
    // Before anybody can connect: whoever sees the server may tell it to stop.
    let stopped = stop_signal()?;
    // Kept until the end: the socket of --run lies in it.
    let private = private_directory(options)?;
    // Before clients: whoever sees that the volume is served can change its keys through this process.
    let _controls = control_sockets(options, volumes, memory.budget, context)?;
    let (listeners, address) =
        listeners(options, handed_over, private.as_ref().map(tempfile::TempDir::path)).await?;
    let exports = volumes.iter().map(|named| (named.name.clone(), named.gate.clone())).collect();
    let limits = Limits { request_bytes_max: memory.request_bytes, ..Limits::default() };
    let server = Server::new(exports, limits)
        .map_err(|error: ServerError| Failure::usage(error.to_string(), "--name EXPORT, once per backend"))?;
    let output = context.output;
    let server = server.telling(move |notice| match notice.next() {
        Some(next) => output.note(&format!("{notice}\nnext: {next}")),
        None => output.note(&notice.to_string()),
    });
    let pid_failed = |error: std::io::Error| {
        Failure::system("cannot write the pid-file", &error, "--pid-file FILE, in a directory that exists")
    };
    let _pid_file = options.pid_file.as_deref().map(PidFile::create).transpose().map_err(pid_failed)?;
    context.output.note(&context.hygiene.to_string());
    for Named { name, gate, .. } in volumes {
        let info = gate.info();
        let access = if info.read_only { "read-only" } else { "read-write" };
        context.output.note(&format!(
            "serving {name:?} ({}, {access}) on {}",
            show_size(info.size),
            address.everywhere(name)
        ));
    }
    // What waits for a resume must not keep the server from its end.
    let stopped = async {
        stopped.await;
        volumes.iter().for_each(|named| named.gate.begin_shutdown());
    };
    let Some(command) = &options.run else {
        server.serve(listeners, stopped).await;
        context.output.note("stopped accepting, everything received is answered");
        return Ok(ExitCode::SUCCESS);
    };
    let first = volumes.first().map_or("", |named| &named.name);
    let mut child = address.command(command, first).spawn();
    let child = child
        .as_mut()
        .map_err(|error| Failure::system("cannot run the command of --run", error, "--run needs /bin/sh"))?;
    let mut code = ExitCode::SUCCESS;
    let ended = async {
        tokio::select! {
            status = child.wait() => {
                code = status.map_or(ExitCode::FAILURE, exit_code);
                volumes.iter().for_each(|named| named.gate.begin_shutdown());
            }
            () = stopped => {}
        }
    };
    server.serve(listeners, ended).await;
    // Told to stop: the command has no server any more, so it is told, too.
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // An error means that it has just ended.
        let _ = kill_process(pid, Signal::TERM);
    }
    Ok(code)
}

/// A control socket for every volume. Where they belong by default and cannot be made, the volumes are served
/// without; where the place was named, it is an error.
fn control_sockets(
    options: &ServeOptions,
    volumes: &[Named],
    memory: Budget,
    context: &Context,
) -> Result<Vec<ControlSocket>, Failure> {
    if options.no_control {
        return Ok(Vec::new());
    }
    let named = options.control_directory.is_some() || context.settings.control_directory_is_set();
    let directory = options.control_directory.clone().or_else(|| context.settings.control_directory());
    let Some(directory) = directory else { return Ok(Vec::new()) };
    let mut sockets = Vec::with_capacity(volumes.len());
    for Named { name, gate, header } in volumes {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        let socket = made.map_err(|error| error.to_string()).and_then(|()| {
            let listening =
                ControlSocket::listen(&directory, header.volume, name, gate.clone(), memory.get());
            listening.map_err(|error| error.to_string())
        });
        match socket {
            Ok(socket) => sockets.push(socket),
            // Any number of servers may share a volume that they only read; the first one has the socket.
            Err(why) if named && !gate.info().read_only => {
                return Err(Failure::usage(
                    format!("cannot make a control socket in {}: {why}", directory.display()),
                    "--control-directory DIR, one that you may write to, or --no-control",
                ));
            }
            Err(why) => context.output.note(&format!(
                "{name:?}: no control socket in {} ({why}); keys cannot be changed while it is served",
                directory.display()
            )),
        }
    }
    Ok(sockets)
}

/// Writes the last roots; says what could not be written.
async fn close(volumes: &[Named], context: &Context) -> bool {
    let mut all = true;
    for Named { name, gate, header } in volumes {
        if let Err(error) = gate.close().await {
            all = false;
            let then = match &error {
                VolumeError::NotAnchored(_) => "a rollback to the roots before its last one is not noticed",
                _ => "the next start replays its log",
            };
            context.output.note(&format!("{name:?}: not closed cleanly ({error}); {then}"));
            let failure = Failure { exit: EXIT_UNCLEAN, ..Failure::from(error) };
            context.trail.settle(header, Err(&failure));
        }
    }
    all
}

/// The command's own code; 128 and the signal's number for one that was killed, as shells have it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Ends with SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::system("cannot handle signals", &error, "ulimit -n shows how many files may be open")
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut ctrl_c = signal(SignalKind::interrupt()).map_err(failed)?;
    interrupt::hand_on();
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = ctrl_c.recv() => {}
        }
    })
}

/// The names under which clients find the volumes: said to be wrong before anybody types a passphrase.
fn export_names(options: &ServeOptions, context: &Context) -> Result<Vec<String>, Failure> {
    let hint = "--name EXPORT, once per backend in their order";
    let names = names_wanted(options, context, hint)?;
    match names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        Some((_, twice)) => Err(Failure::usage(format!("two exports are named {twice:?}"), hint)),
        None => Ok(names),
    }
}

/// The names given, or those of the configuration, or the last part of each backend's name.
fn names_wanted(options: &ServeOptions, context: &Context, hint: &str) -> Result<Vec<String>, Failure> {
    if !options.names.is_empty() {
        if options.names.len() != options.backends.len() {
            let (names, backends) = (options.names.len(), options.backends.len());
            return Err(Failure::usage(format!("{names} names for {backends} backends"), hint));
        }
        return Ok(options.names.clone());
    }
    let mut names = Vec::with_capacity(options.backends.len());
    for backend in &options.backends {
        let uri = StoreUri::from_arg(backend)?;
        if let Some(volume) = context.settings.volume_at(&uri) {
            names.push(volume.name.clone());
            continue;
        }
        let name = match uri {
            StoreUri::File(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
            StoreUri::Nbd(target) => Some(target.export.clone()),
            StoreUri::Memory(_) => None,
        };
        names.push(name.filter(|name| !name.is_empty()).unwrap_or_else(|| "volume".into()));
    }
    Ok(names)
}

/// A directory for the socket of --run when no address was given.
fn private_directory(options: &ServeOptions) -> Result<Option<tempfile::TempDir>, Failure> {
    if options.run.is_none() || options.socket.is_some() || options.port.is_some() {
        return Ok(None);
    }
    let made = tempfile::Builder::new().prefix("sealbd-").tempdir();
    made.map(Some).map_err(|error| {
        Failure::system(
            "cannot make a directory for the socket",
            &error,
            "-U SOCK, in a directory that exists",
        )
    })
}

/// The sockets that systemd handed over, when no other address was given; else the address of the
/// configuration, which is noted in the options.
fn somewhere_to_listen(options: &mut ServeOptions, context: &Context) -> Result<Vec<Listener>, Failure> {
    if options.stdio || options.socket.is_some() || options.port.is_some() {
        return Ok(Vec::new());
    }
    let handed_over = Listener::handed_over().map_err(listen_failed)?;
    if !handed_over.is_empty() || options.run.is_some() {
        return Ok(handed_over);
    }
    match configured_address(options, context)? {
        Some(Listen::Unix(path)) => options.socket = Some(path),
        Some(Listen::Tcp(address)) => {
            (options.bind, options.port) = (address.ip(), Some(address.port()));
        }
        None => {
            return Err(Failure::usage(
                "nowhere to listen",
                "-U SOCK, -p PORT, --stdio, a systemd socket unit, or listen in its [volume.NAME]",
            ));
        }
    }
    Ok(handed_over)
}

/// Where the configuration wants the volumes to be served, when it says so for all of them alike.
fn configured_address(options: &ServeOptions, context: &Context) -> Result<Option<Listen>, Failure> {
    let mut addresses = Vec::with_capacity(options.backends.len());
    for backend in &options.backends {
        let volume = context.settings.volume_at(&StoreUri::from_arg(backend)?);
        addresses.push(volume.and_then(|volume| volume.listen.as_ref()));
    }
    if addresses.iter().any(|other| Some(other) != addresses.first()) {
        return Err(Failure::usage(
            "the volumes have different addresses in the configuration",
            "-U SOCK or -p PORT for all of them, or a sealbd serve for each",
        ));
    }
    let Some(address) = addresses.first().copied().flatten() else { return Ok(None) };
    let path = match address {
        Listen::Unix(path) if !path.is_absolute() => path,
        _ => return Ok(Some(address.clone())),
    };
    let directory = context.settings.control_directory().ok_or_else(|| {
        Failure::config(
            "there is no control directory for the socket",
            "XDG_RUNTIME_DIR or SEALBD_CONTROL_DIRECTORY names one",
        )
    })?;
    std::fs::create_dir_all(&directory).map_err(|error| {
        let what = format!("cannot make the control directory {}", directory.display());
        Failure::system(&what, &error, "control_directory in [daemon], or SEALBD_CONTROL_DIRECTORY")
    })?;
    Ok(Some(Listen::Unix(directory.join(path))))
}

async fn listeners(
    options: &ServeOptions,
    mut listeners: Vec<Listener>,
    private: Option<&Path>,
) -> Result<(Vec<Listener>, Address), Failure> {
    let mut address = Address::default();
    if options.stdio {
        return Ok((vec![Listener::stdio().map_err(listen_failed)?], address));
    }
    let socket = options.socket.clone().or_else(|| private.map(|directory| directory.join("nbd.sock")));
    if let Some(path) = socket {
        listeners.push(Listener::unix(&path).map_err(listen_failed)?);
        address.socket = Some(std::path::absolute(&path).unwrap_or(path));
    }
    if let Some(port) = options.port {
        let listener = Listener::tcp(SocketAddr::new(options.bind, port)).await.map_err(listen_failed)?;
        address.port = listener.tcp_address();
        listeners.push(listener);
    }
    Ok((listeners, address))
}

fn listen_failed(error: ListenError) -> Failure {
    let message = error.to_string();
    match error {
        ListenError::Unix(PrivateSocketError::InUse(_)) => {
            Failure::exists(message, "-U SOCK, another one, or stop that server")
        }
        ListenError::NotLoopback(_) => Failure::refused(message, "-U SOCK, or -p PORT without --bind"),
        ListenError::Unix(PrivateSocketError::NotASocket(_)) => {
            Failure::exists(message, "-U SOCK, one that does not exist yet")
        }
        ListenError::Stdio => Failure::usage(
            message,
            "-U SOCK, -p PORT; --stdio is for a program that starts sealbd on a socket or pipes",
        ),
        ListenError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Failure::exists(message, "-p PORT, another one; 0 takes any free one")
        }
        ListenError::Unix(_) | ListenError::Io { .. } => {
            Failure::usage(message, "-U SOCK, in a directory that you may write to")
        }
        ListenError::HandedOver(_) => Failure::usage(message, "ListenStream= in the systemd socket unit"),
    }
}

impl Address {
    /// How clients name the export, the unix socket first; nothing for sockets handed over.
    fn uris(&self, name: &str) -> Vec<String> {
        let name: String = name.bytes().map(uri_byte).collect();
        let unix = self.socket.as_ref().map(|path| format!("nbd+unix:///{name}?socket={}", path.display()));
        let tcp = self.port.map(|address| format!("nbd://{address}/{name}"));
        unix.into_iter().chain(tcp).collect()
    }

    /// The same for people.
    fn everywhere(&self, name: &str) -> String {
        let uris = self.uris(name);
        if uris.is_empty() { "what was handed over".into() } else { uris.join(" and ") }
    }

    fn command(&self, command: &str, name: &str) -> tokio::process::Command {
        let mut shell = tokio::process::Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(command)
            .env("uri", self.uris(name).first().map_or("", String::as_str))
            .env("exportname", name);
        if let Some(socket) = &self.socket {
            shell.env("unixsocket", socket);
        }
        if let Some(address) = &self.port {
            shell.env("port", address.port().to_string());
        }
        shell
    }
}

/// A byte of an export name as RFC 3986 has it in a path.
fn uri_byte(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}
