//! Volume format 1 as bytes: every structure of docs/FORMAT.md, encode beside decode, pure and
//! synchronous. Sealing and authenticating of the structures lives with their layout; I/O does not.
//!
//! | file | structure | section |
//! |---|---|---|
//! | [`header`], [`keyslot`] | the two header copies | §4 |
//! | [`root`] | ring block and root payload | §5 |
//! | [`segment`], [`chunk`] | log segments | §6 |
//! | [`page`], [`table`] | index pages, segment table | §7 |

pub mod chunk;
pub mod codec;
pub mod header;
pub mod keyslot;
pub mod page;
pub mod root;
pub mod segment;
pub mod table;

pub use codec::FormatError;
