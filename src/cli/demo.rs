//! `sealbd demo`: the whole of sealbd in one run, on this machine, without root.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use rustix::fs::SeekFrom;

use super::arguments::DemoOptions;
use super::context::Context;
use super::inspect;
use super::outcome::Failure;
use super::size::show_size;
use crate::cipher::Engine;
use crate::server::{Limits, Listener, Server};
use crate::store::file::{Existing, FileStore};
use crate::store::nbd::{NbdAddress, NbdOptions, NbdStore, NbdTarget};
use crate::store::{Access, Persist, SlotStore};
use crate::volume::create::{Geometry, NewVolume, add_key};
use crate::volume::unlock::{read_header, write_header};
use crate::volume::{OpenMode, Volume};

const SIZE: u64 = 1 << 30;
const EXPORT: &str = "demo";
/// What is written; looked for in the store afterwards.
const SECRET: &[u8] = b"The quick brown fox jumps over the lazy dog. ";
/// Length of the runs of it that are looked for.
const LOOKED_FOR: usize = 16;
/// Bytes of it that are written.
const WRITTEN: usize = 1 << 20;

/// Runs the demonstration; with `--check` it ends after its own check.
pub(super) async fn run(options: DemoOptions, context: &Context) -> Result<ExitCode, Failure> {
    let engine = context.engine;
    let made = tempfile::Builder::new().prefix("sealbd-demo-").tempdir();
    let directory = made.map_err(|error| temporary(&error))?;
    let at = directory.path().to_owned();
    let (backend, key, socket) = (at.join("volume"), at.join("key"), at.join("nbd.sock"));

    step("1. A volume of 1 GiB with a keyfile");
    let first = Keyfile::create(&key)?;
    let geometry = Geometry::for_export(SIZE)?;
    let store = Arc::new(FileStore::create(&backend, geometry.store_bytes(), Existing::Refuse)?);
    let mut new = NewVolume::prepare(geometry, store.capability().best_unit, "demo", engine)?;
    new.add_key(&first, 0).await?;
    let header = new.write(store.clone()).await?;
    drop(store);
    line(&format!("   {}  uuid {}", backend.display(), inspect::uuid_text(&header)));

    step("2. Served on a unix socket; written and read back through NBD");
    let data: Vec<u8> = SECRET.iter().copied().cycle().take(WRITTEN).collect();
    serve_during(&backend, &socket, vec![Box::new(first)], engine, async {
        let client = client(&socket).await?;
        client.write_at(0, vec![Bytes::from(data.clone())], Persist::Durable).await?;
        let back = client.read_at(0, WRITTEN).await?;
        verdict(back == data, &format!("{} of plain text came back the same", show_size(WRITTEN as u64)))
    })
    .await?;

    step("3. What the store holds");
    let read = stored_bytes(&backend);
    let stored = read.map_err(|error| temporary(&error))?;
    line(&format!(
        "   {} in a sparse file, for example: {}",
        show_size(stored.len() as u64),
        hex_sample(&stored)
    ));
    let text: HashSet<&[u8]> = data.windows(LOOKED_FOR).take(SECRET.len()).collect();
    let plain = stored.windows(LOOKED_FOR).any(|window| text.contains(window));
    verdict(!plain, &format!("no {LOOKED_FOR} bytes of the text are in it"))?;

    step("4. Another key");
    let new_key = at.join("new-key");
    let second = Keyfile::create(&new_key)?;
    change_key(&backend, &key, &second, engine).await?;
    let old: Vec<Box<dyn KeyManager>> = vec![Box::new(Keyfile::open(&key)?)];
    let refused = {
        let store = FileStore::open(&backend, Access::ReadOnly)?;
        read_header(&store).await?.unlock(engine, &old).await.is_err()
    };
    verdict(refused, "the old key opens it no longer, the new one does")?;

    step("5. Served again with the new key");
    let check_only = options.check;
    serve_during(&backend, &socket, vec![Box::new(second)], engine, async {
        let back = client(&socket).await?.read_at(0, WRITTEN).await?;
        verdict(back == data, "the text is still there")?;
        if check_only {
            return Ok(());
        }
        attach_help(&socket, &backend, &new_key);
        context.output.note("serving until Ctrl-C");
        let _ = tokio::signal::ctrl_c().await;
        Ok(())
    })
    .await?;
    if check_only {
        line("\nAll checks passed.");
    } else {
        let kept = directory.keep();
        line(&format!("\nThe volume and its key stay in {}", kept.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves the volume while `work` runs, then closes it.
async fn serve_during(
    backend: &Path,
    socket: &Path,
    managers: Vec<Box<dyn KeyManager>>,
    engine: Engine,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let store = Arc::new(FileStore::open(backend, Access::ReadWrite)?);
    let unlocked = read_header(&*store).await?.unlock(engine, &managers).await?;
    let volume = Volume::open(store, unlocked, OpenMode::ReadWrite).await?;
    let exports = vec![(EXPORT.to_owned(), Arc::new(volume.clone()))];
    let again = "sealbd demo, once more: it takes a fresh directory each time";
    let server =
        Server::new(exports, Limits::default()).map_err(|error| Failure::usage(error.to_string(), again))?;
    let listener = Listener::unix(socket).map_err(|error| Failure::exists(error.to_string(), again))?;
    let mut result = Ok(());
    server.serve(vec![listener], async { result = work.await }).await;
    volume.close().await?;
    result
}

async fn client(socket: &Path) -> Result<NbdStore, Failure> {
    let target = NbdTarget { address: NbdAddress::Unix(socket.to_owned()), export: EXPORT.to_owned() };
    Ok(NbdStore::open(target, Access::ReadWrite, NbdOptions::default()).await?)
}

async fn change_key(backend: &Path, old: &Path, new: &Keyfile, engine: Engine) -> Result<(), Failure> {
    let store = Arc::new(FileStore::open(backend, Access::ReadWrite)?);
    let managers: Vec<Box<dyn KeyManager>> = vec![Box::new(Keyfile::open(old)?)];
    let mut unlocked = read_header(&*store).await?.unlock(engine, &managers).await?;
    let slot = unlocked.slot;
    add_key(&mut unlocked.header, &unlocked.dek, &unlocked.keys, new, 0).await?;
    write_header(&*store, &mut unlocked.header, &unlocked.keys).await?;
    unlocked.header.keyslots[slot] = None;
    write_header(&*store, &mut unlocked.header, &unlocked.keys).await?;
    // The next root refuses headers from before.
    Volume::open(store, unlocked, OpenMode::ReadWrite).await?.close().await?;
    Ok(())
}

fn attach_help(socket: &Path, backend: &Path, key: &Path) {
    let (socket, backend, key) = (socket.display(), backend.display(), key.display());
    line(&format!(
        "\nAttach it while this runs:\n\
         \x20 nbd-client -unix {socket} -N {EXPORT} -b 4096 /dev/nbd0     (the kernel's client, as root)\n\
         \x20 touch disk && nbdfuse disk 'nbd+unix:///{EXPORT}?socket={socket}'\n\
         \x20 qemu-system-x86_64 -drive file=nbd:unix:{socket}:exportname={EXPORT},format=raw …\n\
         Serve it yourself later:\n\
         \x20 sealbd serve {backend} --slot keyfile:{key} --name {EXPORT} -U {socket}\n"
    ));
}

fn temporary(error: &std::io::Error) -> Failure {
    Failure::system(
        "cannot use the temporary directory",
        error,
        "TMPDIR=DIRECTORY sealbd demo, one with room",
    )
}

fn step(title: &str) {
    line(&format!("\n{title}"));
}

fn line(text: &str) {
    // A reader that has gone is no failure of the demo.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a check that held, or fails.
fn verdict(holds: bool, claim: &str) -> Result<(), Failure> {
    if holds {
        line(&format!("   ok: {claim}"));
        return Ok(());
    }
    Err(Failure::integrity(format!("not true: {claim}"), "report this as a bug"))
}

/// What a sparse file holds, without its holes.
fn stored_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut stored = Vec::new();
    let mut at = 0;
    loop {
        let from = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(rustix::io::Errno::NXIO) => return Ok(stored),
            Err(error) => return Err(error.into()),
        };
        let to = rustix::fs::seek(&file, SeekFrom::Hole(from))?;
        let mut data = vec![0; usize::try_from(to - from).unwrap_or(0)];
        file.read_exact_at(&mut data, from)?;
        stored.append(&mut data);
        at = to;
    }
}

/// A few bytes of the last record written.
fn hex_sample(stored: &[u8]) -> String {
    let last = stored.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let from = last.saturating_sub(24);
    stored[from..last].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
