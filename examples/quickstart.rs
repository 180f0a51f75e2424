//! A client of a served volume: writes 4 KiB durably, reads them back and compares, through sealbd's own NBD client.
//! It overwrites the first 4 KiB of the export.
//!
//! ```text
//! sealbd format volume --size 64M --slot keyfile:key
//! sealbd serve volume --slot keyfile:key --run 'cargo run --example quickstart -- "$uri"'
//! ```
//!
//! or, against a server that runs already, `cargo run --example quickstart -- 'nbd+unix:///volume?socket=SOCK'`.
//! Nothing in here knows of keys: what goes through the socket is the plain disk.

use std::error::Error;

use bytes::Bytes;
use sealbd::store::uri::{self, StoreUri};
use sealbd::store::{Access, Persist};

/// Bytes written and read back.
const LEN: usize = 4096;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args().nth(1).ok_or("usage: quickstart nbd+unix:///EXPORT?socket=PATH")?;
    let uri: StoreUri = argument.parse()?;
    if !matches!(uri, StoreUri::Nbd(_)) {
        return Err("this is a client: name an NBD export".into());
    }
    let disk = uri::open(&uri, Access::ReadWrite).await?;
    report(&format!("{} has {} bytes", disk.describe(), disk.capability().size));

    let text: Vec<u8> = b"Written by quickstart. ".iter().copied().cycle().take(LEN).collect();
    disk.write_at(0, vec![Bytes::from(text.clone())], Persist::Volatile).await?;
    report(&format!("wrote {LEN} bytes; they survive the death of the server"));
    disk.sync().await?;
    report("flushed; they survive the loss of power");

    let back = disk.read_at(0, LEN).await?;
    if back != text {
        return Err("what came back is not what was written".into());
    }
    report("read back the same bytes");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example shows what happens")]
fn report(line: &str) {
    println!("{line}");
}
