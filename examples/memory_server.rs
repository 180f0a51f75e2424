//! The NBD server without a volume: one disk in memory, in the clear, on a unix socket.
//!
//! ```text
//! cargo run --example memory_server -- /tmp/memory.sock 64
//! nbdinfo nbd+unix:///?socket=/tmp/memory.sock
//! ```
//!
//! Nothing is sealed here and nothing is kept. It shows how to serve an
//! [`Export`](sealbd::export::Export) of your own.

use std::path::Path;
use std::sync::Arc;

use sealbd::export::memory::MemoryExport;
use sealbd::server::{Limits, Listener, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().unwrap_or_else(|| "/tmp/memory.sock".into());
    let mebibytes: u64 = arguments.next().unwrap_or_else(|| "64".into()).parse()?;

    let disk = Arc::new(MemoryExport::new(mebibytes << 20));
    let server = Server::new(vec![("memory".into(), disk)], Limits::default())?;
    let listener = Listener::unix(Path::new(&socket))?;
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    server.serve(vec![listener], interrupted).await;
    Ok(())
}
