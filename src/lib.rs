//! sealbd: a userspace NBD server that seals every sector before it leaves the host.
//!
//! A client (the kernel, QEMU, nbdfuse, any NBD program) sees a plain disk. Every 4 KiB sector of it
//! is sealed with AES-256-GCM under a key of the volume's own, and only ciphertext goes to the store:
//! a file, a block device, or an export of another NBD server. The store is not trusted. What it
//! returns either authenticates, in its place, or the read fails.
//!
//! # Layers
//! A module uses lower layers only; modules of one layer do not see each other. `tests/tidy.rs` holds
//! this.
//!
//! | layer | module | what lives there |
//! |---|---|---|
//! | 6 | [`cli`] | verbs, options, exit codes |
//! | 5 | [`server`] | listening, accepting, bounds, draining |
//! | 5 | [`control`] | a served volume's control socket: new headers, suspending and resuming |
//! | 4 | [`nbd`] | one NBD connection; knows neither keys, ciphers nor stores |
//! | 3 | [`volume`] | the encrypted disk: log, index, checkpoints, recovery; implements [`export::Export`] |
//! | 2 | [`format`](mod@format) | bytes on the store: encode beside decode, no I/O |
//! | 1 | [`cipher`] | sealing and opening, key derivation, nonces |
//! | 1 | [`store`] | [`store::SlotStore`] and the stores there are: file, remote NBD, memory |
//! | 1 | [`export`] | [`export::Export`], the seam between the server and volumes |
//! | 0 | [`geometry`], [`payload`], [`wire`] | addresses, the memory of one write, NBD's bytes for server and client |
//! | 0 | [`buffers`] | memory of long requests, used again |
//! | 0 | [`private_socket`] | unix sockets for our user alone |
//! | 0 | [`audit`] | the audit log: hash-chained records; knows no volume, no store, no key manager |
//!
//! The crate `keymgmt` lies below all of them. It wraps and unwraps keys and knows no disk.
//!
//! # Example
//! A volume on a store in memory, with a keyfile as its only key:
//!
//! ```
//! use std::sync::Arc;
//!
//! use keymgmt::keyfile::Keyfile;
//! use keymgmt::manager::KeyManager;
//! use keymgmt::secret::Secret32;
//! use sealbd::cipher::Engine;
//! use sealbd::export::{Durability, Export};
//! use sealbd::geometry::ByteRange;
//! use sealbd::payload::Payload;
//! use sealbd::store::memory::MemoryStore;
//! use sealbd::volume::create::{Geometry, NewVolume};
//! use sealbd::volume::unlock::read_header;
//! use sealbd::volume::{OpenMode, Volume};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let geometry = Geometry::for_export(16 << 20)?;
//! let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
//! let key = Keyfile::from_secret(Secret32::generate()?);
//! let mut new = NewVolume::prepare(geometry, 4096, "example", Engine::default())?;
//! new.add_key(&key, 0).await?;
//! new.write(store.clone()).await?;
//!
//! let keys: [Box<dyn KeyManager>; 1] = [Box::new(key)];
//! let unlocked = read_header(&*store).await?.unlock(Engine::default(), &keys).await?;
//! let volume = Volume::open(store, unlocked, OpenMode::ReadWrite).await?;
//!
//! let range = ByteRange::within(5000, 5, volume.info().size).expect("inside the volume");
//! volume.write(Payload::copy_of(range, b"hello"), Durability::Durable).await?;
//! let mut back = [0; 5];
//! volume.read(range, &mut back).await?;
//! assert_eq!(&back, b"hello");
//! volume.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has a store and a key manager of one's own, a client, and a server of a plain disk.
pub mod audit;
pub mod buffers;
pub mod cipher;
pub mod cli;
pub mod control;
pub mod export;
pub mod format;
pub mod geometry;
pub mod nbd;
pub mod payload;
pub mod private_socket;
#[cfg(test)]
mod random;
pub mod server;
pub mod store;
pub mod volume;
pub mod wire;
